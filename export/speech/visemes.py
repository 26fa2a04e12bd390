"""What the mouth does for each phoneme: a table from IPA to target shapes of the portrait's mouth controls.

Targets are those of a careful, isolated pronunciation; how they run into one another is `coarticulation.py`'s. Groups
follow the usual viseme classes (Fisher 1968; MPEG-4 face animation has 14), finer for vowels.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.speech.espeak import Phone


@dataclass(frozen=True)
class Viseme:
    """A target: controls as in `export.portrait.controls.Mouth`, and how firmly a neighbour cannot change them, 0…1.

    `hold` is of the opening (jaw, open), `grip` of the lips' outline (width, round).
    """

    open: float
    jaw: float
    width: float = 0.0
    round: float = 0.0
    teeth: float = 0.6
    tongue: float = 0.0
    hold: float = 0.6
    grip: float = 0.6


# Jaws stay below 0.45: MuseTalk's face box ends 10 pixels below the chin of the closed mouth. Rounding stays below
# 0.5: MediaPipe's mesh, which measures the result, takes fully rounded lips for parted ones.
VISEMES = {
    "rest": Viseme(0.00, 0.00, teeth=0.5, hold=0.5, grip=0.5),
    "aa": Viseme(0.84, 0.44, width=0.10, hold=1.0),
    "ae": Viseme(0.74, 0.40, width=0.30, hold=1.0, grip=0.8),
    "eh": Viseme(0.58, 0.32, width=0.25, hold=1.0, grip=0.8),
    "ee": Viseme(0.26, 0.12, width=0.60, teeth=0.7, hold=1.0, grip=1.0),
    "ih": Viseme(0.34, 0.18, width=0.40, hold=0.9, grip=0.8),
    "uh": Viseme(0.40, 0.22, hold=0.8, grip=0.4),
    "aw": Viseme(0.62, 0.38, round=0.28, teeth=0.5, hold=1.0, grip=1.0),
    "oh": Viseme(0.45, 0.27, round=0.40, teeth=0.45, hold=1.0, grip=1.0),
    "oo": Viseme(0.18, 0.12, round=0.48, teeth=0.4, hold=1.0, grip=1.0),
    "ue": Viseme(0.20, 0.12, round=0.40, teeth=0.45, hold=1.0, grip=1.0),
    "pbm": Viseme(0.00, 0.02, hold=0.7, grip=0.4),
    "fv": Viseme(0.10, 0.06, teeth=0.8, hold=0.7, grip=0.4),
    "th": Viseme(0.22, 0.10, teeth=0.8, tongue=0.9, hold=0.5, grip=0.2),
    "td": Viseme(0.20, 0.08, teeth=0.7, tongue=0.7, hold=0.4, grip=0.15),
    "l": Viseme(0.30, 0.14, tongue=1.0, hold=0.4, grip=0.15),
    "sz": Viseme(0.12, 0.04, width=0.30, teeth=0.8, tongue=0.2, hold=0.7, grip=0.4),
    "sh": Viseme(0.16, 0.06, round=0.30, teeth=0.75, tongue=0.2, hold=0.8, grip=0.9),
    "r": Viseme(0.24, 0.12, round=0.18, tongue=0.3, hold=0.5, grip=0.5),
    "kg": Viseme(0.28, 0.14, hold=0.3, grip=0.1),
    "w": Viseme(0.08, 0.08, round=0.48, teeth=0.4, hold=0.8, grip=1.0),
    "y": Viseme(0.20, 0.10, width=0.50, hold=0.6, grip=0.7),
    "h": Viseme(0.38, 0.20, hold=0.1, grip=0.05),
}
NAMES = tuple(VISEMES)  # the order of phoneme classes
REST = "rest"

_SYMBOLS = {
    "aa": "aɑɐʌäɶ",
    "ae": "æ",
    "eh": "ɛeɜœ",
    "ee": "i",
    "ih": "ɪɨᵻ",
    "uh": "əɘɵɤɚɝ",
    "aw": "ɔɒ",
    "oh": "oø",
    "oo": "uʊɯ",
    "ue": "yʏ",
    "pbm": "pbmɓ",
    "fv": "fvɱ",
    "th": "θð",
    "td": "tdnɗʈɖɳ",
    "l": "lɫɭʎ",
    "sz": "szɬɮ",
    "sh": "ʃʒɕʑʂʐ",
    "r": "rɹɾɻɽʁʀ",
    "kg": "kɡgŋxɣqχcɟɲɴ",
    "w": "wʍɥβɸʋ",
    "y": "jʝç",
    "h": "hɦħʕʔ",
}
CLASS_OF = {symbol: name for name, symbols in _SYMBOLS.items() for symbol in symbols}

VOICELESS_STOPS = frozenset("ptkqcʈ")  # eSpeak's event marks their burst; the closure is the silence before
VOICED_STOPS = frozenset("bdɡgɓɗɖɟ")  # the event marks the start of the closure, the burst ends it


@dataclass(frozen=True)
class Gesture:
    """One viseme in time: class name, seconds, and the IPA letter it comes from."""

    name: str
    start: float
    end: float
    letter: str


def gestures(phones: tuple[Phone, ...]) -> list[Gesture]:
    """Phonemes as visemes. Diphthongs and affricates are one viseme per letter, in equal shares; length, stress and
    other marks are skipped, and a symbol without any known letter is a neutral one (h).
    """
    found = []
    for phone in phones:
        letters = [letter for letter in phone.symbol if letter in CLASS_OF] or [""]
        share = (phone.end - phone.start) / len(letters)
        for place, letter in enumerate(letters):
            name = CLASS_OF.get(letter, "h" if phone.symbol else REST)
            start = phone.start + place * share
            found.append(Gesture(name, start, start + share, letter))
    return found
