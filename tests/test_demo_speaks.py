"""The bundled weights, heard and seen: the meter's figures of a sentence never trained on, through the real Triton.

The same functions as benchmarks/quality.py, whose full run stands in docs/benchmarks.md; bounds here leave a margin for
one short sentence.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lipsync import against_loudness, against_truth, correlations, measure
from quality import Person, Studio, person, quiet_sounds

from avatar_prep.faces import FaceFinder
from export.speech import espeak
from export.speech.coarticulation import mouth_track, opening
from export.speech.espeak import Speech, speak
from gateway.audio import speech as as_speech
from gateway.engine import Engine
from lipserve.embedded import EmbeddedTriton
from lipserve.media import read_sound
from lipserve.settings import Settings

pytestmark = pytest.mark.skipif(not espeak.is_available(), reason="needs libespeak-ng: apt-get install espeak-ng")


@pytest.fixture(scope="module")
def studio(settings: Settings, triton: EmbeddedTriton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    engine = Engine(settings.model_copy(update={"avatars_dir": folder / "avatars"}), triton.grpc_url)
    yield Studio(engine, FaceFinder(settings.models_dir / "faces"), folder)
    engine.close()


@pytest.fixture(scope="module")
def lucy(studio: Studio) -> Person:
    """Two seconds of her."""
    who = dataclasses.replace(person("lucy"), seconds=2.0)
    who = dataclasses.replace(who, avatar_id="lucy-short")
    studio.prepare(who)
    return who


@pytest.fixture(scope="module")
def said() -> Speech:
    """Words and a voice that are in no training."""
    return speak("Maybe Amber sings my cup; I do not believe it, Paul.", "en-gb+f5", 142, 55)


@pytest.fixture(scope="module")
def scores(studio: Studio, lucy: Person, said: Speech) -> dict[str, float]:
    return studio.speech(lucy, said)


def test_the_mouth_follows_the_speech(scores: dict[str, float]) -> None:
    assert scores["frames"] == scores["expected_frames"] and scores["frames_without_face"] == 0
    assert scores["correlation"] > 0.85  # the meter itself ends at 0.97
    assert abs(scores["lag"]) <= 1
    assert scores["closure_recall"] >= 0.8
    assert scores["open_seen_shut"] < 0.15


def test_the_mouth_looks_as_it_would_be_drawn(scores: dict[str, float]) -> None:
    assert scores["psnr_mouth"] > 25
    assert scores["psnr_mouth"] > scores["psnr_still"] + 3
    assert scores["upper_face_change"] < 1.0  # grey levels, of H.264


def test_another_sentence_does_not_fit(studio: Studio, lucy: Person, said: Speech) -> None:
    """So that the figures above say something."""
    other = speak("Could you show me the bigger umbrella by the bridge?", "en-gb+f5", 142, 55)
    seen = measure(studio.say(lucy, said.samples), studio.finder)
    assert against_truth(seen, other)["correlation"] < 0.5
    late = np.roll(opening(mouth_track(said)), 3).astype(np.float64)
    _, lag, _ = correlations(late, seen.openings[: len(late)])
    assert lag in (-4, -3, -2)


@pytest.mark.parametrize("name", ["silence", "faint noise"])
def test_silence_is_a_closed_still_mouth(studio: Studio, lucy: Person, scores: dict[str, float], name: str) -> None:
    quiet = studio.quiet(lucy, quiet_sounds()[name], scores["open_gap"])
    assert quiet["widest"] < 0.3  # of an open mouth: below it lips count as closed
    assert quiet["unrest"] < 0.08


def test_the_recorded_sentence_of_the_demo_opens_the_mouth(studio: Studio, lucy: Person) -> None:
    samples = as_speech(read_sound(Path(__file__).parent.parent / "demo/speech.flac", 60))
    seen = measure(studio.say(lucy, samples), studio.finder)
    assert against_loudness(seen, samples)["envelope_correlation"] > 0.4
