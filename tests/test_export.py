"""The export: numerics of the modules, checks that refuse, files that are there whole, the model Triton runs."""

import json
import math
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from diffusers import AutoencoderKL  # noqa: E402
from exports import remembered  # noqa: E402
from google.protobuf import json_format, text_format  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tritonclient.grpc import model_config_pb2  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from export import demo, halves, onnx_graphs, pipeline, repository, triton_config, verify  # noqa: E402
from export.cli import app  # noqa: E402
from export.demo_unet import HEADS  # noqa: E402
from export.errors import ExportError, ExportRefused, GraphsMissing, GraphUnfit, UnknownTarget  # noqa: E402
from export.modules import FaceDecoder, FaceEncoder, UNetStep, sinusoidal_positions  # noqa: E402
from export.networks import Networks  # noqa: E402
from export.onnx_graphs import Graph  # noqa: E402
from lipserve import contract  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def each_graph_once() -> Iterator[None]:
    with remembered():
        yield


@pytest.fixture(scope="module")
def networks() -> Networks:
    return demo.build(0)


class ProbeVae(torch.nn.Module):
    """Encodes by averaging 8 × 8 pixels, decodes by repeating them; a channel more in the latents, of zeros."""

    config = SimpleNamespace(scaling_factor=0.5)

    def encode(self, pictures: Any) -> Any:
        means = torch.nn.functional.avg_pool2d(pictures, 8)
        latents = torch.cat((means, torch.zeros_like(means[:, :1])), dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents: Any) -> Any:
        return SimpleNamespace(sample=latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3))


def tiny_kl() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=0.18215,
        mid_block_add_attention=False,
    ).eval()


# -- modules ----------------------------------------------------------------------------------------------------------


