"""Checks against MuseTalk's public test media and the reference code's numbers; only with `--reference DIR`.

DIR/data: yongen.mp4, yongen.wav, eng.wav. DIR/reference: what the reference code made of its own weights, avatar and
sound, in the layout that benchmarks/parity.py describes.
"""

import io
import lzma
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from samples import FORMATS, facts, write_sound

from gateway.features import Padding, Prompts, log_mel
from lipserve.media import Sound, VideoReader, read_sound
from lipserve.settings import Settings
from lipserve.store import AvatarStore


@pytest.fixture(scope="module")
def yongen(client: TestClient, reference: Path) -> str:
    with (reference / "data/yongen.mp4").open("rb") as video:
        response = client.post("/prepare_avatar", data={"avatar_id": "yongen"}, files={"video": video})
    assert response.status_code == 201, response.text
    info = response.json()
    assert (info["frames"], info["frames_without_face"]) == (268, 0)
    assert (info["width"], info["height"], info["fps"]) == (704, 1216, 25)
    return "yongen"


def say(client: TestClient, sound: Path, out: Path) -> dict[str, object]:
    with sound.open("rb") as handle:
        response = client.post("/lip_sync", data={"avatar_id": "yongen"}, files={"audio": handle})
    assert response.status_code == 200, response.text
    out.write_bytes(response.content)
    return facts(out)


def test_eight_seconds_of_english(
    client: TestClient, yongen: str, reference: Path, settings: Settings, tmp_path: Path
) -> None:
    whole = read_sound(reference / "data/eng.wav", 100)
    given = Sound(whole.samples[:, : 8 * whole.rate], whole.rate)
    found = say(client, write_sound(tmp_path / "eng8.wav", given.samples, given.rate), tmp_path / "out.mp4")
    assert (found["frames"], found["rate"], found["size"]) == (200, Fraction(25), (704, 1216))
    assert found["video_seconds"] == pytest.approx(8.0)
    assert found["audio_seconds"] == pytest.approx(8.0, abs=1 / 25)
    kept = read_sound(tmp_path / "out.mp4", 100)
    n = min(kept.samples.shape[1], given.samples.shape[1])
    assert np.corrcoef(kept.samples[0, :n], given.samples[0, :n])[0, 1] > 0.99

    avatar = AvatarStore(settings.avatars_dir).open(yongen)
    errors = []
    with VideoReader(tmp_path / "out.mp4", 25, 100, 10**7) as frames:
        for i, frame in enumerate(frames):
            x1, y1, x2, y2 = avatar.regions[avatar.index(i, 25)]["region"]
            outside = np.ones((1216, 704), bool)
            outside[y1:y2, x1:x2] = False
            source = avatar.frames[avatar.index(i, 25)][:1216].astype(float)
            errors.append(np.mean((frame[:1216].astype(float) - source)[outside] ** 2))
    psnr = 10 * np.log10(255**2 / np.array(errors))
    print(f"PSNR outside the blend: worst {psnr.min():.1f} dB, mean {psnr.mean():.1f} dB")
    assert psnr.min() > 38


@pytest.mark.parametrize("suffix", FORMATS)
def test_stereo_at_48_khz_in_every_format(
    client: TestClient, yongen: str, reference: Path, tmp_path: Path, suffix: str
) -> None:
    given = read_sound(reference / "data/yongen.wav", 100)
    sound = write_sound(tmp_path / f"a{suffix}", given.samples[:, : 2 * given.rate], given.rate)
    found = say(client, sound, tmp_path / "out.mp4")
    assert found["frames"] in ((50,) if suffix in (".wav", ".flac") else (50, 51))
    assert found["audio_seconds"] == pytest.approx(found["video_seconds"], abs=1 / 25)


@pytest.mark.parametrize("name", ["eng", "yongen"])
def test_mel_and_windows_equal_the_reference(reference: Path, name: str) -> None:
    data = np.load(io.BytesIO(lzma.decompress((reference / f"reference/audio/{name}.npz.xz").read_bytes())))
    wave = data["wave16k"].astype(np.float32)
    assert np.abs(log_mel(wave) - data["mel"][0]).max() < 1e-4
    hidden = data["hidden"].astype(np.float32)
    for fps in (25, 30):
        expected = data[f"chunks_fps{fps}"]
        padded = np.concatenate([hidden, np.zeros((1500, 5, 384), np.float32)])
        made = Prompts(Sound(wave[None], 16000), fps, Padding(), lambda _, states=padded: states)
        ours = made.batch(0, len(expected))
        assert ours.shape == expected.shape
        assert np.abs(ours.astype(np.float32) - expected.astype(np.float32)).max() <= np.abs(expected).max() * 2**-10


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one run leaves its graphs to the next."""
    return tmp_path_factory.mktemp("graphs")


@pytest.mark.parametrize("clip", ["yongen", "eng"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_hop_and_frame_equals_the_reference(reference: Path, graphs: Path, clip: str, precision: str) -> None:
    pytest.importorskip("torch")
    import parity

    rows, facts = parity.run(reference / "reference", "small", clip, graphs, precision)
    assert [(row.hop, row.maximum, row.bound) for row in rows if not row.passed] == []
    assert (facts["frames"], facts["reference_frames"]) == {"yongen": (200, 199), "eng": (198, 197)}[clip]
    bounds = {row.hop: row.bound for row in rows}
    assert bounds["prompts"] == 1e-4 and bounds["UNet, their inputs"] == 1e-3
    assert all(bounds[f"frames, {name}"] == 2 for name in ("Y", "U", "V", "blended in BGR"))
