"""Videos sent to the service in parts, each of which may be tried again."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeVar

from pose_analyzer_client import wire
from pose_analyzer_client.backoff import ReconnectPolicy
from pose_analyzer_client.errors import (
    PoseAnalyzerClientError,
    RequestRefusedError,
    ServiceUnreachableError,
    StoreUnreachableError,
    UnreadableVideoError,
)
from pose_analyzer_client.rest import RestClient

Answer = TypeVar("Answer")
Stage = Literal["reading", "sending", "completing"]

_PIECE_BYTES: Final = 1 << 19
_READ_BYTES: Final = 1 << 22
_MAX_ROUNDS: Final = 8  # addresses hold for hours: more would mean that they never do
# Not the part's fault: the next attempt may well succeed.
_PASSING: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_PASSING_CODES: Final = frozenset({"upload-interrupted"})


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """What is told of a video, and how it is to be analysed."""

    athlete_id: str | None = None
    started_at: datetime | None = None
    """When it was recorded, with its time zone; by default now."""
    deep_mode: Literal["auto", "gpu", "cpu"] = "auto"
    """Which of the service's workers may analyse it."""
    reference: str | None = None
    """What form is compared with."""
    language: str | None = None
    """Of the report."""
    overlay: bool = False
    """Also draw what was found into the video."""
    direct: bool = True
    """Send parts straight to S3 if the service keeps videos there; false: through the service."""
    n_parallel: int = 3
    """Parts on their way at once."""

    def __post_init__(self) -> None:
        if self.n_parallel < 1:
            raise ValueError("n_parallel must be 1 or more")


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """How far an upload is."""

    stage: Stage
    """Its checksum is computed, it is sent, the service looks at it."""
    n_bytes: int
    """Read or sent so far; with `sending`, what was there already counts."""
    size_bytes: int


OnProgress = Callable[[UploadProgress], None]


