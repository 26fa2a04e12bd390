"""The decoder that draws only the rows that blending uses: its arithmetic, its gate, and through Triton to a video."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from exports import remembered
from fastapi.testclient import TestClient
from samples import short_clip, tone, write_sound
from test_avatar import fill

from export import lower, musetalk, pipeline, samples, verify
from export.bundle import is_exported, read_bundle
from export.errors import GraphUnfit, LowerDecoderOff
from export.gate import Reference
from export.lower import LowerDecoder, NormSums, Stage, stages
from export.modules import FaceDecoder
from export.networks import Networks
from export.profiles import FP16, FP32, LOWER, SD_VAE
from export.repository import write_repository
from gateway.app import create_app
from lipserve import contract
from lipserve.avatar import REGION, Avatar
from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings

PROFILE = "musetalk-v15"
ROW = contract.LOWER_FROM_ROW
LATENTS = (4, 32, 32)
OF_RANDOM_WEIGHTS = 25.0  # dB: what is random in the upper rows reaches the lower ones more than what is learned


@pytest.fixture(scope="module", autouse=True)
def each_graph_once() -> Iterator[None]:
    with remembered(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "gate_batches", lambda model: (1, 4))  # all of them are others' tests
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    musetalk.write_random_weights(folder, 0, "narrow", PROFILE)
    return folder


@pytest.fixture(scope="module")
def networks(weights: Path) -> Networks:
    return musetalk.load(weights, PROFILE, LOWER)


def latents(seed: int, n: int = 1) -> torch.Tensor:
    return torch.randn(n, *LATENTS, generator=torch.Generator().manual_seed(seed)).half()


# -- rows -------------------------------------------------------------------------------------------------------------


def test_each_convolution_takes_one_row() -> None:
    # 256: row 104 needs 103 of the last convolution; 96 is the even row from which seven convolutions leave 103 right.
    assert stages(104, 3) == (Stage(64, 12, 20), Stage(128, 40, 48), Stage(256, 96, 103))
    assert stages(1, 3) == (Stage(64, 0, 0), Stage(128, 0, 0), Stage(256, 0, 0))
    assert stages(104, 2) == (Stage(64, 16, 22), Stage(128, 44, 49), Stage(256, 98, 103))


def test_of_the_same_latents_the_lower_rows_are_the_whole_decoders(networks: Networks) -> None:
    with torch.inference_mode():
        made = latents(1, 2)
        drawn = LowerDecoder(networks.vae)(made, NormSums(networks.vae)(made)).int()
        whole = FaceDecoder(networks.vae)(made).int()
    assert float(whole[:, ROW:].float().std()) > 20
    off = (drawn - whole)[:, ROW:].abs()
    assert int(off.max()) <= 1
    assert float(off.float().mean()) < 0.001
    assert int(drawn[:, :ROW].max()) == 0


def test_the_sums_are_of_the_rows_above(networks: Networks) -> None:
    vae = networks.vae
    seen: list[torch.Tensor] = []
    norms = [
        norm for block in vae.decoder.up_blocks[1:] for resnet in block.resnets for norm in (resnet.norm1, resnet.norm2)
    ]
    norms.append(vae.decoder.conv_norm_out)
    handles = [norm.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for norm in norms]
    with torch.inference_mode():
        FaceDecoder(vae)(latents(2))
        sums = NormSums(vae)(latents(2))[0]
    for handle in handles:
        handle.remove()
    assert sums.shape == contract.NORM_SUMS.shape
    firsts = [20] * 6 + [48] * 6 + [103] * 7
    for values, first, found in zip(seen, firsts, sums, strict=True):
        groups = values[0].double().reshape(32, -1, *values.shape[2:])
        upper = groups[:, :, :first].flatten(1)
        elements = groups[0].numel()
        assert torch.allclose(found[:, 0].double(), upper.sum(1) / elements, atol=1e-5)
        assert torch.allclose(found[:, 1].double(), upper.square().sum(1) / elements, atol=1e-5)


def test_sums_are_held_by_their_size() -> None:
    wanted = np.full((1, *contract.NORM_SUMS.shape), 1e4, np.float32)
    check = verify.compare("reference_sums", contract.NORM_SUMS, wanted, wanted + 5)
    assert (check.bound, check.passed) == (10.0, True)
    assert not verify.compare("reference_sums", contract.NORM_SUMS, wanted, wanted + 11).passed
    assert verify.compare("reference_sums", contract.NORM_SUMS, wanted / 1e6, wanted / 1e6).bound == 0.001


def test_a_vae_with_other_norms_is_refused(tmp_path: Path) -> None:
    musetalk.write_random_weights(tmp_path, 0, "small", PROFILE)
    with pytest.raises(GraphUnfit, match=r"norms of \(13, 4, 2\) from 64×64 up; \(19, 32, 2\) are served"):
        LowerDecoder(musetalk.load(tmp_path, PROFILE).vae)


def test_a_decoder_that_draws_otherwise_is_refused(networks: Networks) -> None:
    shut, spoken = samples.spoken()
    shut, spoken = shut[-1:], spoken[-1:]  # the one whose mouth is open widest
    assert lower.hold_to_whole(networks.vae, shut, shut) > 60
    with pytest.raises(LowerDecoderOff, match=r"are \d\d\.\d dB from .* 45 are asked for: .* use --decoder sd-vae"):
        lower.hold_to_whole(networks.vae, shut, spoken)


# -- which rows an avatar shows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "height", "row"),
    [
        (0, 256, 0),
        (104, 256, 104),
        (52, 128, 104),  # pixel 52 is between the face's rows 104 and 105
        (208, 512, 103),  # and here pixel 208 between 103 and 104
        (41, 100, 105),
    ],
)
def test_the_first_row_that_an_avatar_shows(top: int, height: int, row: int) -> None:
    avatar = Avatar.__new__(Avatar)
    avatar.regions = np.zeros(2, REGION)
    avatar.regions[0]["has_face"] = True
    avatar.regions[0]["face"] = (10, 20, 110, 20 + height)
    avatar.regions[0]["region"] = (10, 20 + top, 110, 20 + height)
    assert avatar.first_face_row == row


# -- the sums of a stored avatar ---------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Avatar:
    """An avatar of four frames, without sums."""
    folder = tmp_path / "avatars/two"
    folder.mkdir(parents=True)
    fill(folder)
    return Avatar(folder)


def some_sums(n: int) -> np.ndarray:
    return np.random.default_rng(0).random((n, *contract.NORM_SUMS.shape), np.float32)


def test_sums_are_kept_beside_the_latents_and_read_frame_by_frame(stored: Avatar, tmp_path: Path) -> None:
    sums, out = some_sums(stored.info.frames), np.empty((3, *contract.NORM_SUMS.shape), np.float32)
    assert not stored.has_norm_sums
    with pytest.raises(RuntimeError, match="no norm sums"):
        stored.read_norm_sums([0], out[:1])
    folder = tmp_path / "avatars/two"
    (folder / ".norm_sums.npy.of-a-killed-process").touch()
    stored.keep_norm_sums(sums)
    assert {path.name for path in folder.iterdir() if "norm" in path.name} == {"norm_sums.npy"}
    for avatar in (stored, Avatar(folder)):
        avatar.read_norm_sums([3, 0, 3], out)
        assert np.array_equal(out, sums[[3, 0, 3]])


def test_sums_of_an_avatar_that_was_deleted_meanwhile_stay_in_memory(stored: Avatar, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "avatars/two")
    sums, out = some_sums(stored.info.frames), np.empty((2, *contract.NORM_SUMS.shape), np.float32)
    stored.keep_norm_sums(sums)
    stored.read_norm_sums([1, 0], out)
    assert np.array_equal(out, sums[[1, 0]])
    assert not (tmp_path / "avatars/two").exists()


def test_an_avatar_that_takes_the_place_gets_no_others_sums(stored: Avatar, tmp_path: Path) -> None:
    folder = tmp_path / "avatars/two"
    folder.rename(tmp_path / "replaced")
    folder.mkdir()
    fill(folder)
    stored.keep_norm_sums(some_sums(stored.info.frames))
    assert stored.has_norm_sums and not Avatar(folder).has_norm_sums
    assert (tmp_path / "replaced/norm_sums.npy").is_file()


# -- through Triton ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model repository of the whole decoder, in float32."""
    pipeline.write_graphs(musetalk.load(weights, PROFILE, SD_VAE), weights / PROFILE)
    root = tmp_path_factory.mktemp("whole")
    pipeline.publish(weights, PROFILE, "cpu", root)
    return root / "cpu"


