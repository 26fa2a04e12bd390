"""All configuration, in one place. Nothing else in the project reads the environment.

Each field is set by the environment variable `LIPSERVE_<FIELD>`; the README's table is checked against this class. Some
have a second, plain name, under which other services know them; the prefixed one wins. An empty variable is as good as
none. A variable `LIPSERVE_…` that is no field is a mistake, not something to pass over.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from lipserve.contract import MAX_FPS, MIN_FPS

SharedMemoryMode = Literal["auto", "on", "off"]
Positive = Annotated[int, Field(gt=0)]

PREFIX = "LIPSERVE_"
PLAIN_NAMES = {  # of other services, where they mean the same: the field
    "HOST": "host",
    "PORT": "port",
    "STORAGE_DIR": "storage_dir",
    "MODELS_DIR": "models_dir",
    "MAX_CONCURRENT_JOBS": "max_concurrent_syncs",
    "JOB_TIMEOUT_SECONDS": "job_timeout_seconds",
    "MAX_QUEUE_SIZE": "max_waiting",
    "OUTPUT_FPS": "output_fps",
    "LAZY_LOAD": "lazy_load",
    "UNLOAD_IDLE_SECONDS": "unload_idle_seconds",
}
_HOST = r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::\d{1,5})?"
_ORIGIN = re.compile(rf"https?://{_HOST}")
_BASE_URL = re.compile(rf"https?://{_HOST}(?:/[\w.~/-]*)?", re.IGNORECASE | re.ASCII)


def environment() -> dict[str, tuple[str, str]]:
    """Field: its value, and the variable that has it. What is misspelt is there too, as a field that does not exist."""
    plain = {field: (os.environ.get(name, ""), name) for name, field in PLAIN_NAMES.items()}
    prefixed = {
        name[len(PREFIX) :].lower(): (value, name)
        for name, value in os.environ.items()
        if name.upper().startswith(PREFIX)
    }
    given = plain | {field: found for field, found in prefixed.items() if found[0]}
    return {field: (value, name) for field, (value, name) in given.items() if value}


class _Environment(PydanticBaseSettingsSource):
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, _ = environment().get(field_name, (None, ""))
        return value, field_name, False

    def __call__(self) -> dict[str, Any]:
        return {field: value for field, (value, _) in environment().items()}


class Settings(BaseSettings):
    # Errors do not show what was given: it may be a secret under a misspelt name.
    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address the gateway listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port the gateway listens on.")

    triton_url: str | None = Field(
        None, description="gRPC address, host:port, of an external Triton. Empty: `lipserve` starts the embedded one."
    )
    triton_timeout: float = Field(
        60.0, gt=0, description="Seconds a batch may take at Triton, and as long again to get a place there."
    )
    shared_memory: SharedMemoryMode = Field(
        "auto",
        description="Batches lie in memory shared with Triton: `auto`, if both are on one host; `on`, or fail; `off`.",
    )
    triton_http_port: int = Field(0, ge=0, le=65535, description="Embedded Triton's HTTP port; 0 takes a free one.")
    triton_grpc_port: int = Field(0, ge=0, le=65535, description="Embedded Triton's gRPC port; 0 takes a free one.")
    triton_metrics_url: str | None = Field(
        None, description="An external Triton's metrics, for the GPU memory in /health. The embedded one's is known."
    )
    triton_metrics_port: int = Field(0, ge=0, le=65535, description="Embedded Triton's metrics port; 0: a free one.")

    avatars_dir: Path = Field(Path("avatars"), description="Prepared avatars, a folder each.")
    models_dir: Path = Field(Path("models"), description="Weights and the files that `lipserve setup` fetches.")
    model_repository: Path = Field(Path("model_repository/cpu"), description="The embedded Triton's models.")
    profile: str = Field("demo", pattern=r"^[a-z0-9_-]+$", description="Weights in use: a folder of models_dir.")
    work_dir: Path = Field(Path(".run"), description="Requests in progress, and Triton's log.")
    storage_dir: Path = Field(
        Path("storage"), description="Jobs with their inputs and results, uploads, keys. One gateway's own."
    )
    media_dir: Path | None = Field(None, description="Folder that `*_path` form fields may name files of. Empty: none.")

    max_upload_mb: Positive = Field(200, description="Largest request body, in 10^6 bytes.")
    max_audio_seconds: Positive = Field(900, description="Longest audio of one request.")
    max_video_seconds: Positive = Field(120, description="Longest avatar video.")
    max_frame_pixels: Positive = Field(1920 * 1920, description="Largest frame of an avatar, width times height.")

    avatar_cache: Positive = Field(16, description="Avatars kept open, least recently used out first.")
    max_concurrent_syncs: Positive = Field(4, description="Lip-sync calls and jobs rendered at once; more wait.")
    max_waiting: Positive = Field(64, description="Calls, and jobs, that may wait for their turn; beyond: 429.")
    job_timeout_seconds: Positive = Field(3600, description="Longest a job may be worked on.")
    job_retention_hours: Positive = Field(168, description="Ended jobs, results and uploads are kept this long.")
    storage_max_gb: Positive = Field(20, description="Beyond this, the oldest results and uploads go first.")
    max_picture_avatars: Positive = Field(
        64, description="Avatars made of `source_url` pictures and clips that are kept, least recently used out first."
    )
    output_fps: int | None = Field(None, ge=MIN_FPS, le=MAX_FPS, description="Frame rate. Empty: the avatar's own.")
    priority: Literal["live", "batch"] = Field(
        "batch", description="What lip-sync calls here are to Triton, which may serve others: `live` ones go first."
    )
    batches_in_flight: Positive = Field(2, description="Batches of one request that are at Triton at the same time.")

    lazy_load: bool = Field(False, description="The embedded Triton loads its models when they are first needed.")
    unload_idle_seconds: int = Field(0, ge=0, description="With lazy_load: models unused this long go. 0: never.")

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

    public_url: str | None = Field(
        None, description="Where clients reach this service, for the URLs it gives out. Empty: as the request says."
    )
    keys_file: Path | None = Field(
        None, description="API keys, hashed, from `lipserve keys add`. Empty: no key is asked for."
    )
    rate_limit: int = Field(0, ge=0, description="Calls a minute of one key; 0: any number.")
    key_concurrency: int = Field(0, ge=0, description="Jobs and calls of one key at once; 0: any number.")
    cors_origins: str = Field("", description="Origins that browsers may call from, comma between. Empty: none.")
    result_url_seconds: Positive = Field(86400, description="How long a signed result URL is good.")

    fetch_urls: bool = Field(True, description="Whether `source_url`, `audio_url` and webhooks are followed at all.")
    fetch_allow: str = Field(
        "", description="host:port, comma between, that may be fetched from and sent to though not public. Empty: none."
    )
    fetch_timeout_seconds: Positive = Field(60, description="Longest that one URL may take.")
    webhook_secret: SecretStr | None = Field(
        None, description="Signs webhooks (Standard Webhooks, whsec_…). Empty: one made at first start, in storage_dir."
    )

    tts: Literal["espeak", "openai", "off"] = Field(
        "espeak", description="What speaks `text` scripts: eSpeak NG, or any OpenAI-compatible speech endpoint."
    )
    tts_url: str = Field("", description="Of the speech endpoint, up to and with /v1.")
    tts_key: SecretStr | None = Field(None, description="Sent to the speech endpoint as a bearer token.")
    tts_model: str = Field("tts-1", description="The speech endpoint's model.")
    tts_voice: str = Field("", description="Voice if a script names none. Empty: en-gb, or alloy.")
    max_text_chars: Positive = Field(5000, description="Longest text of one script.")

    log_format: Literal["json", "console"] = Field("json", description="Log lines as JSON objects, or for people.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)

    @property
    def origins(self) -> list[str]:
        """`cors_origins`, one by one."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in filter(None, (part.strip() for part in value.split(","))):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin: scheme://host[:port] in small letters, and no path, as browsers send it"
                )
        return value

    @field_validator("public_url", "triton_metrics_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and not _BASE_URL.fullmatch(value):
            raise ValueError("must be http:// or https://, a host, and at most a port and a path")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.keys_file is None:
            if "*" in self.origins:
                raise ValueError(
                    "LIPSERVE_CORS_ORIGINS=* without LIPSERVE_KEYS_FILE would let any web page use this service"
                )
            for name in ("rate_limit", "key_concurrency"):
                if getattr(self, name):
                    raise ValueError(f"LIPSERVE_{name.upper()} limits keys: it needs LIPSERVE_KEYS_FILE")
        if self.lazy_load and self.triton_url is not None:
            raise ValueError("LIPSERVE_LAZY_LOAD is for the embedded Triton, LIPSERVE_TRITON_URL names another one")
        if self.unload_idle_seconds and not self.lazy_load:
            raise ValueError(
                "LIPSERVE_UNLOAD_IDLE_SECONDS needs LIPSERVE_LAZY_LOAD: else nothing would load the models again"
            )
        return self


def origin(field: str, options: Collection[str]) -> str:
    """Where a field's value is from: `command line` if it is among the options given there, a variable, `default`."""
    if field in options:
        return "command line"
    found = environment().get(field)
    return found[1] if found else "default"
