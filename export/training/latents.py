"""What the encoder makes of the faces, on disk: the UNet's pictures, in and out.

    faces/<split>/latents.npy   float16 (n, 2 + K, 4, 32, 32): of the idle face with its lower half black, of the idle
                                face, and of the K speaking ones; times the scaling factor

They belong to one encoder, whose identity is kept beside them; another one makes them anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny

from export.networks import digest
from export.training.corpus import Split
from export.training.faces import SPOKEN, Faces
from export.training.loop import device
from export.training.pixels import to_rgb
from export.training.vae import masked
from lipserve.contract import FACE_SIZE, LATENTS

MASKED, IDLE, FIRST_SPOKEN = 0, 1, 2  # columns
AT_ONCE = 4  # poses


def build(folder: Path, split: Split, vae: AutoencoderTiny) -> Iterator[tuple[int, int]]:
    """Write the file if it is missing or another encoder's; yields (done, total) poses."""
    place = folder / "faces" / split
    file, mark, draft = place / "latents.npy", place / "latents.encoder", place / ".latents.part.npy"
    identity = digest(encoder=vae.encoder)
    if file.is_file() and mark.is_file() and mark.read_text() == identity:
        return
    faces = Faces.open(folder, split)
    made = np.lib.format.open_memmap(draft, "w+", np.float16, (len(faces.done), 2 + SPOKEN, *LATENTS.shape))
    vae = vae.to(device(), memory_format=torch.channels_last).eval()
    rows = np.flatnonzero(faces.done).tolist()
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        flat = to_rgb(faces.crops[some].reshape(-1, FACE_SIZE, FACE_SIZE, 3))
        pictures = flat.reshape(len(some), -1, *flat.shape[1:])
        hidden = masked(pictures[:, 0], np.ones(len(some), np.bool_))[:, None]
        both = torch.cat((hidden, pictures), dim=1)
        with torch.inference_mode():
            latents = vae.encode(both.flatten(0, 1)).latents * vae.config.scaling_factor
        made[some] = latents.reshape(len(some), -1, *LATENTS.shape).half().cpu().numpy()
        yield start + len(some), len(rows)
    made.flush()
    draft.replace(file)
    mark.write_text(identity)
