"""One table from error class to HTTP status; every refusal is an RFC 9457 problem document."""

from http import HTTPStatus
from typing import Final

from fastapi import FastAPI

from pose_analyzer.errors import (
    BackendFailedError,
    DatabaseUnavailableError,
    GpuWorkersDisabledError,
    InvalidReferenceError,
    ModelUnavailableError,
    NoCapacityError,
    NotAVideoError,
    NothingThereError,
    PoseAnalyzerError,
    ResultNotReadyError,
    SourceNotAllowedError,
    SourceNotFoundError,
    TooMuchAskedError,
    UnknownAthleteError,
    UnknownJobError,
    UnknownNameError,
    UnknownSessionError,
    UnknownStreamError,
    UnreadableSourceError,
)
from pose_analyzer.upload_errors import (
    ArtifactMissingError,
    ChecksumMismatchError,
    InvalidFileNameError,
    MalformedFormError,
    OverQuotaError,
    PartTooLargeError,
    StorageFullError,
    StorageUnavailableError,
    UnknownPartError,
    UnknownVideoError,
    UnsupportedVideoTypeError,
    UploadAddressError,
    UploadFinishedError,
    UploadIncompleteError,
    UploadInterruptedError,
    UploadStalledError,
    VideoNotStoredError,
    VideoTooLargeError,
    VideoTooLongError,
    WrongPartSizeError,
)
from shared_utils.errors import ProjectError
from shared_utils.problems import ProblemHandlers, ProblemKind


class TooManyPixelsError(PoseAnalyzerError):
    """An image that would take too much memory once decoded."""

    def __init__(self, max_pixels: int) -> None:
        super().__init__(
            f"The image has more than {max_pixels} pixels, which is the most that is accepted; "
            "send it scaled down."
        )
        self.max_pixels = max_pixels


class ClipTooLongError(PoseAnalyzerError):
    """A clip that would keep the service busy for too long."""

    def __init__(self, duration_s: float, max_s: float) -> None:
        super().__init__(
            f"The clip lasts {duration_s:.0f} s, and {max_s:.0f} s is the most that is accepted; "
            "send a part of it, or analyse it with pose-analyzer analyze."
        )
        self.duration_s = duration_s
        self.max_s = max_s


