"""benchmarks/differences.py and half_whisper.py: what they put in MuseTalk's place, and how they count."""

import differences
import half_whisper
import numpy as np
import onnx
import pytest
from PIL import Image
from samples import ROOT, tone

from avatar_prep import masks
from avatar_prep.boxes import crop_box
from gateway.features import AudioEncoder, log_mel

BOX = (100, 100, 200, 240)
CROP = crop_box(BOX)


def mask_of(hard: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The soft mask of labels' selection `hard`, (512, 512), with nothing of a mesh."""
    monkeypatch.setattr(masks, "labels", lambda *_: np.zeros_like(hard))
    monkeypatch.setattr(masks, "select", lambda *_: hard)
    return masks.blend_mask(np.zeros((468, 2)), BOX, CROP)


def test_the_resize_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    hard = np.zeros((512, 512), np.uint8)
    hard[256:420, 150:360:2] = 255  # stripes, which only antialiasing turns to grey
    ours = mask_of(hard, monkeypatch)
    theirs = differences.pillow_resized(lambda: mask_of(hard, monkeypatch))
    side = CROP[2] - CROP[0]
    scaled = np.asarray(Image.fromarray(hard).resize((side, side), Image.Resampling.BICUBIC))
    monkeypatch.setattr(masks.cv2, "resize", lambda *_, **__: scaled)
    assert (theirs == mask_of(hard, monkeypatch)).all()
    assert (theirs != ours).any()


def test_specks_stay() -> None:
    grid = np.zeros((512, 512), np.uint8)
    grid[300:400, 200:300] = masks.SKIN
    grid[100, 100] = masks.LOWER_LIP
    assert masks.select(grid, "jaw", 90, 90)[100, 100] == 0
    assert differences.with_specks(lambda: masks.select(grid, "jaw", 90, 90))[100, 100] == 255
    assert masks.select(grid, "jaw", 90, 90)[100, 100] == 0


def test_errors() -> None:
    errors = differences.Errors()
    errors.add(np.array([[1, 5]], np.uint8), np.array([[4, 5]], np.uint8))
    errors.add(np.array([[7, 7]], np.uint8), np.array([[7, 7]], np.uint8))
    assert (errors.changed, errors.most, errors.mean) == (1, 3, 0.75)


def test_the_box_of_68_points() -> None:
    points = np.full((68, 2), 400.0)
    points[0], points[16], points[8], points[29] = (300.9, 410), (480.2, 410), (390, 500.7), (390, 400.5)
    assert differences.box_of_68(points, (1920, 1080)) == (300, 300, 480, 500)


def test_a_face_differs_by_its_texture() -> None:
    picture = np.full((200, 200, 3), 128, np.uint8)
    change = differences.textured(picture, np.random.default_rng(0)).astype(float) - 128
    assert change.std() == pytest.approx(differences.TEXTURE, abs=0.1)


def test_the_demos_encoder_in_half_precision() -> None:
    file = ROOT / "models/demo/audio_encoder.onnx"
    sound = tone(2.0)[0]
    exact, half = (states(log_mel(sound)) for states in half_whisper.demo_encoders(file))
    assert np.abs(exact - AudioEncoder(file, 1).exact_states(sound)).max() < 1e-4
    error = np.sqrt(((half - exact) ** 2).mean() / (exact**2).mean())
    assert 1e-4 < error < 1e-3
    graph = half_whisper.halved(onnx.load(file)).graph
    kinds = {a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    assert kinds == {onnx.TensorProto.FLOAT16}
