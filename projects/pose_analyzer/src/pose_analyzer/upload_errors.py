"""Why an upload is refused, and why stored files cannot be had."""

import uuid
from typing import Final

from pose_analyzer.errors import PoseAnalyzerError
from shared_utils.units import format_bytes

_N_LISTED: Final = 10


class InvalidFileNameError(PoseAnalyzerError):
    """A name that could be taken for a path, or cannot be shown."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"This name of a file is not accepted: {reason}. Send the name alone, without folders, "
            "such as squats.mp4."
        )
        self.reason = reason


class UnsupportedVideoTypeError(PoseAnalyzerError):
    """An upload that says of itself that it is no video."""

    def __init__(self, told: str, known: tuple[str, ...]) -> None:
        super().__init__(
            f"{told!r} is no kind of video that is accepted. Send one of: {', '.join(known)}."
        )
        self.told = told
        self.known = known


class VideoTooLargeError(PoseAnalyzerError):
    """A video of more bytes than are accepted."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"The video has more than {max_bytes} bytes ({format_bytes(max_bytes)}), which is the "
            "most that is accepted. Send a part of it, or compress it more; whoever runs the "
            "service can raise POSE_MAX_VIDEO_BYTES."
        )
        self.max_bytes = max_bytes


class VideoTooLongError(PoseAnalyzerError):
    """A video of more seconds than are accepted."""

    def __init__(self, duration_s: float, max_s: float) -> None:
        super().__init__(
            f"The video lasts {duration_s:.0f} s, and {max_s:.0f} s is the most that is accepted. "
            "Send a part of it; whoever runs the service can raise POSE_MAX_VIDEO_SECONDS."
        )
        self.duration_s = duration_s
        self.max_s = max_s


class OverQuotaError(PoseAnalyzerError):
    """A video for which the stored ones leave no room."""

    def __init__(self, size_bytes: int, used_bytes: int, quota_bytes: int) -> None:
        super().__init__(
            f"Stored videos take {format_bytes(used_bytes)} of {format_bytes(quota_bytes)}; "
            f"another {format_bytes(size_bytes)} does not fit. Delete some with "
            "DELETE /videos/{video_id}; whoever runs the service can raise POSE_VIDEO_QUOTA_BYTES."
        )
        self.size_bytes = size_bytes
        self.used_bytes = used_bytes
        self.quota_bytes = quota_bytes


class UnknownVideoError(PoseAnalyzerError):
    """A video that was never announced, or has been deleted."""

    def __init__(self, video_id: uuid.UUID) -> None:
        super().__init__(f"There is no video {video_id}. GET /videos lists them.")
        self.video_id = video_id


class UnknownPartError(PoseAnalyzerError):
    """A part the upload does not have."""

    def __init__(self, number: int, n_parts: int) -> None:
        super().__init__(
            f"This upload has no part {number}; its {n_parts} parts are counted from 0."
        )
        self.number = number
        self.n_parts = n_parts


class WrongPartSizeError(PoseAnalyzerError):
    """A part of too few bytes."""

    def __init__(self, number: int, expected_bytes: int, told: str) -> None:
        super().__init__(
            f"Part {number} of this upload has {expected_bytes} bytes; {told}. Nothing of it was "
            "kept; send the part again, whole."
        )
        self.number = number
        self.expected_bytes = expected_bytes


class PartTooLargeError(WrongPartSizeError):
    """A part of too many bytes."""


class UploadFinishedError(PoseAnalyzerError):
    """A part for an upload that is over."""

    def __init__(self, video_id: uuid.UUID, state: str) -> None:
        super().__init__(
            f"The upload of video {video_id} is over, the video is {state}. Begin another one with "
            "POST /videos."
        )
        self.video_id = video_id
        self.state = state


class VideoNotStoredError(PoseAnalyzerError):
    """A video that cannot be analysed, because it is not there yet or was refused."""

    def __init__(self, video_id: object, state: str) -> None:
        super().__init__(
            f"Video {video_id} is {state}; only a stored one can be analysed. "
            f"GET /videos/{video_id} tells what is missing."
        )
        self.video_id = str(video_id)
        self.state = state


class UploadIncompleteError(PoseAnalyzerError):
    """An upload of which parts are missing."""

    def __init__(self, missing: tuple[int, ...]) -> None:
        listed = ", ".join(map(str, missing[:_N_LISTED]))
        more = f" and {len(missing) - _N_LISTED} more" if len(missing) > _N_LISTED else ""
        super().__init__(
            f"Parts are missing: {listed}{more}. Send them, then complete the upload again; "
            "GET /videos/{video_id} tells where to."
        )
        self.missing = missing


class ChecksumMismatchError(PoseAnalyzerError):
    """An upload whose content is not what was announced."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(
            f"What arrived has the SHA-256 {actual}, announced was {expected}. The upload was "
            "discarded; begin another one with POST /videos."
        )
        self.expected = expected
        self.actual = actual


class UploadInterruptedError(PoseAnalyzerError):
    """A body that broke off on its way."""

    def __init__(self) -> None:
        super().__init__(
            "The connection broke before everything had arrived. Nothing of this request was kept; "
            "send it again."
        )


class UploadStalledError(PoseAnalyzerError):
    """A body of which nothing came for a long time."""

    def __init__(self, idle_s: float) -> None:
        super().__init__(
            f"Nothing came for {idle_s:g} s. Nothing of this request was kept; send it again, with "
            "fewer others beside it."
        )
        self.idle_s = idle_s


class MalformedFormError(PoseAnalyzerError):
    """A multipart form that is not one, or not the one that is expected."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The multipart form cannot be used: {reason}. Send one field `file` with the video, "
            "and the other fields as short texts."
        )
        self.reason = reason


class UploadAddressError(PoseAnalyzerError):
    """An address for a part that the service did not give out, or long ago."""

    def __init__(self) -> None:
        super().__init__(
            "The address of this part is not one the service gave out, or has expired. "
            "GET /videos/{video_id} gives new ones."
        )


class ArtifactMissingError(PoseAnalyzerError):
    """A stored file that is not there."""

    def __init__(self, key: str) -> None:
        super().__init__(f"There is no stored file {key}; it may have been deleted.")
        self.key = key


class StorageUnavailableError(PoseAnalyzerError):
    """Stored files cannot be reached."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "Stored files cannot be reached at present. Try again later; whoever runs the service "
            "finds the cause in its log."
        )
        self.reason = reason
        """Not for clients: it may name servers and folders."""
        self.retry_after_s = 10.0


class StorageFullError(PoseAnalyzerError):
    """There is no room left where files are stored."""

    def __init__(self) -> None:
        super().__init__(
            "There is no room left where videos are stored. Delete some with "
            "DELETE /videos/{video_id}, or ask whoever runs the service for more room; what "
            "arrived so far is kept, and the upload can go on."
        )
