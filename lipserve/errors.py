"""Every error a caller can see, with its HTTP status and a stable `kind`.

LipserveError                       500  internal
├── InvalidParameter                422  invalid_parameter
│   ├── InvalidAvatarId             422  invalid_avatar_id
│   └── PathNotAllowed              422  path_not_allowed
├── UploadStalled                   408  upload_stalled
├── PayloadTooLarge                 413  payload_too_large
├── BadMedia                        422  (one of its children)
│   ├── NotAVideo                   422  not_a_video
│   ├── VideoDamaged                422  video_damaged
│   ├── VideoTooLarge               422  video_too_large
│   ├── NoFace                      422  no_face
│   ├── NotAudio                    422  not_audio
│   ├── AudioDamaged                422  audio_damaged
│   ├── AudioTooShort               422  audio_too_short
│   ├── AudioTooLong                422  audio_too_long
│   └── NotImportable               422  not_importable
│       └── UnsafePickle            422  unsafe_pickle
├── AvatarNotFound                  404  avatar_not_found
├── AvatarExists                    409  avatar_exists
├── AvatarBusy                      409  avatar_busy
├── AvatarDamaged                   409  avatar_damaged
├── AvatarOutdated                  409  avatar_outdated
├── StorageFull                     507  storage_full
├── Cancelled                       499  cancelled
├── ModelsMissing                   503  models_missing
├── EncoderUnavailable              503  encoder_unavailable
├── ServiceBusy                     503  service_busy        (Retry-After)
├── TritonDidNotStart               503  triton_did_not_start
├── TritonUnavailable               503  triton_unavailable  (Retry-After)
├── SharedMemoryUnusable            503  shared_memory_unusable
└── TritonFailed                    502  triton_failed

The message says what is wrong with this input; `hint` says what to do.
"""

from typing import ClassVar


class LipserveError(Exception):
    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal"
    retry_after: ClassVar[int | None] = None  # seconds

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidParameter(LipserveError):
    status = 422
    kind = "invalid_parameter"


class InvalidAvatarId(InvalidParameter):
    kind = "invalid_avatar_id"


class PathNotAllowed(InvalidParameter):
    kind = "path_not_allowed"


class UploadStalled(LipserveError):
    status = 408
    kind = "upload_stalled"


class PayloadTooLarge(LipserveError):
    status = 413
    kind = "payload_too_large"


class BadMedia(LipserveError):
    status = 422
    kind = "bad_media"


class NotAVideo(BadMedia):
    kind = "not_a_video"


class VideoDamaged(BadMedia):
    kind = "video_damaged"


class VideoTooLarge(BadMedia):
    kind = "video_too_large"


class NoFace(BadMedia):
    kind = "no_face"


class NotAudio(BadMedia):
    kind = "not_audio"


class AudioDamaged(BadMedia):
    kind = "audio_damaged"


class AudioTooShort(BadMedia):
    kind = "audio_too_short"


class AudioTooLong(BadMedia):
    kind = "audio_too_long"


class NotImportable(BadMedia):
    kind = "not_importable"


class UnsafePickle(NotImportable):
    kind = "unsafe_pickle"


class AvatarNotFound(LipserveError):
    status = 404
    kind = "avatar_not_found"


class AvatarExists(LipserveError):
    status = 409
    kind = "avatar_exists"


class AvatarBusy(LipserveError):
    status = 409
    kind = "avatar_busy"


class AvatarDamaged(LipserveError):
    status = 409
    kind = "avatar_damaged"


class AvatarOutdated(LipserveError):
    status = 409
    kind = "avatar_outdated"


class StorageFull(LipserveError):
    status = 507
    kind = "storage_full"


class Cancelled(LipserveError):
    status = 499  # nobody is left to read it; for the log
    kind = "cancelled"


class ModelsMissing(LipserveError):
    status = 503
    kind = "models_missing"


class EncoderUnavailable(LipserveError):
    status = 503
    kind = "encoder_unavailable"


class ServiceBusy(LipserveError):
    status = 503
    kind = "service_busy"
    retry_after = 5


class TritonUnavailable(LipserveError):
    status = 503
    kind = "triton_unavailable"
    retry_after = 5


class SharedMemoryUnusable(LipserveError):
    status = 503
    kind = "shared_memory_unusable"


class TritonDidNotStart(LipserveError):
    status = 503
    kind = "triton_did_not_start"


class TritonFailed(LipserveError):
    status = 502
    kind = "triton_failed"
