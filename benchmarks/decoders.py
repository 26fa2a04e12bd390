"""The whole decoder and the one of the lower rows: what each costs, and how far apart they draw.

    python benchmarks/decoders.py [--models-dir models] [--repeat 5]

Stable Diffusion's VAE in torch and float32 on the CPU: from --models-dir, or random weights of its architecture. Counts
the operations of a frame, times both decoders in turn, and compares the rows that both draw for drawn people whose
mouths are a third, two thirds and wholly open, with the sums of the same people while they are shut. Prints tables in
Markdown, and RESULT with JSON as the last line.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from export import musetalk
from export.checkpoints import modern_attention, read_state
from export.lower import LowerDecoder, NormSums
from export.modules import FaceDecoder, FaceEncoder
from export.plain import write_attention_out
from export.portrait import BUNDLED, Mouth, Portrait
from export.profiles import SD_VAE, VAE_WEIGHTS, Part
from lipserve import contract

OPENINGS = (1 / 3, 2 / 3, 1)
ROW = contract.LOWER_FROM_ROW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-dir", type=Path, help="has sd-vae/; random weights without")
    parser.add_argument("--size", choices=("full", "narrow"), default="full", help="of random weights")
    parser.add_argument("--repeat", type=int, default=5, help="how often each is timed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lipserve-vae-") as scratch:
        folder = args.models_dir or Path(scratch)
        if args.models_dir is None:
            musetalk.write_random_vae(folder, 0, args.size)
        vae = opened(folder)
    write_attention_out(vae)  # as it is served; and its products are counted
    costs, apart = cost(vae, args.repeat), distances(vae)
    print("| decoder | GFLOP per frame | seconds, median | least |")
    print("|---|---|---|---|")
    for name, row in costs.items():
        print(f"| {name} | {row['gflop']:.1f} | {row['median_s']:.2f} | {row['least_s']:.2f} |")
    print("\n| person | mouth open | PSNR of the lower rows, dB |")
    print("|---|---|---|")
    for row in apart:
        print(f"| {row['person']} | {row['open']:.2f} | {row['psnr']:.1f} |")
    print("RESULT", json.dumps({"weights": str(args.models_dir or "random"), "costs": costs, "apart": apart}))


def opened(folder: Path) -> AutoencoderKL:
    weights = next((file for name in VAE_WEIGHTS if (file := folder / SD_VAE / name).is_file()), None)
    if weights is None:
        raise SystemExit(f"{folder / SD_VAE} has none of {', '.join(VAE_WEIGHTS)}: lipserve models fetch brings it")
    part = Part(folder / SD_VAE / "config.json", weights)
    return musetalk.filled(AutoencoderKL, part, modern_attention(read_state(weights)))


@torch.inference_mode()
def cost(vae: AutoencoderKL, repeat: int) -> dict[str, dict[str, float]]:
    """Operations and seconds of one frame, by decoder; the sums' are paid once per avatar frame."""
    latents = torch.randn(1, *contract.LATENTS.shape, generator=torch.Generator().manual_seed(0)).half()
    sums = NormSums(vae)(latents)
    runs: dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = {
        "sd-vae": (FaceDecoder(vae), (latents,)),
        "sd-vae-lower": (LowerDecoder(vae), (latents, sums)),
        "sums of an avatar frame": (NormSums(vae), (latents,)),
    }
    found: dict[str, dict[str, float]] = {}
    for name, (module, inputs) in runs.items():
        with FlopCounterMode(display=False) as counter:
            module(*inputs)
        found[name] = {"gflop": counter.get_total_flops() / 1e9}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, (module, inputs) in runs.items():
            started = time.perf_counter()
            module(*inputs)
            seconds[name].append(time.perf_counter() - started)
    for name, row in found.items():
        row |= {"median_s": float(np.median(seconds[name])), "least_s": min(seconds[name])}
    return found


@torch.inference_mode()
def distances(vae: AutoencoderKL) -> list[dict[str, Any]]:
    """PSNR of the rows that both decoders draw, for each person and opening."""
    encode, whole, lower, make = FaceEncoder(vae), FaceDecoder(vae), LowerDecoder(vae), NormSums(vae)

    def latents(person: Portrait, opening: float) -> torch.Tensor:
        mouth = Mouth(jaw=opening, open=opening, width=1 - opening) if opening else Mouth()
        crop = torch.from_numpy(person.render(mouth=mouth)[None])
        found: torch.Tensor = encode(crop)[:, contract.LATENT_CHANNELS :]
        return found

    rows = []
    for name, identity in BUNDLED.items():
        person = Portrait(identity, contract.FACE_SIZE)
        sums = make(latents(person, 0))
        for opening in OPENINGS:
            moved = latents(person, opening)
            error = (lower(moved, sums)[:, ROW:].float() - whole(moved)[:, ROW:].float()).square().mean()
            rows.append({"person": name, "open": opening, "psnr": 10 * float(np.log10(255**2 / float(error)))})
    return rows


if __name__ == "__main__":
    main()
