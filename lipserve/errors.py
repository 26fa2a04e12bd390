"""Every error a caller can see, with its HTTP status and a stable `kind`.

LipserveError                       500  internal
├── InvalidParameter                422  invalid_parameter
│   ├── InvalidAvatarId             422  invalid_avatar_id
│   ├── PathNotAllowed              422  path_not_allowed
│   └── UrlNotAllowed               422  url_not_allowed
├── Unauthorized                    401  unauthorized        (WWW-Authenticate)
├── JobNotFound                     404  job_not_found
├── UploadNotFound                  404  upload_not_found
├── LinkExpired                     403  link_expired
├── JobNotDone                      409  job_not_done
├── QueueFull                       429  queue_full          (Retry-After)
├── RateLimited                     429  rate_limited        (Retry-After)
├── JobTimedOut                     504  job_timed_out
├── Interrupted                     500  interrupted
├── FetchFailed                     422  fetch_failed
├── DeliveryFailed                  422  delivery_failed
├── SpeechUnavailable               503  speech_unavailable
├── StorageInUse                    503  storage_in_use
├── StorageForeign                  503  storage_foreign
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
├── AvatarUndrawable                409  avatar_undrawable
├── StorageFull                     507  storage_full
├── Cancelled                       499  cancelled
├── ModelsMissing                   503  models_missing
├── EncoderUnavailable              503  encoder_unavailable
├── ServiceBusy                     503  service_busy        (Retry-After)
├── TritonDidNotStart               503  triton_did_not_start
├── TritonUnavailable               503  triton_unavailable  (Retry-After)
├── SharedMemoryUnusable            503  shared_memory_unusable
├── TritonFailed                    502  triton_failed
├── ServiceUnreachable              503  service_unreachable  (lipserve.client's own)
└── ServiceError                    502  service_error        (likewise: an answer that it does not know)

The message says what is wrong with this input; `hint` says what to do.
"""

from typing import ClassVar


class LipserveError(Exception):
    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal"
    retry_after: int | None = None  # seconds

    def __init__(self, message: str, hint: str = "", retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if retry_after is not None:
            self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidParameter(LipserveError):
    status = 422
    kind = "invalid_parameter"


class InvalidAvatarId(InvalidParameter):
    kind = "invalid_avatar_id"


class PathNotAllowed(InvalidParameter):
    kind = "path_not_allowed"


class UrlNotAllowed(InvalidParameter):
    kind = "url_not_allowed"


class Unauthorized(LipserveError):
    status = 401
    kind = "unauthorized"


class JobNotFound(LipserveError):
    status = 404
    kind = "job_not_found"


class UploadNotFound(LipserveError):
    status = 404
    kind = "upload_not_found"


class LinkExpired(LipserveError):
    status = 403
    kind = "link_expired"


class JobNotDone(LipserveError):
    status = 409
    kind = "job_not_done"


class QueueFull(LipserveError):
    status = 429
    kind = "queue_full"
    retry_after = 5


class RateLimited(LipserveError):
    status = 429
    kind = "rate_limited"
    retry_after = 5


class JobTimedOut(LipserveError):
    status = 504
    kind = "job_timed_out"


class Interrupted(LipserveError):
    status = 500
    kind = "interrupted"


class FetchFailed(LipserveError):
    status = 422
    kind = "fetch_failed"


class DeliveryFailed(LipserveError):
    status = 422
    kind = "delivery_failed"


class SpeechUnavailable(LipserveError):
    status = 503
    kind = "speech_unavailable"


class StorageInUse(LipserveError):
    status = 503
    kind = "storage_in_use"


class StorageForeign(LipserveError):
    status = 503
    kind = "storage_foreign"


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


class AvatarUndrawable(LipserveError):
    """Its masks show rows of the face that the served decoder does not draw."""

    status = 409
    kind = "avatar_undrawable"


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


class ServiceUnreachable(LipserveError):
    """The client's: nothing answers, or not to the end."""

    status = 503
    kind = "service_unreachable"


class ServiceError(LipserveError):
    """The client's: an answer that is no error of this version's, or nothing of lipserve's at all."""

    status = 502
    kind = "service_error"

    def __init__(
        self,
        message: str,
        hint: str = "",
        retry_after: int | None = None,
        answer_status: int | None = None,
        answer_kind: str | None = None,
    ) -> None:
        super().__init__(message, hint, retry_after)
        self.answer_status, self.answer_kind = answer_status, answer_kind


def by_kind() -> dict[str, type[LipserveError]]:
    """Every error's class."""
    found: dict[str, type[LipserveError]] = {}
    open_: list[type[LipserveError]] = [LipserveError]
    while open_:
        error = open_.pop()
        found[error.kind] = error
        open_ += error.__subclasses__()
    return found
