"""The training: batches are what serving will bring, runs resume exactly, weights come back as they were stored."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from avatar_prep.prepare import Parameters
from export import demo, demo_vae, verify
from export.bundle import read_bundle
from export.modules import FaceEncoder, UNetStep
from export.networks import Networks
from export.pipeline import write_graphs
from export.speech import espeak
from export.speech.augment import other_throat
from export.speech.espeak import Speech
from export.training import corpus, faces, latents, segments, weights, windows
from export.training.audio import AudioStage, heard
from export.training.corpus import Corpus
from export.training.faces import Faces
from export.training.loop import Plan, Run
from export.training.pixels import lip_weights, picture_loss, psnr, to_rgb
from export.training.unet import People, UNetStage
from export.training.vae import SQUARE, mirrored, pictures
from gateway.features import Padding, Prompts, log_mel
from lipserve import contract
from lipserve.media import Sound

ROOT = Path(__file__).parent.parent
needs_espeak = pytest.mark.skipif(not espeak.is_available(), reason="needs libespeak-ng: apt-get install espeak-ng")


# -- the loop ---------------------------------------------------------------------------------------------------------


class Line:
    """A stage of loop.Stage that fits a line."""

    name, number = "line", 9

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"model": self.model}

    def batch(self, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.standard_normal((16, 3), np.float32))

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        truth = batch @ torch.tensor([[1.0], [-2.0], [0.5]])
        return (self.model(batch) - truth).square().mean(), {}

    def evaluate(self) -> dict[str, float]:
        return {"weight": float(self.model.weight[0, 0])}


PLAN = Plan(steps=40, rate=0.2, warm_up=5, checkpoint_every=10, evaluate_every=20)


def state(run: Run[Tensor]) -> list[Tensor]:
    average = [value for part in run._average.values() for value in part.values()]
    return [*(p.detach().clone() for p in run.stage.modules()["model"].parameters()), *average]


def test_a_resumed_run_ends_with_the_very_same_weights(tmp_path: Path) -> None:
    whole = Run(Line(), PLAN, tmp_path / "whole", seed=1)
    whole.train()
    Run(Line(), PLAN, tmp_path / "parts", seed=1).train(until=17)
    resumed = Run(Line(), PLAN, tmp_path / "parts", seed=1)
    assert resumed.step == 17
    resumed.train()
    assert resumed.is_done
    for one, other in zip(state(whole), state(resumed), strict=True):
        assert torch.equal(one, other)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    class Killed(Line):
        def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
            if step == 25:
                raise KeyboardInterrupt
            return super().loss(batch, step)

    whole = Run(Line(), PLAN, tmp_path / "whole", seed=1)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        Run(Killed(), PLAN, tmp_path / "killed", seed=1).train()
    resumed = Run(Line(), PLAN, tmp_path / "killed", seed=1)
    assert resumed.step == 20
    resumed.train()
    for one, other in zip(state(whole), state(resumed), strict=True):
        assert torch.equal(one, other)


def test_training_learns_and_logs(tmp_path: Path) -> None:
    run = Run(Line(), PLAN, tmp_path, seed=1)
    run.train()
    assert float(run.stage.loss(run.stage.batch(np.random.default_rng(5)), 0)[0].detach()) < 0.5
    assert (tmp_path / "line.jsonl").read_text().count('"weight"') == 2


def test_scores_leave_the_weights_as_they_are(tmp_path: Path) -> None:
    run = Run(Line(), PLAN, tmp_path, seed=1)
    run.train(until=10)
    before = [p.clone() for p in run.stage.modules()["model"].parameters()]
    run.scores()
    assert all(torch.equal(a, b) for a, b in zip(before, run.stage.modules()["model"].parameters(), strict=True))


def test_the_rate_rises_then_falls() -> None:
    factors = [PLAN.factor(step) for step in range(40)]
    assert factors[0] == pytest.approx(0.2) and max(factors) == factors[4] == factors[5]
    assert np.all(np.diff(factors[5:]) <= 0) and factors[-1] < 0.05


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    class Broken(Line):
        def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
            return super().loss(batch, step)[0] * float("nan"), {}

    with pytest.raises(RuntimeError, match="step 0"):
        Run(Broken(), PLAN, tmp_path, seed=1).train()


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pixels_weigh_the_lips() -> None:
    lips = np.array([[60, 140, 190, 220]], np.int16)
    inside = lip_weights(lips)
    assert inside.shape == (1, 1, 256, 256)
    assert inside[0, 0, 180, 120] == 1 and inside[0, 0, 60, 120] == 0
    black = np.zeros((1, 256, 256, 3), np.uint8)
    spot = black.copy()
    spot[0, 170:190, 100:140] = 255
    made, target = to_rgb(spot), to_rgb(black)
    assert picture_loss(made, target, 1 + 5 * inside) > 2 * picture_loss(made, target, torch.ones_like(inside))
    assert psnr(made, target, inside) < psnr(made, target, torch.ones_like(inside))


def test_rgb_is_bgr_reversed_and_scaled() -> None:
    crop = np.zeros((1, 256, 256, 3), np.uint8)
    crop[..., 2] = 255
    assert to_rgb(crop)[0, :, 0, 0].tolist() == [1, -1, -1]


def test_mirroring_twice_is_nothing() -> None:
    rng = np.random.default_rng(0)
    crops, lips = rng.integers(0, 256, (2, 256, 256, 3), np.uint8), np.array([[10, 20, 90, 200]] * 2, np.int16)
    once = mirrored(crops, lips)
    assert once[1].tolist() == [[166, 20, 246, 200]] * 2
    twice = mirrored(*once)
    assert np.array_equal(twice[0], crops) and np.array_equal(twice[1], lips)


# -- windows and the encoder ------------------------------------------------------------------------------------------


def test_a_window_is_the_gateways_window() -> None:
    """Frame i of a waveform, at 25 fps, cut out of the same states."""
    states = np.random.default_rng(0).standard_normal((1500, 5, 384)).astype(np.float32)
    served = Prompts(Sound(np.zeros((1, 30 * 16000), np.float32), 16000), 25, Padding(), lambda _: states)
    for frame in (0, 1, 7, 300, 749):
        part = segments.Placed(0, 0.0, 1.0, Speech(np.zeros(1, np.float32), ()))
        assert np.array_equal(windows.window(states, windows.middle(part, frame)), served.batch(frame, frame + 1)[0])


def test_the_bundled_weights_come_back_out_of_their_graphs() -> None:
    """And are small enough to be bundled."""
    bundle, fresh = read_bundle(ROOT / "models/demo"), demo.build(2)
    assert sum(file.stat().st_size for file in bundle.files.values()) < 25e6
    weights.load(fresh, ROOT / "models/demo")
    assert fresh.weights_id == bundle.weights_id


def with_a_small_unet(seed: int) -> Networks:
    """The demo's networks, with a UNet of one block down and one up: exporting takes its time by the block."""
    networks = demo.build(seed)
    torch.manual_seed(seed)
    networks.unet.change = UNet2DConditionModel(
        in_channels=8,
        out_channels=4,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        cross_attention_dim=contract.AUDIO_WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    return networks


def test_weights_come_back_out_of_the_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "verify", lambda graph, path: [])  # what they compute is another test's
    monkeypatch.setattr(demo_vae, "BLOCKS", (1, 1, 1))
    trained, fresh = with_a_small_unet(1), with_a_small_unet(2)
    weights.round_to_half(trained)
    write_graphs(trained, tmp_path)
    weights.load(fresh, tmp_path)
    assert fresh.weights_id == trained.weights_id
    shutil.copyfile(tmp_path / "vae_decoder.onnx", tmp_path / "vae_encoder.onnx")
    with pytest.raises(weights.WeightsUnfit, match=r"vae.*encoder\."):
        weights.load(fresh, tmp_path)


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three utterances a split, and one person each of very few poses."""
    if not espeak.is_available():
        pytest.skip("needs libespeak-ng: apt-get install espeak-ng")
    face_models = ROOT / "models/faces"
    if not face_models.is_dir():
        pytest.fail("The face models are not there: run `lipserve setup`.")
    folder = tmp_path_factory.mktemp("training")
    for split in corpus.SPLITS:
        assert len(list(corpus.build(folder, split, 3, seed=0))) == 3
        faces._create(folder, split, 1)
        files = Faces.open(folder, split, writable=True)
        portrait = faces.Portrait(faces.identity(split, 30, 0), 256)
        record = faces._render(portrait, faces.Pose(yaw=0.03), Corpus(folder, split), face_models, rng(0))
        assert record is not None
        files.crops[0], files.mouths[0], files.moments[0] = record.crops, record.mouths, record.moments
        files.lips[0], files.done[0] = record.lips, True
    return folder


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@needs_espeak
def test_a_corpus_is_seeded_and_continued(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "speech", tmp_path / "speech")
    (tmp_path / "speech/train/00001.npz").unlink()
    assert list(corpus.build(tmp_path, "train", 3, seed=0)) == [1]
    one, other = Corpus(data, "train").speech(1), Corpus(tmp_path, "train").speech(1)
    assert np.array_equal(one.samples, other.samples) and one.phones == other.phones
    assert one.phones[-1].end == pytest.approx(one.seconds, abs=1e-3)


@needs_espeak
def test_a_segment_has_the_contracts_shapes_and_its_truth_in_place(data: Path) -> None:
    corpus_ = Corpus(data, "train")
    segment = segments.draw(corpus_, rng(1), augment=False)
    assert segment.log_mel.shape == contract.LOG_MEL.shape
    assert segment.samples.size <= contract.SEGMENT_SAMPLES
    assert len(segment.openings) == len(segment.classes) == len(segment.controls) == contract.SEGMENT_STATES
    part = segment.placed[0]
    own = segments.mouth_at(part.speech, np.array([0.8]))[0]
    there = np.array([np.interp(part.start + 0.8, segments.STATE_TIMES, column) for column in segment.controls.T])
    assert np.abs(own - there).max() < 0.25
    first = round(part.start * contract.SAMPLE_RATE)
    assert np.array_equal(segment.samples[first : first + 8000], part.speech.samples[:8000])


@needs_espeak
def test_segments_are_seeded_and_as_the_gateway_hears_them(data: Path) -> None:
    corpus_ = Corpus(data, "train")
    throats = set()
    for seed in range(4):
        one, two = (segments.draw(corpus_, rng(seed)) for _ in range(2))
        assert np.array_equal(one.samples, two.samples) and np.array_equal(one.controls, two.controls)
        own = log_mel(one.samples)
        assert np.array_equal(one.log_mel, own if one.throat == 1 else other_throat(own, one.throat))
        throats.add(one.throat == 1)
    assert throats == {True, False}


@needs_espeak
def test_every_utterance_is_packed_once(data: Path) -> None:
    rest, seen = [0, 1, 2] * 4, []
    while rest:
        segment, rest = segments.packed(Corpus(data, "val"), rest, rng(3), augment=True)
        seen += [part.utterance for part in segment.placed]
        assert segment.samples.size <= contract.SEGMENT_SAMPLES
    assert seen == [0, 1, 2] * 4


@needs_espeak
def test_faces_are_cut_as_the_preparation_cuts_them(data: Path) -> None:
    """Without jitter and compression the crop is that of avatar_prep; with them it is close."""
    portrait = faces.Portrait(faces.identity("val", 3, 0), 512)
    picture = portrait.render()
    finder = faces._finder(ROOT / "models/faces")
    found = finder.detect(picture)[0]
    mesh = finder.mesh(picture, found)
    assert mesh is not None
    x1, y1, x2, y2 = box = Parameters().box(mesh, found, (512, 512))
    reference = cv2.resize(picture[y1:y2, x1:x2], (256, 256), interpolation=cv2.INTER_LANCZOS4)
    assert np.array_equal(faces.cut(picture, box), reference)
    moved = np.array([faces.jittered(box, 512, rng(seed)) for seed in range(200)])
    assert np.abs(moved.mean(axis=0) - box).max() < 1.5
    assert 1 < moved.std(axis=0).mean() < 5


@needs_espeak
def test_lips_lie_in_their_rectangle(data: Path) -> None:
    """All that differs between two spoken faces, but for the jaw, is in it."""
    files = Faces.open(data, "train")
    x1, y1, x2, y2 = files.lips[0].tolist()
    openings = files.mouths[0, :, 1]
    wide, narrow = (files.crops[0, 1 + int(k)].astype(int) for k in (openings.argmax(), openings.argmin()))
    change = np.abs(wide - narrow).sum(axis=2)
    assert (x2 - x1) > 60 and 128 < (y1 + y2) / 2 < 230
    assert change[y1:y2, x1:x2].mean() > 10
    assert change[:110].mean() < 0.2


@needs_espeak
def test_vae_batches_look_at_mouths(data: Path) -> None:
    files = Faces.open(data, "train")
    batches = [pictures(files, 3, rng(seed)) for seed in range(40)]
    held = []
    for batch in batches:
        held.append(int(batch.lips[0, 3]) - batch.top <= SQUARE + 4)  # the lower lip is in it
        assert batch.crops.shape == (3, *contract.CROPS.shape) and batch.noise.shape == (3, 4, SQUARE // 8, SQUARE // 8)
        assert batch.left % 8 == batch.top % 8 == 0 and min(batch.left, batch.top) >= 0
        assert batch.square(torch.zeros(3, 1, 256, 256)).shape == (3, 1, SQUARE, SQUARE)
    assert np.mean(held) > 0.5
    whole = pictures(files, 3, rng(0), evaluation=True)
    assert whole.square(torch.zeros(3, 1, 256, 256)).shape == (3, 1, 256, 256)


@pytest.fixture(scope="module")
def worked_out(data: Path) -> Path:
    """The data with windows of noise and the untrained encoder's latents."""
    shape = (1, faces.SPOKEN, windows.RECORDINGS, *contract.AUDIO_FEATURES.shape)
    for split in corpus.SPLITS:
        np.save(data / "faces" / split / "windows.npy", rng(0).standard_normal(shape).astype(np.float16))
        np.save(data / "faces" / split / "silence.npy", np.zeros((2, *contract.AUDIO_FEATURES.shape), np.float16))
        assert list(latents.build(data, split, demo.build(0).vae)) == [(1, 1)]
        assert list(latents.build(data, split, demo.build(0).vae)) == []
    return data


