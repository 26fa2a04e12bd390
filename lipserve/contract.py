"""The contract: every name, shape, dtype and rate that two parts of lipserve must agree on, once.

Held against every rendered `config.pbtxt` and every exported graph by `tests/test_contract.py`. Knows no vendor.
"""

from dataclasses import dataclass
from enum import IntEnum

# -- audio ------------------------------------------------------------------------------------------------------------
SAMPLE_RATE = 16_000  # Hz, mono
N_FFT = 400  # samples, 25 ms
HOP_LENGTH = 160  # samples, 10 ms
N_MELS = 80
SEGMENT_SECONDS = 30  # the audio encoder's fixed window
SEGMENT_SAMPLES = SEGMENT_SECONDS * SAMPLE_RATE  # 480 000
SEGMENT_MEL_FRAMES = SEGMENT_SAMPLES // HOP_LENGTH  # 3000
STATES_PER_SECOND = 50  # audio encoder states, 20 ms each
SEGMENT_STATES = SEGMENT_SECONDS * STATES_PER_SECOND  # 1500
N_LAYERS = 5  # hidden states kept per audio state: the embedding and four layers
AUDIO_WIDTH = 384  # channels of one hidden state
STATES_PER_FRAME = 10  # audio states seen by one video frame: 4 before, 6 from its own start
FEATURES_PER_FRAME = STATES_PER_FRAME * N_LAYERS  # 50 prompt tokens, state-major

# -- pictures ---------------------------------------------------------------------------------------------------------
FACE_SIZE = 256  # pixels, square
LATENT_CHANNELS = 4
LATENT_SIZE = 32  # FACE_SIZE / 8
FACE_LATENT_CHANNELS = 2 * LATENT_CHANNELS  # masked 4, then reference 4
MASKED_FROM_ROW = FACE_SIZE // 2  # rows 128..255 of the masked copy are black

# -- the decoder of the lower rows ------------------------------------------------------------------------------------
LOWER_FROM_ROW = 104  # of 256, the first it draws; masks begin at 109 with the defaults: benchmarks/mask_rows.py
LOWER_NORMS = 19  # group norms from 64×64 up: 3 stages of 3 blocks of 2, and the last one
NORM_GROUPS = 32

# -- serving ----------------------------------------------------------------------------------------------------------
MIN_FPS, MAX_FPS = 1, 60  # frames per second, integer
AVATAR_FORMAT = 1  # version of the avatar folder


class Priority(IntEnum):
    """What a request is to Triton, whose queues let a lower number pass; the ensemble hands it on to its models."""

    LIVE = 1  # somebody is watching
    BATCH = 2  # somebody waits for the file


@dataclass(frozen=True)
class Tensor:
    """One tensor of the contract. `shape` is per frame: the batch axis stands before it."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int, ...]

    @property
    def triton_dtype(self) -> str:
        """Data type as `config.pbtxt` spells it, without the `TYPE_` prefix; also the wire name but for FP16/FP32."""
        return {"float16": "FP16", "float32": "FP32", "uint8": "UINT8"}[self.dtype]


@dataclass(frozen=True)
class Model:
    """One model of the repository. `max_batch_size`: frames in one request, and in one batch at the server."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int


AUDIO_FEATURES = Tensor("audio_features", "float16", (FEATURES_PER_FRAME, AUDIO_WIDTH))
FACE_LATENTS = Tensor("face_latents", "float16", (FACE_LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE))
LATENTS = Tensor("latents", "float16", (LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE))  # VAE latents times scaling factor
FACES = Tensor("faces", "uint8", (FACE_SIZE, FACE_SIZE, 3))  # BGR
CROPS = Tensor("crops", "uint8", (FACE_SIZE, FACE_SIZE, 3))  # BGR
# Of an avatar frame: the second half of its face latents; and, for the norms of the lower decoder, what the rows that
# it does not draw add to each group's mean and mean square.
REFERENCE_LATENTS = Tensor("reference_latents", "float16", LATENTS.shape)
NORM_SUMS = Tensor("norm_sums", "float32", (LOWER_NORMS, NORM_GROUPS, 2))

# Larger batches take more of a card's memory and make nothing faster (docs/gpu.md); the encoder is in float32.
FRAMES_AT_ONCE = 16
CROPS_AT_ONCE = 8

UNET = Model("unet", (AUDIO_FEATURES, FACE_LATENTS), (LATENTS,), FRAMES_AT_ONCE)
VAE_DECODER = Model("vae_decoder", (LATENTS,), (FACES,), FRAMES_AT_ONCE)
VAE_ENCODER = Model("vae_encoder", (CROPS,), (FACE_LATENTS,), CROPS_AT_ONCE)
# The ensemble: unet, then vae_decoder.
LIPSYNC = Model("lipsync", (AUDIO_FEATURES, FACE_LATENTS), (FACES,), FRAMES_AT_ONCE)
MODELS = (UNET, VAE_DECODER, VAE_ENCODER, LIPSYNC)

# In the place of those of the same names where the decoder draws only the lower rows; and what makes their sums.
LOWER_DECODER = Model("vae_decoder", (LATENTS, NORM_SUMS), (FACES,), FRAMES_AT_ONCE)
LOWER_LIPSYNC = Model("lipsync", (AUDIO_FEATURES, FACE_LATENTS, NORM_SUMS), (FACES,), FRAMES_AT_ONCE)
REFERENCE_SUMS = Model("reference_sums", (REFERENCE_LATENTS,), (NORM_SUMS,), CROPS_AT_ONCE)

# The audio encoder runs beside the gateway, not on Triton: one 30 s segment at a time.
LOG_MEL = Tensor("log_mel", "float32", (N_MELS, SEGMENT_MEL_FRAMES))
HIDDEN_STATES = Tensor("hidden_states", "float32", (SEGMENT_STATES, N_LAYERS, AUDIO_WIDTH))
AUDIO_ENCODER = Model("audio_encoder", (LOG_MEL,), (HIDDEN_STATES,), 1)

# Key, in every model's Triton parameters and in the audio encoder's ONNX metadata, of the weights' identity. An avatar
# keeps the one it was prepared with: latents of one VAE mean nothing to another.
WEIGHTS_ID = "weights_id"