def test_positions_follow_the_formula() -> None:
    positions = sinusoidal_positions(50, 384)
    assert positions.shape == (50, 384)
    for p, i in ((0, 0), (1, 0), (7, 3), (49, 191)):
        angle = p / 10_000 ** (2 * i / 384)
        assert positions[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert positions[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_unet_step_adds_positions_and_steps_from_timestep_zero(networks: Networks) -> None:
    feeds = verify.inputs(contract.UNET, 2)
    features, face_latents = (torch.from_numpy(feed) for feed in feeds.values())
    with torch.inference_mode():
        prompts = features.float() + sinusoidal_positions(50, 384)
        wanted = networks.unet(face_latents.float(), torch.tensor([0, 0]), prompts).sample
        latents = UNetStep(networks.unet)(features, face_latents)
    assert latents.dtype == torch.float16
    assert torch.equal(latents, wanted.half())


def test_face_encoder_masks_the_lower_half_orders_channels_and_scales() -> None:
    crops = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    crops[..., 0] = 255  # blue: the last of RGB
    crops[..., 1] = 51  # green: 0.2 of full scale
    latents = FaceEncoder(ProbeVae())(crops)
    assert (latents.shape, latents.dtype) == ((1, 8, 32, 32), torch.float16)
    red, green, blue = -0.5, (0.2 * 2 - 1) * 0.5, 0.5  # in [-1, 1], times the scaling factor
    reference = torch.tensor([red, green, blue, 0]).half()[:, None, None].expand(4, 32, 32)
    assert torch.equal(latents[0, 4:], reference)
    assert torch.equal(latents[0, :4, :16], reference[:, :16])  # rows 0..127 of the picture
    assert (latents[0, :3, 16:] == -0.5).all()  # rows 128..255: black


def test_face_encoder_takes_the_mode_of_a_distribution() -> None:
    vae = tiny_kl()
    crops = torch.from_numpy(verify.inputs(contract.VAE_ENCODER, 1)["crops"])
    with torch.inference_mode():
        first, second = (FaceEncoder(vae)(crops) for _ in range(2))
        pictures = crops.permute(0, 3, 1, 2).flip(1).float() / 127.5 - 1
        mean = vae.encode(pictures).latent_dist.mean * 0.18215
    assert torch.equal(first, second)
    assert (first[:, 4:] - mean).abs().max() < 1e-3


def test_face_decoder_undoes_the_scaling_rounds_clamps_and_turns_to_bgr() -> None:
    levels = torch.tensor([0.4, 127.6, 300.0])  # red, green, blue
    decoded = levels / 255 * 2 - 1
    latents = (torch.cat((decoded, torch.zeros(1))) * 0.5)[None, :, None, None].expand(1, 4, 32, 32)
    faces = FaceDecoder(ProbeVae())(latents.half())
    assert (faces.shape, faces.dtype) == ((1, 256, 256, 3), torch.uint8)
    assert faces[0].reshape(-1, 3).unique(dim=0).tolist() == [[255, 128, 0]]


def test_a_decoded_kl_latent_is_the_encoders_scale() -> None:
    vae = tiny_kl()
    latents = torch.randn(1, 4, 32, 32).half()
    with torch.inference_mode():
        faces = FaceDecoder(vae)(latents)
        wanted = (vae.decode(latents.float() / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    assert (faces.flip(-1).permute(0, 3, 1, 2).float() - wanted * 255).abs().max() <= 0.5 + 1e-3


def test_audio_encoder_gives_the_embedding_and_every_layer(networks: Networks) -> None:
    encoder: Any = networks.audio_encoder
    log_mel = torch.from_numpy(verify.inputs(contract.AUDIO_ENCODER, 1)["log_mel"])
    with torch.inference_mode():
        states = encoder(log_mel)
        found = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(log_mel))))
        assert (states.shape, states.dtype) == ((1, 1500, 5, 384), torch.float32)
        for layer in range(5):
            if layer:
                found = encoder.layers[layer - 1](found)
            normed = torch.nn.functional.layer_norm(found.transpose(1, 2), (384,))
            assert torch.allclose(states[:, :, layer], normed, atol=1e-4), layer


def test_audio_encoder_hears_half_a_second_around(networks: Networks) -> None:
    """A sound changes the states near it, and none that are farther than the layers reach."""
    silence = torch.zeros(1, 80, 3000)
    click = silence.clone()
    click[:, :, 1500] = 1
    with torch.inference_mode():
        change = (networks.audio_encoder(click) - networks.audio_encoder(silence)).abs().amax(dim=(0, 2, 3))
    heard = change.nonzero()[:, 0]
    assert 750 - 22 <= heard.min() < 750 < heard.max() <= 750 + 22


# -- the demo profile -------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights(networks: Networks) -> None:
    state = torch.random.get_rng_state()
    assert demo.build(0).weights_id == networks.weights_id != demo.build(1).weights_id
    assert torch.equal(state, torch.random.get_rng_state())
    profile, digits = networks.weights_id.split("-")
    assert (profile, len(digits)) == ("demo", 12)


def test_weights_survive_safetensors_and_one_changed_weight_changes_the_id(tmp_path: Path, networks: Networks) -> None:
    other = demo.build(1)
    for part in ("unet", "vae", "audio_encoder"):
        save_file(getattr(networks, part).state_dict(), tmp_path / f"{part}.safetensors")
        getattr(other, part).load_state_dict(load_file(tmp_path / f"{part}.safetensors"))
    assert other.weights_id == networks.weights_id
    other.vae.decoder.last.bias.data[0] += 1e-3
    assert other.weights_id != networks.weights_id


def test_untrained_pictures_are_visible_noise(networks: Networks) -> None:
    feeds = (torch.from_numpy(feed) for feed in verify.inputs(contract.UNET, 2).values())
    with torch.inference_mode():
        latents = UNetStep(networks.unet)(*feeds)
        faces = FaceDecoder(networks.vae)(latents).float()
        again = FaceEncoder(networks.vae)(faces.to(torch.uint8))
    assert latents.isfinite().all() and again.isfinite().all()
    assert 64 < faces.mean() < 192
    assert faces.std() > 10
    assert again.abs().max() < 100


def test_an_untrained_unet_repeats_the_reference(networks: Networks) -> None:
    features, face_latents = (torch.from_numpy(feed) for feed in verify.inputs(contract.UNET, 2).values())
    with torch.inference_mode():
        latents = UNetStep(networks.unet)(features, face_latents)
    reference = face_latents[:, contract.LATENT_CHANNELS :]
    change = (latents - reference).float().abs()
    assert 0 < change.mean() < 0.1


def test_the_unet_has_as_many_attention_heads_as_it_says(networks: Networks) -> None:
    heads = {module.heads for module in networks.unet.modules() if hasattr(module, "heads")}
    assert heads == {HEADS}


# -- small files ------------------------------------------------------------------------------------------------------


class Product(torch.nn.Module):
    """A weight that FP16 can say, and one that it cannot."""

    def __init__(self) -> None:
        super().__init__()
        exact = torch.arange(64.0).reshape(8, 8) / 8
        self.exact, self.other = torch.nn.Parameter(exact), torch.nn.Parameter(exact + 1e-4)

    def forward(self, x: Any) -> Any:
        return x @ self.exact @ self.other


def test_only_what_half_precision_says_exactly_is_stored_so(tmp_path: Path) -> None:
    path, x = tmp_path / "product.onnx", torch.randn(3, 8)
    program = torch.onnx.export(Product(), (x,), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    program.save(path, external_data=False)
    before, (wanted,) = path.stat().st_size, run_graph(path, x)
    halves.make_small(path)
    types = {constant.name: constant.data_type for constant in onnx.load(path).graph.initializer}
    assert types == {"exact/half": onnx.TensorProto.FLOAT16, "other": onnx.TensorProto.FLOAT}
    assert path.stat().st_size < before
    assert np.array_equal(run_graph(path, x)[0], wanted)
    stored = halves.stored_weights(path)
    assert {name: value.dtype for name, value in stored.items()} == {"exact": np.float32, "other": np.float32}
    assert np.array_equal(stored["exact"], Product().exact.detach().numpy())


def run_graph(path: Path, x: Any) -> Any:
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


# -- checks -----------------------------------------------------------------------------------------------------------


def test_verify_passes_the_graph_and_refuses_it_for_other_weights(tmp_path: Path, networks: Networks) -> None:
    path = tmp_path / "decoder.onnx"
    graph = Graph(contract.VAE_DECODER, FaceDecoder(networks.vae))
    onnx_graphs.write_graph(graph, path, networks.weights_id)
    checks = verify.verify(graph, path)
    assert [check.batch for check in checks] == [1, 4, 5, 8, 16]
    assert all(check.passed for check in checks)
    other = demo.build(0)
    other.vae.decoder.last.bias.data += 0.1
    with pytest.raises(ExportRefused, match=r"'vae_decoder' refused at batch 1, frame 0: .*over 1$") as refusal:
        verify.verify(Graph(contract.VAE_DECODER, FaceDecoder(other.vae)), path)
    assert 2 <= refusal.value.error <= 255


def test_what_is_not_a_number_never_passes() -> None:
    wanted = np.zeros((1, *contract.LATENTS.shape), np.float16)
    assert verify.compare("unet", contract.LATENTS, wanted, wanted).passed
    assert not verify.compare("unet", contract.LATENTS, wanted, np.full_like(wanted, np.nan)).passed
    with pytest.raises(GraphUnfit, match=r"answer of 'unet' is float32 \(1, 4, 32, 32\) instead of float16 \(1, 4"):
        verify.compare("unet", contract.LATENTS, wanted, wanted.astype(np.float32))


def test_bounds_are_of_the_dtype() -> None:
    four = np.full((1, *contract.LATENTS.shape), 4.0)
    half = verify.compare("unet", contract.LATENTS, four.astype(np.float16), four.astype(np.float16))
    single = verify.compare("audio_encoder", contract.HIDDEN_STATES, four.astype(np.float32), four.astype(np.float32))
    levels = verify.compare("vae_decoder", contract.FACES, four.astype(np.uint8), four.astype(np.uint8))
    assert (half.bound, single.bound, levels.bound) == (pytest.approx(1e-3 + 4 / 1024), 1e-3, 1)


# -- the pipeline -----------------------------------------------------------------------------------------------------


class StandInUNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 4, 1)

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
        return SimpleNamespace(sample=self.conv(sample) + encoder_hidden_states.mean((1, 2))[:, None, None, None])


class StandInVae(torch.nn.Module):
    """Squares of 8 × 8 pixels to latents and back, by one convolution each."""

    config = SimpleNamespace(scaling_factor=0.18215)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Conv2d(3, 4, 8, stride=8)
        self.decoder = torch.nn.ConvTranspose2d(4, 3, 8, stride=8)

    def encode(self, pictures: Any) -> Any:
        latents = self.encoder(pictures)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents: Any) -> Any:
        return SimpleNamespace(sample=self.decoder(latents))


class StandInAudioEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(80, 384, 3, stride=2, padding=1)

    def forward(self, log_mel: Any) -> Any:
        embedding = self.conv(log_mel).transpose(1, 2)
        return torch.stack([embedding * layer for layer in range(5)], dim=2)


def stand_in_networks() -> Networks:
    """The contract's shapes at the least cost, for the time that an export takes."""
    torch.manual_seed(0)
    networks: Any = ("stand-in", StandInUNet(), StandInVae(), StandInAudioEncoder())
    return Networks(*networks)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[Networks, Path, list[str]]:
    """Networks, the folder of models with their graphs in stand-in/, and what was said meanwhile."""
    networks, said, models = stand_in_networks(), [], tmp_path_factory.mktemp("models")
    written = pipeline.write_graphs(networks, models / networks.profile, said.append)
    assert [graph.graph for graph in written] == NAMES
    for graph in written:
        assert graph.path == models / "stand-in" / f"{graph.graph}.onnx"
        assert graph.path.stat().st_size == graph.size
        session = onnxruntime.InferenceSession(graph.path)
        assert session.get_modelmeta().custom_metadata_map[contract.WEIGHTS_ID] == networks.weights_id
        assert {tensor.shape[0] for tensor in (*session.get_inputs(), *session.get_outputs())} == {"n"}
    return networks, models, said


