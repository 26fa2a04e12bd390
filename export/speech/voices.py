"""Who speaks: eSpeak NG's languages and voice variants, some kept for validation, invented ones, how fast, how high."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.speech.synthesiser import INVENTED

LANGUAGES = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "de", "fr-fr", "es", "es-419", "it")
LANGUAGE_WEIGHTS = (5, 5, 2, 2, 2, 2, 1, 1, 2)
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m7", "m8", "f1", "f2", "f3", "f4", "klatt", "klatt2", "klatt4", "klatt5"),
    *("Alex", "Andrea", "Andy", "Annie", "Denis", "Gene", "Hugo", "Jacky", "Marco", "Mario", "Michael", "Mike"),
    *("adam", "anika", "antonio", "belinda", "benjamin", "boris", "caleb", "david", "ed", "grandma", "grandpa"),
    *("iven", "john", "linda", "max", "michel", "norbert", "pablo", "paul", "quincy", "rob", "robert", "sandro"),
    *("shelby", "steph", "steph3", "travis", "victor", "zac", "whisper"),
)
HELD_OUT_VARIANTS = ("f5", "m6", "Alicia", "Lee", "klatt3", "edward", "marcelo", "steph2")


@dataclass(frozen=True)
class Manner:
    """How something is said: `voice`, `speed`, `pitch` and `variant` as `espeak.speak` takes them."""

    voice: str
    speed: int
    pitch: int
    variant: str | None = None

    @property
    def language(self) -> str:
        return self.voice.partition("+")[0]


def manner(rng: np.random.Generator, held_out: bool = False) -> Manner:
    """Anyone. One in ten has no variant: the language's own voice."""
    weights = np.array(LANGUAGE_WEIGHTS) / sum(LANGUAGE_WEIGHTS)
    language = LANGUAGES[int(rng.choice(len(LANGUAGES), p=weights))]
    variants = HELD_OUT_VARIANTS if held_out else VARIANTS
    variant = variants[int(rng.integers(len(variants)))]
    plain = not held_out and rng.random() < 0.1
    voice = language if plain else f"{language}+{variant}"
    return Manner(voice, int(rng.integers(115, 200)), int(rng.integers(20, 85)))


def invented(rng: np.random.Generator) -> Manner:
    """Anyone that eSpeak could be: formants, pitch, breath and roughness at random, so that no voice is far from all.

    Fields as eSpeak NG's docs/voices.md has them: a formant's frequency, height and width in percent of the language's
    own; klatt, another synthesiser, 1 to 5; tone, loudness over frequency; stressAdd, what stress does to length.
    """
    scale = float(np.exp(rng.uniform(np.log(0.8), np.log(1.4))))
    low = rng.uniform(70, 190)
    lines = [
        "language variant",
        f"name {INVENTED}",
        f"gender {'female' if scale > 1.08 else 'male'}",
        f"pitch {low:.0f} {low * rng.uniform(1.15, 1.6):.0f}",
        f"flutter {rng.integers(0, 12)}",
        f"roughness {rng.integers(0, 4)}",
        f"voicing {np.exp(rng.uniform(np.log(30), np.log(170))):.0f}",
        f"consonants {rng.uniform(30, 140):.0f} {rng.uniform(20, 140):.0f}",
    ]
    for formant in range(9):
        spread = 0.14 if formant < 4 else 0.25
        frequency = 100 * scale * np.exp(rng.uniform(-spread, spread))
        lines.append(f"formant {formant} {frequency:.0f} {rng.uniform(60, 150):.0f} {rng.uniform(80, 170):.0f}")
    if rng.random() < 0.35:
        lines.append(f"klatt {rng.integers(1, 6)}")
    if rng.random() < 0.3:
        corners = np.cumsum(rng.uniform(80, 1200, 4))
        lines.append("tone " + " ".join(f"{corner:.0f} {rng.integers(20, 256)}" for corner in corners))
    if rng.random() < 0.3:
        lines.append(f"intonation {rng.integers(1, 5)}")
    if rng.random() < 0.3:
        lines.append(f"stressAdd {' '.join(str(longer) for longer in rng.integers(-20, 120, 8))}")
    if rng.random() < 0.3:
        lines.append(f"echo {rng.uniform(20, 140):.0f} {rng.uniform(10, 50):.0f}")
    if rng.random() < 0.3:
        lines.append(f"breath 0 {' '.join(str(level) for level in rng.integers(1, 12, 7))}")
    how = manner(rng)
    return Manner(f"{how.language}+{INVENTED}", how.speed, how.pitch, "\n".join(lines) + "\n")