class UnknownReferenceError(PoseAnalyzerError):
    """A reference that is not there, or cannot be forgotten."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no such reference {name!r}; GET /references lists them.")
        self.name = name


PROBLEMS: Final[dict[type[ProjectError], ProblemKind]] = {
    UnreadableSourceError: ProblemKind(
        "not-an-image", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The upload is not a readable image"
    ),
    NotAVideoError: ProblemKind(
        "not-a-video", HTTPStatus.UNPROCESSABLE_ENTITY, "The source is not a readable video"
    ),
    TooManyPixelsError: ProblemKind(
        "too-many-pixels", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The image is too large"
    ),
    UnknownNameError: ProblemKind(
        "unknown-name", HTTPStatus.UNPROCESSABLE_ENTITY, "There is nothing of that name"
    ),
    ClipTooLongError: ProblemKind(
        "clip-too-long", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The clip is too long"
    ),
    UnknownReferenceError: ProblemKind(
        "unknown-reference", HTTPStatus.NOT_FOUND, "There is no such reference"
    ),
    InvalidReferenceError: ProblemKind(
        "invalid-reference", HTTPStatus.UNPROCESSABLE_ENTITY, "That is no reference"
    ),
    UnknownStreamError: ProblemKind(
        "unknown-stream", HTTPStatus.NOT_FOUND, "There is no such stream"
    ),
    SourceNotFoundError: ProblemKind(
        "unknown-source", HTTPStatus.NOT_FOUND, "There is no such file"
    ),
    SourceNotAllowedError: ProblemKind(
        "source-not-allowed", HTTPStatus.FORBIDDEN, "The service may not read this source"
    ),
    NoCapacityError: ProblemKind(
        "no-capacity", HTTPStatus.SERVICE_UNAVAILABLE, "There is no room for another stream"
    ),
    ModelUnavailableError: ProblemKind(
        "model-unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "The model is not on this machine"
    ),
    UnknownJobError: ProblemKind("unknown-job", HTTPStatus.NOT_FOUND, "There is no such job"),
    VideoNotStoredError: ProblemKind(
        "video-not-stored", HTTPStatus.CONFLICT, "The video cannot be analysed"
    ),
    ResultNotReadyError: ProblemKind(
        "result-not-ready", HTTPStatus.CONFLICT, "The result is not there yet"
    ),
    GpuWorkersDisabledError: ProblemKind(
        "gpu-workers-disabled", HTTPStatus.CONFLICT, "Workers with a GPU are switched off"
    ),
    DatabaseUnavailableError: ProblemKind(
        "database-unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "The database is not available"
    ),
    UnknownAthleteError: ProblemKind(
        "unknown-athlete", HTTPStatus.NOT_FOUND, "There is no such athlete"
    ),
    UnknownSessionError: ProblemKind(
        "unknown-session", HTTPStatus.NOT_FOUND, "There is no such session"
    ),
    NothingThereError: ProblemKind("nothing-there", HTTPStatus.NOT_FOUND, "There is nothing there"),
    TooMuchAskedError: ProblemKind(
        "too-much-asked", HTTPStatus.UNPROCESSABLE_ENTITY, "One answer cannot hold that"
    ),
    BackendFailedError: ProblemKind(
        "detector-failed", HTTPStatus.SERVICE_UNAVAILABLE, "The detector failed"
    ),
}


UPLOAD_PROBLEMS: Final[dict[type[ProjectError], ProblemKind]] = {
    InvalidFileNameError: ProblemKind(
        "invalid-file-name", HTTPStatus.UNPROCESSABLE_ENTITY, "The file's name is not accepted"
    ),
    UnsupportedVideoTypeError: ProblemKind(
        "unsupported-video-type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The file is no video"
    ),
    VideoTooLargeError: ProblemKind(
        "video-too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The video is too large"
    ),
    VideoTooLongError: ProblemKind(
        "video-too-long", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The video is too long"
    ),
    OverQuotaError: ProblemKind(
        "over-quota", HTTPStatus.INSUFFICIENT_STORAGE, "There is no room for another video"
    ),
    UnknownVideoError: ProblemKind("unknown-video", HTTPStatus.NOT_FOUND, "There is no such video"),
    UnknownPartError: ProblemKind("unknown-part", HTTPStatus.NOT_FOUND, "There is no such part"),
    WrongPartSizeError: ProblemKind(
        "wrong-part-size", HTTPStatus.UNPROCESSABLE_ENTITY, "The part is not whole"
    ),
    PartTooLargeError: ProblemKind(
        "part-too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The part is too large"
    ),
    UploadFinishedError: ProblemKind("upload-finished", HTTPStatus.CONFLICT, "The upload is over"),
    UploadIncompleteError: ProblemKind(
        "upload-incomplete", HTTPStatus.CONFLICT, "Parts are missing"
    ),
    ChecksumMismatchError: ProblemKind(
        "checksum-mismatch", HTTPStatus.UNPROCESSABLE_ENTITY, "Something else was announced"
    ),
    UploadInterruptedError: ProblemKind(
        "upload-interrupted", HTTPStatus.BAD_REQUEST, "The connection broke"
    ),
    UploadStalledError: ProblemKind(
        "upload-stalled", HTTPStatus.REQUEST_TIMEOUT, "Nothing came for too long"
    ),
    MalformedFormError: ProblemKind(
        "malformed-form", HTTPStatus.BAD_REQUEST, "The form cannot be used"
    ),
    UploadAddressError: ProblemKind(
        "upload-address-invalid", HTTPStatus.FORBIDDEN, "The address cannot be used"
    ),
    ArtifactMissingError: ProblemKind(
        "file-missing", HTTPStatus.NOT_FOUND, "There is no such stored file"
    ),
    StorageUnavailableError: ProblemKind(
        "storage-unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "Stored files cannot be reached"
    ),
    StorageFullError: ProblemKind(
        "storage-full", HTTPStatus.INSUFFICIENT_STORAGE, "There is no room for files"
    ),
}


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of the service end in a problem document."""
    ProblemHandlers("pose-analyzer", PROBLEMS | UPLOAD_PROBLEMS).install(app)