NAMES = ["unet", "vae_decoder", "vae_encoder", "audio_encoder"]


def test_the_export_says_what_it_does(stand_in: tuple[Networks, Path, list[str]]) -> None:
    assert stand_in[2] == [f"{verb} {name}" for name in NAMES for verb in ("exporting", "checking")]


def test_graphs_are_published_as_a_repository(stand_in: tuple[Networks, Path, list[str]], tmp_path: Path) -> None:
    networks, models, _ = stand_in
    bundle = pipeline.publish(models, "stand-in", "cpu", tmp_path)
    assert bundle.weights_id == networks.weights_id
    assert networks.weights_id in (tmp_path / "cpu/lipsync/config.pbtxt").read_text()
    for name in NAMES[:3]:
        served = tmp_path / "cpu" / name / "1/model.onnx"
        assert served.read_bytes() == (models / "stand-in" / f"{name}.onnx").read_bytes()


def test_graphs_that_do_not_fit_are_not_published(stand_in: tuple[Networks, Path, list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "models/stand-in"
    shutil.copytree(stand_in[1] / "stand-in", folder)

    def refused(match: str, error: type[ExportError] = GraphUnfit) -> None:
        with pytest.raises(error, match=match):
            pipeline.publish(tmp_path / "models", "stand-in", "cpu", tmp_path / "repository")
        assert not (tmp_path / "repository").exists()

    decoder, encoder = folder / "vae_decoder.onnx", folder / "vae_encoder.onnx"
    kept = decoder.read_bytes()
    decoder.unlink()
    refused(r"lacks vae_decoder\.onnx", GraphsMissing)
    decoder.write_bytes(encoder.read_bytes())
    refused(r"vae_decoder\.onnx has the inputs .*crops.*contract asks for .*latents")
    decoder.write_bytes(kept[: len(kept) // 2])
    refused("cannot be opened")
    model = onnx.load_from_string(kept)
    model.metadata_props[0].value = "stand-in-of-yesterday"
    onnx.save(model, decoder)
    refused("of different weights")
    del model.metadata_props[:]
    onnx.save(model, decoder)
    refused("does not say whose weights")


def test_a_refused_graph_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: Networks) -> None:
    decoder = Graph(contract.VAE_DECODER, FaceDecoder(networks.vae))
    monkeypatch.setattr("export.onnx_graphs.graphs", lambda networks: (decoder,))
    monkeypatch.setattr("export.verify.LEVEL_BOUND", -1.0)
    with pytest.raises(ExportRefused):
        pipeline.write_graphs(networks, tmp_path / "models")
    assert list(tmp_path.iterdir()) == []


# -- the repository ---------------------------------------------------------------------------------------------------


@pytest.fixture
def graphs(tmp_path: Path) -> dict[str, Path]:
    files = {model.name: tmp_path / f"{model.name}.onnx" for model in repository.SERVED}
    for name, path in files.items():
        path.write_text(name)
    return files


def test_a_repository_replaces_the_one_before(tmp_path: Path, graphs: dict[str, Path]) -> None:
    root = tmp_path / "model_repository"
    (root / "cpu/stale").mkdir(parents=True)
    folder = repository.write_repository(root, "cpu", graphs, "demo-0")
    assert [path.name for path in root.iterdir()] == ["cpu"]
    assert {path.name for path in folder.iterdir()} == {model.name for model in contract.MODELS}
    assert (folder / "unet/1/model.onnx").read_text() == "unet"
    assert (folder / "unet/1/model.py").read_text() == Path(repository.BACKEND_MODEL).read_text()


def test_a_repository_that_fails_half_way_leaves_the_one_before(tmp_path: Path, graphs: dict[str, Path]) -> None:
    root = tmp_path / "model_repository"
    repository.write_repository(root, "cpu", graphs, "demo-0")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    graphs["vae_encoder"].unlink()
    with pytest.raises(FileNotFoundError):
        repository.write_repository(root, "cpu", graphs, "demo-1")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert [path.name for path in root.iterdir()] == ["cpu"]


def test_an_unknown_target_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownTarget, match=r"'gpu'; targets that exist: cpu"):
        repository.write_repository(tmp_path / "new", "gpu", {}, "demo-0")
    assert not (tmp_path / "new").exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    repository.replace_file(tmp_path / "new", tmp_path / "deep/file")
    with pytest.raises(FileNotFoundError):
        repository.replace_file(tmp_path / "none", tmp_path / "deep/file")
    assert [(path.name, path.read_text()) for path in (tmp_path / "deep").iterdir()] == [("file", "new")]


def test_configurations_are_rendered_in_a_stable_layout() -> None:
    text = triton_config.render(
        {
            "name": 'a "b"',
            "input": [{"data_type": triton_config.Word("TYPE_FP16"), "dims": [1, 2]}, {"optional": True}],
        }
    )
    assert (
        text == 'name: "a \\"b\\""\ninput {\n  data_type: TYPE_FP16\n  dims: [1, 2]\n}\ninput {\n  optional: true\n}\n'
    )


# -- the model that Triton runs ---------------------------------------------------------------------------------------


class Consumed:
    """A DLPack capsule as an object that NumPy can read."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


@pytest.fixture
def backend(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Python backend's model of the decoder, with a stand-in for the module that Triton provides."""
    fake: Any = ModuleType("triton_python_backend_utils")
    fake.get_input_tensor_by_name = lambda request, name: request.get(name)
    fake.triton_string_to_numpy = {"TYPE_FP16": np.float16, "TYPE_UINT8": np.uint8}.__getitem__
    fake.Tensor = SimpleNamespace(from_dlpack=lambda name, capsule: (name, np.from_dlpack(Consumed(capsule)).copy()))
    fake.TritonError = str
    fake.InferenceResponse = lambda tensors=(), error=None: SimpleNamespace(tensors=dict(tensors), error=error)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    folder = exported / "model_repository/cpu/vae_decoder"
    model = runpy.run_path(str(folder / "1/model.py"))["TritonPythonModel"]()
    parsed = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    config = json_format.MessageToDict(parsed, preserving_proto_field_name=True)
    model.initialize({"model_config": json.dumps(config), "model_repository": str(folder), "model_version": "1"})
    return model


def test_requests_run_as_one_batch_and_come_apart_again(
    exported: Path, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = verify.inputs(contract.VAE_DECODER, 4)["latents"]
    graph = onnxruntime.InferenceSession(exported / "model_repository/cpu/vae_decoder/1/model.onnx")
    (wanted,) = graph.run(None, {"latents": latents})
    runs: list[int] = []

    def counted(outputs: list[str], feeds: dict[str, Any]) -> list[Any]:
        runs.append(len(feeds["latents"]))
        return list(graph.run(outputs, feeds))

    monkeypatch.setattr(backend, "session", SimpleNamespace(run=counted))
    one, broken, two, alone = backend.execute(
        [{"latents": latents[:1]}, {}, {"latents": latents[1:3]}, {"latents": latents[3:]}]
    )
    assert runs == [4]
    assert broken.error == "ValueError: missing input latents"
    faces = [response.tensors["faces"] for response in (one, two, alone)]
    assert [len(face) for face in faces] == [1, 2, 1]
    assert np.abs(np.concatenate(faces).astype(int) - wanted).max() <= 1


def test_a_run_that_fails_answers_every_request_of_its_batch(backend: Any) -> None:
    good, bad = np.zeros((1, 4, 32, 32), np.float16), np.zeros((1, 4, 32, 31), np.float16)
    (alone,) = backend.execute([{"latents": good}])
    both = backend.execute([{"latents": bad}, {"latents": bad}])
    assert alone.error is None and alone.tensors["faces"].shape == (1, 256, 256, 3)
    assert all("latents" in response.error for response in both)


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [("--target=gpu", "targets that exist: cpu"), ("--profile=sd", "profiles that exist: demo")],
)
def test_the_command_names_what_exists(option: str, message: str, tmp_path: Path) -> None:
    places = [f"--models-dir={tmp_path}/models", f"--model-repository={tmp_path}/repository"]
    result = CliRunner().invoke(app, [option, *places])
    assert result.exit_code == 1
    assert message in result.output.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_package_imports_no_torch() -> None:
    """Nor onnx: the demo is set up without either."""
    lines = "import sys, export, export.cli, export.pipeline, export.repository; "
    lines += "assert not {'torch', 'onnx'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", lines], check=True)
