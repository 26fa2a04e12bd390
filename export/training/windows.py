"""What the audio encoder says at the moments of the faces, on disk: the UNet's prompts.

    faces/<split>/windows.npy   float16 (n, K, R, 50, 384): R recordings of each moment, without positional encoding
                  silence.npy   float16 (m, 50, 384): noise, digital silence, and what follows a recording's end

A moment's window is the gateway's: ten states, the sixth nearest to the middle of the frame. The first recording is
clean, the others are played at another tempo and recorded badly. They belong to one audio encoder, whose identity is
kept beside them; another one makes them anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.networks import digest
from export.training.corpus import SPLITS, Corpus, Split
from export.training.faces import FPS, Faces
from export.training.loop import device
from export.training.segments import STATE_TIMES, TAIL, Placed, Segment, draw, packed, speechless
from lipserve.contract import (
    AUDIO_FEATURES,
    AUDIO_WIDTH,
    FEATURES_PER_FRAME,
    N_LAYERS,
    STATES_PER_FRAME,
    STATES_PER_SECOND,
)

RECORDINGS = 3  # R
BEFORE = 5  # states of a window before the one in the middle of the frame
SPEECHLESS = 10  # segments without speech, and as many tails of segments with it
SILENT_WINDOWS = 24  # of each

# utterance: its (row, column, frame) in the files
Moments = dict[int, list[tuple[int, int, int]]]


def build(folder: Path, split: Split, encoder: nn.Module, seed: int) -> Iterator[tuple[int, int]]:
    """Write the file if it is missing or another encoder's; yields (done, total) utterances."""
    place = folder / "faces" / split
    file, mark, draft = place / "windows.npy", place / "windows.encoder", place / ".windows.part.npy"
    identity = digest(encoder=encoder)
    if file.is_file() and mark.is_file() and mark.read_text() == identity:
        return
    faces = Faces.open(folder, split)
    wanted = moments(faces)
    shape = (*faces.moments.shape[:2], RECORDINGS, *AUDIO_FEATURES.shape)
    windows = np.lib.format.open_memmap(draft, "w+", np.float16, shape)
    network = encoder.to(device()).eval()
    corpus = Corpus(folder, split)
    done = 0
    for recording in range(RECORDINGS):
        rng = np.random.default_rng([seed, 9, SPLITS.index(split), recording])
        rest = rng.permutation(sorted(wanted)).tolist()
        while rest:
            segment, left = packed(corpus, rest, rng, augment=recording > 0)
            states = _states(network, segment)
            for part in segment.placed:
                for row, column, frame in wanted[part.utterance]:
                    windows[row, column, recording] = window(states, middle(part, frame))
            done, rest = done + len(rest) - len(left), left
            yield done, RECORDINGS * len(wanted)
    windows.flush()
    np.save(place / "silence.npy", _silence(network, corpus, np.random.default_rng([seed, 10, SPLITS.index(split)])))
    draft.replace(file)
    mark.write_text(identity)


@torch.inference_mode()
def _states(network: nn.Module, segment: Segment) -> NDArray[np.float32]:
    """float32 (1500, 5, 384)."""
    states: NDArray[np.float32] = network(torch.from_numpy(segment.log_mel)[None].to(device()))[0].cpu().numpy()
    return states


def _silence(network: nn.Module, corpus: Corpus, rng: np.random.Generator) -> NDArray[np.float16]:
    found = []
    for _ in range(SPEECHLESS):
        states = _states(network, speechless(rng))
        found += [window(states, time) for time in rng.choice(STATE_TIMES, SILENT_WINDOWS)]
        segment = draw(corpus, rng)
        states, after = _states(network, segment), segment.seconds + TAIL < STATE_TIMES
        if after.any():
            found += [window(states, time) for time in rng.choice(STATE_TIMES[after], SILENT_WINDOWS)]
    return np.stack(found)


def moments(faces: Faces) -> Moments:
    """The faces' moments by utterance."""
    found: Moments = defaultdict(list)
    for row in np.flatnonzero(faces.done).tolist():
        for column, (utterance, frame) in enumerate(faces.moments[row].tolist()):
            found[utterance].append((row, column, frame))
    return found


def middle(part: Placed, frame: int) -> float:
    """When the middle of an utterance's 25 fps frame is heard, seconds into the segment."""
    return part.start + (frame + 0.5) / FPS * part.stretch


def window(states: NDArray[np.float32], time: float) -> NDArray[np.float16]:
    """float16 (50, 384) of states float32 (1500, 5, 384); zeros stand before the first state and behind the last."""
    first = round(time * STATES_PER_SECOND) - BEFORE
    cut = np.zeros((STATES_PER_FRAME, N_LAYERS, AUDIO_WIDTH), np.float32)
    low, high = max(first, 0), min(first + STATES_PER_FRAME, len(states))
    cut[low - first : high - first] = states[low:high]
    return cut.reshape(FEATURES_PER_FRAME, AUDIO_WIDTH).astype(np.float16)
