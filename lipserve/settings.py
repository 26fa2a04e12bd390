"""All configuration, in one place. Nothing else in the project reads the environment.

Each field is set by the environment variable `LIPSERVE_<FIELD>`; the README's table is checked against this class.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

SharedMemoryMode = Literal["auto", "on", "off"]
Positive = Annotated[int, Field(gt=0)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="LIPSERVE_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address the gateway listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port the gateway listens on.")

    triton_url: str | None = Field(
        None, description="gRPC address, host:port, of an external Triton. Empty: `lipserve` starts the embedded one."
    )
    triton_timeout: float = Field(60.0, gt=0, description="Seconds a batch may take at Triton.")
    shared_memory: SharedMemoryMode = Field(
        "auto",
        description="Batches lie in memory shared with Triton: `auto`, if both are on one host; `on`, or fail; `off`.",
    )
    triton_http_port: int = Field(0, ge=0, le=65535, description="Embedded Triton's HTTP port; 0 takes a free one.")
    triton_grpc_port: int = Field(0, ge=0, le=65535, description="Embedded Triton's gRPC port; 0 takes a free one.")
    triton_metrics_port: int = Field(0, ge=0, le=65535, description="Embedded Triton's metrics port; 0: a free one.")

    avatars_dir: Path = Field(Path("avatars"), description="Prepared avatars, a folder each.")
    models_dir: Path = Field(Path("models"), description="Weights and the files that `lipserve setup` fetches.")
    model_repository: Path = Field(Path("model_repository/cpu"), description="The embedded Triton's models.")
    profile: str = Field("demo", pattern=r"^[a-z0-9_-]+$", description="Weights in use: a folder of models_dir.")
    work_dir: Path = Field(Path(".run"), description="Uploads and results in progress, and Triton's log.")
    media_dir: Path | None = Field(None, description="Folder that `*_path` form fields may name files of. Empty: none.")

    max_upload_mb: Positive = Field(200, description="Largest request body, in 10^6 bytes.")
    max_audio_seconds: Positive = Field(900, description="Longest audio of one request.")
    max_video_seconds: Positive = Field(120, description="Longest avatar video.")
    max_frame_pixels: Positive = Field(1920 * 1920, description="Largest frame of an avatar, width times height.")

    avatar_cache: Positive = Field(16, description="Avatars kept open (memory-mapped), least recently used out first.")
    max_concurrent_syncs: Positive = Field(4, description="Lip-sync requests rendered at once; more wait their turn.")
    max_waiting: Positive = Field(64, description="Requests that may wait for their turn; beyond: 503.")
    priority: Literal["live", "batch"] = Field(
        "batch", description="What lip-sync calls here are to Triton, which may serve others: `live` ones go first."
    )
    batches_in_flight: Positive = Field(2, description="Batches of one request that are at Triton at the same time.")

    audio_threads: Positive = Field(2, description="ONNX Runtime threads of the audio encoder.")
    feature_cache: int = Field(8, ge=0, description="Segments of 30 s whose audio features are kept, 5.8 MB each.")
    video_encoder: Literal["libx264", "h264_nvenc", "auto"] = Field(
        "libx264", description="`h264_nvenc` is the GPU's encoder; `auto` takes it where it works, and logs why not."
    )
    video_preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = Field(
        "veryfast", description="As of libx264: slower presets make smaller files."
    )
    video_crf: int = Field(18, ge=0, le=40, description="Quality, as of libx264: lower is better and larger.")
    video_threads: Positive = Field(2, description="libx264 threads for one video.")
    log_format: Literal["json", "console"] = Field("json", description="Log lines as JSON objects, or for people.")
