"""Seeded sentences: the same generator state gives the same text.

Every sixth word of each list is kept for validation: training sentences never hold one, held-out sentences always do,
so no held-out text was ever heard in training.
"""

from __future__ import annotations

import string

import numpy as np

from export.speech.words import LEXICONS

KEPT_APART = 6  # every so many-th word is held out
NONSENSE_SHARE = 0.25  # of training texts: syllables at random, so that no phoneme is known by its neighbours

_ONSETS = (*"pbmfvwtdnlszkgrhjpbmfv", "sh", "ch", "pr", "bl", "fl", "st", "tr", "y", "th")
_NUCLEI = (*"aeiouaoi", "ee", "oo", "ou", "ai", "au", "ar")
_CODAS = ("", "", "", "", "m", "n", "p", "f", "s", "l", "b", "t", "v")


def is_held_out(index: int) -> bool:
    """Whether the word at this place of its list is kept for validation."""
    return index % KEPT_APART == KEPT_APART - 1


def sentence(rng: np.random.Generator, language: str, held_out: bool = False) -> str:
    """One sentence. `language`: a key of LEXICONS, or a tag that begins with one, like en-gb or es-419."""
    if not held_out and rng.random() < NONSENSE_SHARE:
        return nonsense(rng)
    lexicon = LEXICONS[language.split("-")[0]]
    lists = {
        "name": lexicon.names, "noun": lexicon.nouns, "verb": lexicon.verbs, "quality": lexicon.qualities,
        "place": lexicon.places,
    }  # fmt: skip
    frames = [frame for frame in lexicon.frames if not held_out or any("{" + place in frame for place in lists)]
    frame = frames[int(rng.integers(len(frames)))]
    spoken, owed = "", held_out
    for text, place, _, _ in string.Formatter().parse(frame):
        spoken += text
        if place in lists:
            spoken += _word(rng, lists[place], owed)
            owed = False
        elif place is not None:
            spoken += _number(rng, place)
    return spoken


def paragraph(rng: np.random.Generator, language: str, seconds: float, held_out: bool = False) -> str:
    """Sentences enough for about so many seconds at an ordinary pace."""
    parts = [sentence(rng, language, held_out)]
    while sum(map(len, parts)) < 14 * seconds:  # some 14 letters are said in a second
        parts.append(sentence(rng, language, held_out))
    return " ".join(parts)


def nonsense(rng: np.random.Generator) -> str:
    """Words of no language: open syllables, rich in lips."""
    words = []
    for _ in range(int(rng.integers(3, 9))):
        syllables = (_pick(rng, _ONSETS) + _pick(rng, _NUCLEI) for _ in range(int(rng.integers(1, 4))))
        words.append("".join(syllables) + _pick(rng, _CODAS))
    return " ".join(words).capitalize() + "."


def _word(rng: np.random.Generator, words: tuple[str, ...], held_out: bool) -> str:
    return _pick(rng, [word for index, word in enumerate(words) if is_held_out(index) == held_out])


def _number(rng: np.random.Generator, kind: str) -> str:
    if kind == "digits":
        return " ".join(str(digit) for digit in rng.integers(0, 10, 6))
    if kind == "ordinal":
        return f"{rng.integers(4, 20)}th"
    return str(int(10 ** rng.uniform(0.3, 3.5)))


def _pick(rng: np.random.Generator, words: list[str] | tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