@pytest.fixture(scope="module")
def halved(weights: Path) -> list[pipeline.Written]:
    """The graphs of the lower rows' decoder, in FP16."""
    networks = musetalk.load(weights, PROFILE, LOWER)
    return pipeline.write_graphs(networks, weights / PROFILE, precision=FP16, psnr=OF_RANDOM_WEIGHTS)


@pytest.fixture(scope="module")
def lowered(weights: Path, halved: list[pipeline.Written], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their model repository."""
    bundle = read_bundle(weights / PROFILE, FP16)
    return write_repository(tmp_path_factory.mktemp("lower"), "cpu", bundle.files, bundle.weights_id)


@contextmanager
def service(
    repository: Path, weights: Path, models: Path, root: Path, lazy: bool = False
) -> Iterator[tuple[TestClient, Settings]]:
    settings = Settings(
        lazy_load=lazy,
        avatars_dir=root / "avatars",
        work_dir=root / "work",
        storage_dir=root / "storage",
        models_dir=weights,
        model_repository=repository,
        profile=PROFILE,
    )
    with EmbeddedTriton(repository, models, root / "run", explicit=lazy) as triton:
        app = create_app(settings, triton.grpc_url)
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client, settings


def frames(video: bytes, file: Path) -> np.ndarray:
    """uint8 (n, h, w), the luma."""
    file.write_bytes(video)
    with av.open(file) as opened:
        return np.stack([frame.to_ndarray(format="gray") for frame in opened.decode(video=0)])


def said(client: TestClient, sound: Path, file: Path) -> np.ndarray:
    response = client.post("/lip_sync", data={"avatar_id": "lisa"}, files={"audio": sound.open("rb")})
    assert response.status_code == 200, response.text
    return frames(response.content, file)


def test_the_same_video_from_either_decoder(
    weights: Path, whole: Path, lowered: Path, face_models: Path, tmp_path: Path
) -> None:
    (weights / "faces").exists() or (weights / "faces").symlink_to(face_models)
    clip, sound = short_clip(tmp_path / "clip.mp4", frames=6), tmp_path / "tone.wav"
    write_sound(sound, tone(0.5), 16_000)
    models = face_models.parent
    with service(whole, weights, models, tmp_path) as (client, settings):
        prepared = client.post("/prepare_avatar", data={"avatar_id": "lisa"}, files={"video": clip.open("rb")})
        assert prepared.status_code == 201, prepared.text
        kept = settings.avatars_dir / "lisa/norm_sums.npy"
        assert not kept.exists()
        all_rows = said(client, sound, tmp_path / "whole.mp4")
    assert is_exported(weights / PROFILE, FP32, SD_VAE) and is_exported(weights / PROFILE, FP16, LOWER)
    assert not is_exported(weights / PROFILE, FP16, SD_VAE)
    with service(lowered, weights, models, tmp_path) as (client, settings):
        drawn = said(client, sound, tmp_path / "lower.mp4")  # the avatar of before, which gets its sums now
        sums = np.load(kept)
        assert (sums.shape, sums.dtype) == ((6, *contract.NORM_SUMS.shape), np.float32)
        assert (sums[:, :, :, 1] > 0).all()
        assert drawn.shape == all_rows.shape == (12, 512, 512)
        error = float(np.square(drawn.astype(float) - all_rows).mean(axis=(1, 2)).max())
        assert 10 * np.log10(255**2 / error) > 40

        kept.write_bytes(kept.read_bytes()[:100])  # half of it: made again, since it is made of the latents
        assert np.array_equal(said(client, sound, tmp_path / "again.mp4"), drawn)
        assert np.array_equal(np.load(kept), sums)

        other = client.post("/prepare_avatar", data={"avatar_id": "new"}, files={"video": clip.open("rb")})
        assert other.status_code == 201, other.text
        assert np.allclose(np.load(settings.avatars_dir / "new/norm_sums.npy"), sums, rtol=1e-4, atol=1e-6)

        shifted = {"avatar_id": "high", "version": "v1", "bbox_shift": "50"}
        refused = client.post("/prepare_avatar", data=shifted, files={"video": clip.open("rb")})
        assert (refused.status_code, refused.json()["kind"]) == (409, "avatar_undrawable")
        assert f"draws them from row {ROW} on" in refused.json()["message"]
        assert not (settings.avatars_dir / "high").exists()

    kept.unlink()  # where models are loaded on demand, so is the one that makes the sums
    with service(lowered, weights, models, tmp_path, lazy=True) as (client, settings):
        assert np.array_equal(said(client, sound, tmp_path / "lazy.mp4"), drawn)
        assert np.array_equal(np.load(kept), sums)


def test_in_fp16_both_graphs_are_held_to_float32(weights: Path, halved: list[pipeline.Written]) -> None:
    checks = {graph.graph: graph.checks for graph in halved}
    assert set(checks) == {"unet", "vae_decoder", "reference_sums", "vae_encoder", "audio_encoder"}
    assert all(check.maximum <= 2 for check in checks["vae_decoder"])
    reference = Reference.load(weights / PROFILE)
    assert reference.norm_sums is not None and reference.norm_sums.shape == (4, *contract.NORM_SUMS.shape)
    assert (reference.faces[:, :ROW] == 0).all() and reference.faces[:, ROW:].std() > 20