class VideoUpload:
    """One file on its way to the service.

    Parameters
    ----------
    rest
        Requests to the service.
    path
        The file.
    told
        Exercise and detector, None where the service is to choose.
    options
        More of what is told and asked for.
    retries
        How long to go on after errors that may pass, for each part.
    on_progress
        Called on the event loop, after each half MiB at most.
    """

    def __init__(
        self,
        rest: RestClient,
        path: Path,
        told: dict[str, str | None],
        options: VideoOptions,
        retries: ReconnectPolicy,
        on_progress: OnProgress | None,
    ) -> None:
        self._rest = rest
        self._path = path
        self._told = {name: value for name, value in told.items() if value is not None}
        self._options = options
        self._retries = retries
        self._on_progress = on_progress
        self._size_bytes = _size_of(path)
        self._sent_bytes: dict[int, int] = {}

    async def run(self) -> wire.Video:
        """Send it, or what is missing of it; gives the stored video.

        Raises
        ------
        RequestRefusedError
            The service does not take it.
        ServiceUnreachableError, StoreUnreachableError
            Service or S3 did not answer any more; call again, and it goes on where it was.
        UnreadableVideoError
            The file cannot be read.
        """
        sha256 = await self._sha256()
        video = await self._patiently(lambda: self._begun(sha256))
        video_id = video.video_id
        for _ in range(_MAX_ROUNDS):
            if video.upload is None or not video.upload.missing:
                break
            self._sent_bytes = {
                part.number: part.size_bytes for part in video.upload.parts if part.stored
            }
            await self._send_all(video.upload)
            video = await self._patiently(lambda: self._rest.video(video_id))
        self._tell("completing", self._size_bytes)
        asked = self._asked()
        return await self._patiently(lambda: self._rest.complete_video(video_id, asked))

    async def _begun(self, sha256: str) -> wire.Video:
        """An upload of the same file that was interrupted, or a new one."""
        for found in await self._rest.videos({"state": "uploading", "sha256": sha256}):
            if (found.filename, found.athlete_id) == (self._path.name, self._options.athlete_id):
                return await self._rest.video(found.video_id)
        announcement = {
            "filename": self._path.name,
            "size_bytes": self._size_bytes,
            "sha256": sha256,
            "direct": self._options.direct,
        }
        optional = {
            "athlete_id": self._options.athlete_id,
            "exercise": self._told.get("exercise"),
            "started_at": self._options.started_at and self._options.started_at.isoformat(),
        }
        given = {name: value for name, value in optional.items() if value is not None}
        return await self._rest.announce_video(announcement | given)

    def _asked(self) -> dict[str, Any]:
        asked = self._told | {
            "deep_mode": self._options.deep_mode,
            "overlay": self._options.overlay,
            "reference": self._options.reference,
            "language": self._options.language,
        }
        return {name: value for name, value in asked.items() if value is not None}

    async def _send_all(self, upload: wire.VideoUpload) -> None:
        """Send what is missing, a few parts at a time."""
        turns = asyncio.Semaphore(self._options.n_parallel)

        async def send(part: wire.VideoPart) -> None:
            async with turns:
                await self._send(part, part.number * upload.part_bytes)

        tasks = [asyncio.create_task(send(part)) for part in upload.missing]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, part: wire.VideoPart, start: int) -> None:
        """Send one part; one whose address no longer holds is left for the next round."""
        assert part.url is not None  # noqa: S101 - only parts that are there have none
        url = part.url
        try:
            await self._patiently(
                lambda: self._rest.put(url, self._pieces(part, start), part.size_bytes)
            )
        except RequestRefusedError as error:
            self._note(part.number, 0)
            if error.status != HTTPStatus.FORBIDDEN:
                raise

    async def _pieces(self, part: wire.VideoPart, start: int) -> AsyncIterator[bytes]:
        with _opened(self._path) as file:
            file.seek(start)
            n_bytes = 0
            while n_bytes < part.size_bytes:
                wanted = min(_PIECE_BYTES, part.size_bytes - n_bytes)
                piece = await asyncio.to_thread(file.read, wanted)
                if not piece:
                    raise UnreadableVideoError(str(self._path), "it became shorter meanwhile.")
                yield piece
                n_bytes += len(piece)
                self._note(part.number, n_bytes)

    async def _sha256(self) -> str:
        digest = hashlib.sha256()
        n_bytes = 0
        with _opened(self._path) as file:
            while piece := await asyncio.to_thread(file.read, _READ_BYTES):
                await asyncio.to_thread(digest.update, piece)
                n_bytes += len(piece)
                self._tell("reading", n_bytes)
        return digest.hexdigest()

    async def _patiently(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Ask again after errors that may pass, as long as `ReconnectPolicy` says."""
        began_s = self._retries.clock()
        for delay_s in self._retries.delays_s():
            try:
                return await ask()
            except PoseAnalyzerClientError as error:
                waited_s = self._retries.clock() - began_s
                if not _may_pass(error) or waited_s > self._retries.give_up_after_s:
                    raise
            await self._retries.sleep(delay_s)
        return await ask()

    def _note(self, number: int, n_bytes: int) -> None:
        self._sent_bytes[number] = n_bytes
        self._tell("sending", sum(self._sent_bytes.values()))

    def _tell(self, stage: Stage, n_bytes: int) -> None:
        if self._on_progress is not None:
            self._on_progress(UploadProgress(stage, n_bytes, self._size_bytes))


def _may_pass(error: PoseAnalyzerClientError) -> bool:
    if isinstance(error, RequestRefusedError):
        return error.status in _PASSING or error.code in _PASSING_CODES
    return isinstance(error, ServiceUnreachableError | StoreUnreachableError)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UnreadableVideoError(str(path), f"it cannot be read: {error.strerror}.") from error


def _size_of(path: Path) -> int:
    if not path.is_file():
        raise UnreadableVideoError(str(path), "not a file." if path.exists() else "no such file.")
    size_bytes = path.stat().st_size
    if not size_bytes:
        raise UnreadableVideoError(str(path), "it is empty.")
    return size_bytes
