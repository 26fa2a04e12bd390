"""Who speaks: eSpeak NG's languages and voice variants, some kept for validation, and how fast and how high."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    """How something is said: `voice`, `speed` and `pitch` as `espeak.speak` takes them."""

    voice: str
    speed: int
    pitch: int

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