@needs_espeak
def test_unet_batches_have_the_shapes_of_the_contract(worked_out: Path) -> None:
    people = People(worked_out, "train")
    batch = people.speaking(3, rng(0))
    assert batch.seen.shape == (3, *contract.FACE_LATENTS.shape) and batch.wanted.shape == (3, *contract.LATENTS.shape)
    assert batch.windows.shape == (3, *contract.AUDIO_FEATURES.shape) and batch.windows.dtype == np.float16
    assert batch.target.shape == batch.idle.shape == (3, *contract.CROPS.shape)
    assert all(np.array_equal(a, b) for a, b in zip(batch, people.speaking(3, rng(0)), strict=True))


@needs_espeak
def test_the_unet_is_trained_on_what_it_is_served(worked_out: Path) -> None:
    """The stage's own flow gives the exported modules' latents."""
    networks = demo.build(0)
    stage = UNetStage(networks.unet, networks.vae, worked_out, 2, 4)
    batch = People(worked_out, "val").speaking(2, rng(4), evaluation=True)
    with torch.inference_mode():
        trained = stage._speak(batch).cpu()
        both = FaceEncoder(networks.vae.cpu())(torch.from_numpy(batch.idle))
        served = UNetStep(networks.unet.cpu())(torch.from_numpy(batch.windows), both).float()
    assert torch.allclose(trained, served, atol=0.02 * float(served.abs().max()))


