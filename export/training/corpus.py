"""Utterances on disk: seeded texts, spoken by many voices, with the time of every phoneme.

    speech/train/00012.npz      samples int16 (n,), 16 kHz; symbols str (p,); starts, ends float64 (p,), seconds
    speech/train/00012.json     text and manner, for people

Utterance i depends on the seed, the split and i alone, so a corpus can be continued or made larger. Voices and words of
the validation split are never in training (see export.speech). From INVENTED_FROM on, training has voices made up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from export.speech.espeak import Phone, Speech, speak
from export.speech.texts import sentence
from export.speech.voices import Manner, invented, manner

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
MAX_SECONDS = 14.0  # of one utterance, so that two fit a segment
INVENTED_FROM = 2600  # utterance


class Corpus:
    """The utterances of one split, by number."""

    def __init__(self, folder: Path, split: Split) -> None:
        self._folder = folder / "speech" / split
        self.count = len(list(self._folder.glob("*.npz")))

    def speech(self, index: int) -> Speech:
        """One utterance."""
        with np.load(self._folder / f"{index:05d}.npz", allow_pickle=False) as file:
            samples = file["samples"].astype(np.float32) / np.float32(32768)
            marks = zip(file["symbols"].tolist(), file["starts"].tolist(), file["ends"].tolist(), strict=True)
            return Speech(samples, tuple(Phone(*mark) for mark in marks))


def build(folder: Path, split: Split, count: int, seed: int, workers: int = 2) -> Iterator[int]:
    """Synthesise what is missing of `count` utterances; yields each number once it is on disk."""
    place = folder / "speech" / split
    place.mkdir(parents=True, exist_ok=True)
    missing = [index for index in range(count) if not (place / f"{index:05d}.npz").is_file()]
    with ThreadPoolExecutor(workers) as pool:  # the work is done in eSpeak's own processes
        for index, _ in zip(missing, pool.map(lambda i: _write(place, split, i, seed), missing), strict=True):
            yield index


def _write(place: Path, split: Split, index: int, seed: int) -> None:
    text, how, speech = utterance(split, index, seed)
    about = {"text": text, **asdict(how), "seconds": round(speech.seconds, 2)}
    (place / f"{index:05d}.json").write_text(json.dumps(about, ensure_ascii=False) + "\n")
    draft = place / f".{index:05d}.part.npz"
    np.savez(
        draft,
        samples=np.round(np.clip(speech.samples, -1, 1) * 32767).astype(np.int16),
        symbols=np.array([phone.symbol for phone in speech.phones]),
        starts=np.array([phone.start for phone in speech.phones]),
        ends=np.array([phone.end for phone in speech.phones]),
    )
    draft.replace(place / f"{index:05d}.npz")


def utterance(split: Split, index: int, seed: int) -> tuple[str, Manner, Speech]:
    """Text, manner and sound of one utterance: one or two sentences."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    held_out = split == "val"
    how = invented(rng) if index >= INVENTED_FROM and not held_out else manner(rng, held_out)
    text = " ".join(sentence(rng, how.language, held_out) for _ in range(int(rng.integers(1, 3))))
    speech = speak(text, how.voice, how.speed, how.pitch, how.variant)
    while speech.seconds > MAX_SECONDS:
        text = sentence(rng, how.language, held_out)
        speech = speak(text, how.voice, how.speed, how.pitch, how.variant)
    return text, how, speech
