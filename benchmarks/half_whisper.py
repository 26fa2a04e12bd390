"""What Whisper's encoder in half precision would hear otherwise than in float32, as the gateway runs it.

    python benchmarks/half_whisper.py [--audio FILE ...] [--models DIR] [--frames 100]

MuseTalk's realtime script runs Whisper in the UNet's precision, which is half. Of each sound the states of the first
30 s, in both precisions, state by state: the relative error (root of the mean square) and the largest. Beside it what
rounding the float32 states to float16 costs, as the gateway sends them. The demo's encoder is always measured (ONNX
Runtime, every tensor between operators in FP16), and what its error does to the faces that the demo's own networks
draw of demo/lisa.mp4; with `--models`, a folder with whisper/config.json and its weights, Whisper in torch. Prints a
table, and RESULT with JSON.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from mask_rows import DEMO, WAYS, faces
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from avatar_prep.faces import FaceFinder
from avatar_prep.prepare import face_crop
from gateway.audio import speech
from gateway.features import Padding, Prompts, log_mel
from lipserve import contract
from lipserve.colour import U8
from lipserve.fetch import FACE_MODELS
from lipserve.media import Sound, read_sound
from lipserve.settings import Settings

ROOT = Path(__file__).parent.parent
SPEECH = ROOT / "demo/speech.flac"
NAMES = ("embedding", "layer 1", "layer 2", "layer 3", "layer 4")

F32 = NDArray[np.float32]
States = Callable[[F32], F32]  # log-mel (80, 3000) to hidden states (1500, 5, 384)


@dataclass(frozen=True)
class Row:
    """One sound through one encoder; `errors`: by state, relative; `largest`: in the states' own units."""

    encoder: str
    sound: str
    what: str
    errors: dict[str, float]
    largest: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, action="append", default=[], help="more speech than demo/speech.flac")
    parser.add_argument("--models", type=Path, help="a folder of MuseTalk's weights, with whisper/")
    parser.add_argument("--frames", type=int, default=100, help="of the demo's faces")
    args = parser.parse_args()
    demo = Settings().models_dir / "demo"
    pairs = {"demo": demo_encoders(demo / "audio_encoder.onnx")}
    if args.models:
        pairs["whisper"] = torch_encoders(args.models / "whisper")
    rows = [
        row
        for name, (exact, half) in pairs.items()
        for file in (SPEECH, *args.audio)
        for row in compared(name, file, exact, half)
    ]
    table = Table("encoder", "sound", "in float16", *NAMES, "largest")
    for row in rows:
        errors = (f"{error:.5f}" for error in row.errors.values())
        table.add_row(row.encoder, row.sound, row.what, *errors, f"{row.largest:.4f}")
    Console(width=120).print(table)
    levels = face_levels(demo, *pairs["demo"], args.frames)
    print("The demo's faces, in grey levels:", ", ".join(f"{name} {value:.4g}" for name, value in levels.items()))
    print("RESULT", json.dumps({"rows": [asdict(row) for row in rows], "faces": levels}))


def heard(file: Path) -> F32:
    """Mono, 16 kHz, the first 30 s."""
    return speech(read_sound(file, 3600))[: contract.SEGMENT_SAMPLES]


def compared(encoder: str, file: Path, exact: States, half: States) -> Iterator[Row]:
    samples = heard(file)
    count = samples.size * contract.STATES_PER_SECOND // contract.SAMPLE_RATE
    mel = log_mel(samples)
    states, computed = exact(mel)[:count], half(mel)[:count]
    for what, other in (("rounded", states.astype(np.float16).astype(np.float32)), ("computed", computed)):
        squares = [((a - states) ** 2).mean(axis=(0, 2)) for a in (other, np.zeros_like(states))]
        errors = np.sqrt(squares[0] / squares[1]).tolist()
        largest = float(np.abs(other - states).max())
        yield Row(encoder, file.stem, what, dict(zip(NAMES, errors, strict=True)), largest)


