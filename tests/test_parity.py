"""The whole way against an independent computation of the same, of MuseTalk v1.5 and v1: benchmarks/parity.py."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

import parity
from exports import remembered
from parity_reference import npz, write_reference

from lipserve.embedded import EmbeddedTriton

SOUND = ["16 kHz waveform", "log-mel", "hidden states", "prompts"]
NETWORKS = ["UNet, their inputs", "decoder, their latents"]
SENT = ["context sent", "face latents sent"]
MADE = ["latents from Triton", "faces from Triton"]
FRAMES = ["frames, Y", "frames, U", "frames, V", "frames, blended in BGR"]


@pytest.fixture(scope="module", autouse=True)
def each_graph_once() -> Iterator[None]:
    with remembered():
        yield


class Kept(EmbeddedTriton):
    """Runs on after its block, for a next one that would serve the same files; ended by `end`."""

    running: ClassVar[dict[str, EmbeddedTriton]] = {}

    def __init__(self, repository: Path, models_dir: Path, run_dir: Path) -> None:
        files = sorted(file for file in repository.rglob("*") if file.is_file())
        contents = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
        self.key = hashlib.sha256(contents).hexdigest()
        self.places = repository, models_dir, run_dir

    def __enter__(self) -> EmbeddedTriton:
        if self.key not in self.running:
            self.running[self.key] = EmbeddedTriton(*self.places).__enter__()
        return self.running[self.key]

    def __exit__(self, *_: object) -> None: ...

    @classmethod
    def end(cls) -> None:
        with ThreadPoolExecutor() as at_once:
            list(at_once.map(lambda server: server.stop(), cls.running.values()))
        cls.running.clear()


@pytest.fixture(scope="module", autouse=True)
def each_server_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "EmbeddedTriton", Kept)
        yield
        Kept.end()


@pytest.fixture(scope="module")
def v15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference folder."""
    return write_reference(tmp_path_factory.mktemp("v15"), "v15")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one run of v1.5 leaves its graphs to the next."""
    return tmp_path_factory.mktemp("graphs")


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    """Exit code and result of the benchmark's command."""
    with pytest.raises(SystemExit) as ended:
        parity.main([str(word) for word in words])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("RESULT ")
    return int(ended.value.code or 0), json.loads(last.removeprefix("RESULT "))


def require_telling(reference: Path) -> None:
    """Flat faces would be equal whatever one does."""
    inner = np.load(reference / "lisa/words.internals.npz")
    assert inner["decoded"].std() > 20
    assert np.abs(np.diff(inner["decoded"].astype(int), axis=0)).mean() > 1  # each frame its own
    assert np.abs(inner["unet_out"]).mean() > 0.1


def test_v15_from_sound_to_frames(v15: Path, graphs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_telling(v15)
    code, result = command(capsys, "--reference", v15, "--case", "lisa", "--clip", "words", "--folder", graphs)
    hops = result["hops"]
    assert (code, result["passed"], result["profile"]) == (0, True, "musetalk-v15")
    assert (result["frames"], result["reference_frames"]) == (16, 15)  # theirs lose the last
    assert [name for name, hop in hops.items() if hop["bound"] is not None] == SOUND + NETWORKS + SENT + MADE + FRAMES
    assert all(hops[name]["maximum"] <= 1e-4 for name in SOUND)
    assert hops["UNet, their inputs"]["maximum"] <= 1e-3
    assert all(hops[name]["maximum"] <= 2 and hops[name]["compared"] == 15 for name in FRAMES)


def test_v1_from_sound_to_frames(tmp_path: Path) -> None:
    reference = write_reference(tmp_path / "v1", "v1")
    require_telling(reference)
    rows, facts = parity.run(reference, "lisa", "words", tmp_path / "scratch")
    assert [(row.hop, row.maximum, row.bound) for row in rows if not row.passed] == []
    assert (facts["profile"], facts["frames"]) == ("musetalk-v1", 16)


def test_what_differs_is_found_where_it_differs(
    v15: Path, graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = shutil.copytree(v15, tmp_path / "changed")
    file = changed / "lisa/words.internals.npz"
    inner = dict(np.load(file))
    inner["unet_out"][1, 2, 3, 4] += 0.01
    file.write_bytes(npz(inner))
    for number in (3, 8):  # a frame on its way forward and back
        picture = changed / f"lisa/mask/{number:08d}.png"
        cv2.imwrite(str(picture), cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE) // 2)
    code, result = command(capsys, "--reference", changed, "--case", "lisa", "--clip", "words", "--folder", graphs)
    broken = {name for name, hop in result["hops"].items() if hop["bound"] and hop["maximum"] > hop["bound"]}
    assert (code, result["passed"]) == (1, False)
    assert broken - {"frames, U", "frames, V", "decoder, their latents"} == {
        "UNet, their inputs",
        "latents from Triton",
        "frames, Y",
        "frames, blended in BGR",
    }


def test_a_reference_that_is_not_whole_is_refused(v15: Path, tmp_path: Path) -> None:
    with pytest.raises(parity.ReferenceUnfit, match=r"index\.json is not there"):
        parity.run(v15, "nobody", "words", tmp_path)
    changed = shutil.copytree(v15, tmp_path / "changed")
    (changed / "data/audio/words.wav").unlink()
    with pytest.raises(SystemExit, match=r"words\.wav is not there"):
        parity.main(["--reference", str(changed), "--case", "lisa", "--clip", "words"])


def test_frames_that_are_not_those_written_are_refused(v15: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(v15, tmp_path / "changed")
    index = json.loads((changed / "lisa/index.json").read_text())
    index["clips"]["words"]["frame_sha256_of_BGR_bytes"][5] = "0"
    (changed / "lisa/index.json").write_text(json.dumps(index))
    case = parity.Case(changed, "lisa", "words")
    with pytest.raises(parity.ReferenceUnfit, match="frame 5 of words"):
        list(case.written(case.pictures()))
    case.index["full_imgs_sha256_of_BGR_bytes"][0] = "0"
    with pytest.raises(parity.ReferenceUnfit, match=r"decodes lisa\.mkv to other pixels"):
        case.pictures()


def test_not_a_number_breaks_every_bound() -> None:
    ours = np.array([[1.0, np.nan], [1.0, 1.0]])
    errors = parity.Errors()
    for row in ours:
        errors.add(row, np.ones(2))
    assert not errors.row("x", 1e9).passed
    with pytest.raises(parity.ReferenceUnfit, match="shape"):
        parity.compare("x", ours, np.ones((1, 2)), 1.0)
