"""The quality benchmark on pictures in which nobody is to be seen."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import quality
from quality import Studio, person
from samples import pictures, write_clip

from export.portrait.controls import REST_MOUTH
from export.speech.espeak import Speech


class Finder:
    """Sees a face in the first picture only."""

    def __init__(self) -> None:
        self.looks = 0

    def detect(self, picture: np.ndarray) -> list[str]:
        self.looks += 1
        return ["face"] if self.looks == 1 else []

    def mesh(self, picture: np.ndarray, face: str) -> np.ndarray:
        assert face == "face"
        return np.zeros((468, 3))


def test_a_frame_without_a_face_is_left_out_of_the_upper_faces_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "said.mp4", pictures(9))
    monkeypatch.setattr(quality, "mouth_track", lambda speech, fps: None)
    monkeypatch.setattr(quality, "mouths", lambda track: [REST_MOUTH] * 9)
    monkeypatch.setattr(quality, "upper_face", lambda mesh, shape: np.ones(shape, np.bool_))
    avatar = SimpleNamespace(index=lambda number, fps: number, frame=lambda index: pictures(9)[index])
    engine, finder = SimpleNamespace(store=SimpleNamespace(open=lambda avatar_id: avatar)), Finder()
    studio = Studio(cast(Any, engine), cast(Any, finder), tmp_path)
    found = studio.pictures(person("lisa"), tmp_path / "said.mp4", Speech(np.zeros(5760, np.float32), ()))
    assert finder.looks == 3  # frames 0, 4 and 8
    assert all(math.isfinite(value) for value in found.values())