# -- encoders: float32, then half -------------------------------------------------------------------------------------


def demo_encoders(file: Path) -> tuple[States, States]:
    """The graph keeps FP16 weights and casts each to float32; without these casts every operator is one of FP16."""
    graph = onnx.load(file)
    return of_graph(graph), of_graph(halved(graph))


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for node in half.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.FLOAT16
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del half.graph.value_info[:]
    return half


def of_graph(model: onnx.ModelProto) -> States:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32

    def states(mel: F32) -> F32:
        (out,) = session.run(None, {session.get_inputs()[0].name: mel[None].astype(dtype)})
        return out[0].astype(np.float32)

    return states


def torch_encoders(folder: Path) -> tuple[States, States]:
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from export.checkpoints import read_state, whisper_encoder
    from export.modules import WhisperStates
    from export.profiles import WHISPER_WEIGHTS

    weights = next((file for name in WHISPER_WEIGHTS if (file := folder / name).is_file()), None)
    if weights is None:
        raise SystemExit(f"{folder} has no {' or '.join(WHISPER_WEIGHTS)}; `lipserve models fetch` brings them.")

    def of(dtype: torch.dtype) -> States:
        encoder = WhisperEncoder(WhisperConfig(**json.loads((folder / "config.json").read_text())))
        encoder.load_state_dict(whisper_encoder(read_state(weights)))
        network = WhisperStates(encoder).eval().to(dtype)

        def states(mel: F32) -> F32:
            with torch.inference_mode():
                return network(torch.from_numpy(mel)[None].to(dtype))[0].float().numpy()

        return states

    return of(torch.float32), of(torch.float16)


# -- faces ------------------------------------------------------------------------------------------------------------


def face_levels(demo: Path, exact: States, half: States, frames: int) -> dict[str, float]:
    """How the faces differ between the prompts of the two encoders, each rounded to float16 as they are sent."""
    samples = heard(SPEECH)
    latents = face_latents(demo, frames)
    ours, theirs = (drawn(demo, prompts(samples, states, len(latents)), latents) for states in (exact, half))
    errors = np.abs(ours.astype(int) - theirs.astype(int))
    return {"frames": len(ours), "largest": int(errors.max()), "mean": float(errors.mean())}


def face_latents(demo: Path, frames: int) -> NDArray[np.float16]:
    """float16 (n, 8, 32, 32) of the first bundled clip."""
    finder = FaceFinder(Settings().models_dir / FACE_MODELS.folder)
    encoder = ort.InferenceSession(demo / "vae_encoder.onnx", providers=["CPUExecutionProvider"])
    name = encoder.get_inputs()[0].name
    out = []
    for one in islice(faces(DEMO[0], finder, 1), frames):
        crop = face_crop(one.picture, WAYS["jaw"].box(one.mesh, one.face, one.size))
        out.append(encoder.run(None, {name: crop[None]})[0][0])
    return np.stack(out)


def prompts(samples: F32, states: States, frames: int) -> NDArray[np.float16]:
    sound = Sound(samples[None], contract.SAMPLE_RATE)
    return Prompts(sound, 25, Padding(), lambda segment: states(log_mel(segment))).batch(0, frames)


def drawn(demo: Path, features: NDArray[np.float16], latents: NDArray[np.float16]) -> U8:
    """uint8 (n, 256, 256, 3)."""
    unet, decoder = (
        ort.InferenceSession(demo / f"{model.name}.onnx", providers=["CPUExecutionProvider"])
        for model in (contract.UNET, contract.VAE_DECODER)
    )
    out = []
    for pair in zip(features, latents, strict=True):
        feeds = {tensor.name: value[None] for tensor, value in zip(contract.UNET.inputs, pair, strict=True)}
        (answer,) = unet.run(None, feeds)
        out.append(decoder.run(None, {decoder.get_inputs()[0].name: answer})[0][0])
    return np.stack(out)


if __name__ == "__main__":
    main()
