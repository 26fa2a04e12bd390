"""A reference folder of our own for benchmarks/parity.py: small random weights, a bundled avatar, a bundled sentence.

What MuseTalk's scripts would make of them, computed the way those scripts do, with diffusers, transformers, librosa and
Pillow alone; nothing of the gateway, the export's modules or the importer is used, so that both must be right to agree.
"""

import hashlib
import io
import json
import lzma
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import librosa
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from musetalk_folder import blend_of_v1, lisa, their_blend
from numpy.typing import NDArray
from safetensors.torch import load_file
from samples import SPEECH, write_sound, write_video
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from export.musetalk import write_random_weights
from lipserve.colour import U8
from lipserve.media import read_sound

FPS = 25
SECONDS = 0.64
UNETS = {
    "v15": ("musetalkV15/musetalk.json", "musetalkV15/unet.pth"),
    "v1": ("musetalk/musetalk.json", "musetalk/pytorch_model.bin"),
}
BLENDS = {"v15": their_blend, "v1": blend_of_v1}


class Scripts:
    """The networks as MuseTalk's scripts load and call them: float32, on the CPU."""

    def __init__(self, weights: Path, version: str) -> None:
        config, state = (weights / name for name in UNETS[version])
        self.unet = UNet2DConditionModel(**json.loads(config.read_text())).eval()
        self.unet.load_state_dict(torch.load(state, weights_only=True))
        self.vae = AutoencoderKL.from_pretrained(weights / "sd-vae").eval()
        encoder = WhisperEncoder(WhisperConfig(**json.loads((weights / "whisper/config.json").read_text())))
        found = load_file(weights / "whisper/model.safetensors")
        encoder.load_state_dict({name.removeprefix("model.encoder."): tensor for name, tensor in found.items()})
        self.whisper = encoder.eval()

    def audio(self, sound: Path) -> dict[str, NDArray[np.float32]]:
        """wave16k (s,), mel (1, 80, 3000), hidden (t, 5, 384), chunks_fps25 (n, 50, 384)."""
        wave, rate = librosa.load(sound, sr=16000)
        mel = WhisperFeatureExtractor()(wave, return_tensors="pt", sampling_rate=rate).input_features
        states = torch.stack(self.whisper(mel, output_hidden_states=True).hidden_states, dim=2)
        states = states[:, : math.floor(len(wave) / 16000 * 50)]
        padding = math.ceil(50 / FPS)
        silence = torch.zeros_like(states)
        padded = torch.cat([silence[:, : padding * 2], states, silence[:, : padding * 3 * 2]], 1)
        chunks = []
        for frame in range(math.floor(len(wave) / 16000 * FPS)):
            first = math.floor(frame * 50 / FPS)
            chunks.append(padded[:, first : first + 10].flatten(1, 2))
        arrays = {"mel": mel, "hidden": states[0], f"chunks_fps{FPS}": torch.cat(chunks)}
        return {"wave16k": wave} | {name: tensor.numpy() for name, tensor in arrays.items()}

    def face_latents(self, crop: U8) -> NDArray[np.float32]:
        """Of one face, drawn from the posterior: uint8 (h, w, 3), BGR, to (1, 8, 32, 32)."""
        face = cv2.cvtColor(cv2.resize(crop, (256, 256), interpolation=cv2.INTER_LANCZOS4), cv2.COLOR_BGR2RGB)
        whole = torch.from_numpy(face / 255.0).float().permute(2, 0, 1)[None]
        masked = whole.clone()
        masked[:, :, 128:] = 0
        drawn = [self.vae.encode((picture - 0.5) / 0.5).latent_dist.sample() for picture in (masked, whole)]
        found: NDArray[np.float32] = (self.vae.config.scaling_factor * torch.cat(drawn, 1)).numpy()
        return found

    def faces(self, chunks: NDArray[np.float32], latents: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """(n, 50, 384) and (n, 8, 32, 32) to all that lies between them and faces, uint8 (n, 256, 256, 3), BGR."""
        context = torch.from_numpy(chunks) + positions(50, 384)
        out = self.unet(torch.from_numpy(latents), torch.tensor([0]), encoder_hidden_states=context).sample
        pictures = (self.vae.decode(out / self.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        levels = (pictures.permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")
        return {
            "unet_in": latents,
            "unet_ctx": context.numpy(),
            "unet_out": out.numpy(),
            "decoded": np.ascontiguousarray(levels[..., ::-1]),
        }


def positions(length: int, width: int) -> torch.Tensor:
    """(length, width), as MuseTalk's PositionalEncoding has it."""
    encoding = torch.zeros(length, width)
    position = torch.arange(length)[:, None].float()
    divisor = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10000.0) / width))
    encoding[:, 0::2], encoding[:, 1::2] = torch.sin(position * divisor), torch.cos(position * divisor)
    return encoding


def write_reference(folder: Path, version: str, case: str = "lisa", clip: str = "words", frames: int = 6) -> Path:
    """All of the layout that benchmarks/parity.py describes. SECONDS of speech: 16 frames, of which 15 are written, and
    more than one cycle of the avatar's."""
    weights = folder / "weights"
    write_random_weights(weights, 0, "small", {"v15": "musetalk-v15", "v1": "musetalk-v1"}[version])
    for name in ("data/audio", "data/video", "audio"):
        (folder / name).mkdir(parents=True)
    spoken = read_sound(SPEECH, 60)
    sound = folder / f"data/audio/{clip}.wav"
    write_sound(sound, spoken.samples[:, : int(SECONDS * spoken.rate)], spoken.rate)
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scripts = Scripts(weights, version)
        audio = scripts.audio(sound)
        avatar = lisa(frames)
        crops = [picture[y1:y2, x1:x2] for picture, (x1, y1, x2, y2) in zip(avatar.pictures, avatar.boxes, strict=True)]
        video = f"data/video/{case}.mkv"
        info = {"avatar_id": case, "video_path": video, "bbox_shift": 0} | (
            {"version": "v15"} if version == "v15" else {}
        )
        avatar = replace(avatar, latents=[scripts.face_latents(crop) for crop in crops], info=info)
        chunks, cycle = audio[f"chunks_fps{FPS}"], avatar.cycle()
        shown = [cycle[i % len(cycle)] for i in range(len(chunks))]
        inner = scripts.faces(chunks, np.concatenate([avatar.latents[i] for i in shown]))
    given = zip(shown, inner["decoded"], strict=True)
    blend = BLENDS[version]
    written = [blend(avatar.pictures[i], face, avatar.boxes[i], avatar.masks[i], avatar.crops[i]) for i, face in given]
    written = written[:-1]  # as those scripts do

    write_lossless(folder / video, avatar.pictures)
    with lzma.open(folder / f"audio/{clip}.npz.xz", "wb", preset=0) as out:
        out.write(npz(audio))
    avatar.write(folder / case)
    shutil.rmtree(folder / case / "full_imgs")
    shutil.rmtree(folder / case / "vid_output")
    left, top, right, bottom = rectangle = changed(written, [avatar.pictures[i] for i in shown])
    write_lossless(folder / case / f"{clip}.patch.mkv", [frame[top:bottom, left:right] for frame in written])
    kept = [0, len(chunks) // 2, len(chunks) - 1]
    inside = {name: array[kept] for name, array in inner.items()}
    (folder / case / f"{clip}.internals.npz").write_bytes(npz(inside | {"frames": np.array(kept)}))
    index = {
        "size_wh": [512, 512],
        "latent": ["torch.float32", [1, 8, 32, 32]],
        "full_imgs_sha256_of_BGR_bytes": [sha256(picture) for picture in avatar.pictures],
        "patch_rect_xyxy": rectangle,
        "clips": {clip: {"frame_sha256_of_BGR_bytes": [sha256(frame) for frame in written]}},
    }
    (folder / case / "index.json").write_text(json.dumps(index))
    return folder


def write_lossless(file: Path, pictures: list[U8]) -> None:
    """FFV1 of BGR pictures, which OpenCV decodes to the bit."""
    frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24") for picture in pictures]
    write_video(file, [frame.reformat(format="bgr0") for frame in frames], codec="ffv1")


def changed(written: list[U8], pictures: list[U8]) -> list[int]:
    """The rectangle x1, y1, x2, y2 outside of which every frame is its picture."""
    touched = np.any([(a != b).any(axis=2) for a, b in zip(written, pictures, strict=False)], axis=0)
    rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def sha256(picture: U8) -> str:
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()