@needs_espeak
def test_the_unet_learns_from_latents_then_from_pictures(worked_out: Path) -> None:
    networks = demo.build(0)
    stage = UNetStage(networks.unet, networks.vae, worked_out, 2, 10)
    for step, sees in ((0, False), (7, False), (8, True), (9, True)):
        loss, numbers = stage.loss(stage.batch(rng(step)), step)
        assert ("pixels" in numbers) is sees and np.isfinite(list(numbers.values())).all()
        loss.backward()
        grad = networks.vae.decoder.last.weight.grad
        assert (grad is not None and bool(grad.abs().max() > 0)) is sees
    with torch.inference_mode():
        assert {"psnr_lips", "psnr_idle", "dark_correlation"} <= stage.evaluate().keys()


@needs_espeak
def test_the_audio_stage_teaches_heads_and_encoder(data: Path) -> None:
    networks = demo.build(0)
    stage = AudioStage(networks.audio_encoder, data, 1)
    torch.nn.init.normal_(stage.heads.weight, std=0.01)
    batch = heard([segments.draw(Corpus(data, "train"), rng(0))])
    loss, numbers = stage.loss(batch, 0)
    loss.backward()
    assert np.isfinite(list(numbers.values())).all()
    for parameter in (networks.audio_encoder.conv1.weight, stage.heads.weight):
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
