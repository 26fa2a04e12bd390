"""Inputs as they are in service, for checks: drawn faces through the VAE, a voice through the audio encoder.

What FP16 does to a network depends on what goes in: noise of unit variance is neither a face nor speech. Seeded, and
needs no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf, isnan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from export.gate import HEADROOM, Reference, require_headroom
from export.modules import FaceDecoder, FaceEncoder, UNetStep
from export.networks import Networks
from export.onnx_graphs import decoders
from export.portrait import BUNDLED, Mouth, Portrait
from gateway.features import Padding, Prompts, log_mel
from lipserve import contract
from lipserve.media import Sound

FRAMES = 4
PITCH = 120.0  # Hz
FORMANTS = ((700, 1200), (300, 2300), (300, 800))  # Hz: a, i, u
VOWEL_SECONDS = 0.15


def crops() -> NDArray[np.uint8]:
    """Drawn people who speak: uint8 (4, 256, 256, 3), BGR."""
    people = [Portrait(person, contract.FACE_SIZE) for person in BUNDLED.values()]
    opened = np.linspace(0, 1, FRAMES)
    shown = [
        people[i % len(people)].render(mouth=Mouth(jaw=gap, open=gap, width=1 - gap)) for i, gap in enumerate(opened)
    ]
    return np.stack(shown)


def spoken() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """People with their mouths shut, and the same people who speak: uint8 (3, 256, 256, 3), BGR."""
    people = [Portrait(person, contract.FACE_SIZE) for person in BUNDLED.values()]
    opened = np.linspace(0, 1, len(people) + 1)[1:]
    said = [
        person.render(mouth=Mouth(jaw=gap, open=gap, width=1 - gap)) for person, gap in zip(people, opened, strict=True)
    ]
    return np.stack([person.render() for person in people]), np.stack(said)


def voice(seconds: float = 1.0) -> NDArray[np.float32]:
    """Three vowels in turn: float32 (16000 · seconds,), mono, 16 kHz, in [-1, 1]."""
    time = np.arange(int(seconds * contract.SAMPLE_RATE)) / contract.SAMPLE_RATE
    heard = np.zeros_like(time)
    spoken = (time / VOWEL_SECONDS).astype(int) % len(FORMANTS)
    for harmonic in range(1, int(contract.SAMPLE_RATE / 2 / PITCH)):
        pitch = harmonic * PITCH
        resonance = np.array([sum(1 / (1 + ((pitch - f) / 120) ** 2) for f in vowel) for vowel in FORMANTS])
        heard += resonance[spoken] * np.sin(2 * np.pi * pitch * time)
    return np.asarray(0.5 * heard / np.abs(heard).max(), np.float32)


def reference(networks: Networks, headroom: float = HEADROOM) -> Reference:
    """What the networks, in float32, make of the samples. Raises HeadroomLacking if their insides, `headroom` times,
    leave FP16 no room."""
    drawing = networks.decoder or networks.vae
    with torch.inference_mode():

        def encode(segment: NDArray[np.float32]) -> NDArray[np.float32]:
            states: NDArray[np.float32] = networks.audio_encoder(torch.from_numpy(log_mel(segment)[None]))[0].numpy()
            return states

        pictures = crops()
        features = Prompts(Sound(voice()[None], contract.SAMPLE_RATE), 25, Padding(), encode).batch(FRAMES, 2 * FRAMES)
        face_latents = FaceEncoder(networks.vae)(torch.from_numpy(pictures))
        step, sums = UNetStep(networks.unet), _norm_sums(networks, face_latents)
        (decode, *_) = (graph.module for graph in decoders(networks))
        # one frame at a time: the VAE's decoder takes a gigabyte for four
        frames = range(FRAMES)
        with _within_half(networks.unet, contract.UNET.name, headroom):
            prompted = [(torch.from_numpy(features[i : i + 1]), face_latents[i : i + 1]) for i in frames]
            latents = torch.cat([step(*inputs) for inputs in prompted])
        with _within_half(drawing.decoder, contract.VAE_DECODER.name, headroom):
            drawn = [(latents[i : i + 1], *([] if sums is None else [sums[i : i + 1]])) for i in frames]
            faces = torch.cat([decode(*inputs) for inputs in drawn])
            if networks.lower:  # which asks parts of the network, and no block as a whole
                FaceDecoder(networks.vae)(latents[:1])
    return Reference(
        pictures,
        features,
        face_latents.numpy(),
        latents.numpy(),
        faces.numpy(),
        None if sums is None else sums.numpy(),
    )


def _norm_sums(networks: Networks, face_latents: Tensor) -> Tensor | None:
    """Of the crops, one frame at a time; None where the decoder takes none."""
    if not networks.lower:
        return None
    (_, make) = (graph.module for graph in decoders(networks))
    latents = face_latents[:, contract.LATENT_CHANNELS :]
    return torch.cat([make(latents[i : i + 1]) for i in range(len(latents))])


@contextmanager
def _within_half(network: nn.Module, graph: str, headroom: float) -> Iterator[None]:
    """Hold the largest output of any layer meanwhile against FP16's end; norms hide what overflowed before them."""
    seen: dict[str, float] = {}

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                largest = float(output.abs().max())
                seen[name] = max(seen.get(name, 0.0), inf if isnan(largest) else largest)

        return module.register_forward_hook(look)

    handles = [watch(name, module) for name, module in network.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    # the first of equals is the layer that made it; what follows only handed it on
    layer = max(seen, key=lambda name: seen[name])
    require_headroom(graph, layer, seen[layer], headroom)
