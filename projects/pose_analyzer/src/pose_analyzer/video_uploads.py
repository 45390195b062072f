"""Uploads of recorded videos: announced, sent in parts, put together, looked at, stored.

Parts are stored files of their own until all are there. So they may come in any order, more than
once, to the service or straight to S3; what is there can be listed; and the video that was looked
at cannot be changed afterwards by whoever still has an address of a part.
"""

import contextlib
import hashlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pose_analyzer.artifact_keys import part_key, part_number, upload_prefix
from pose_analyzer.db_connector import Database
from pose_analyzer.errors import NotAVideoError, UnknownSessionError, UnreadableSourceError
from pose_analyzer.session_deletion import delete_session
from pose_analyzer.storage.artifacts import (
    ArtifactStore,
    delete_session_files,
    disk_errors,
)
from pose_analyzer.storage.models import VideoState
from pose_analyzer.storage.videos import (
    JobRequest,
    NewVideo,
    StartJob,
    StoredFacts,
    VideoFilter,
    VideoRecord,
    abandoned_videos,
    add_video,
    finish_video,
    list_videos,
    read_video,
    refuse_video,
    stored_bytes,
)
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.upload_errors import (
    ArtifactMissingError,
    ChecksumMismatchError,
    OverQuotaError,
    StorageFullError,
    UnknownPartError,
    UnknownVideoError,
    UploadFinishedError,
    UploadIncompleteError,
    VideoTooLargeError,
    VideoTooLongError,
)
from pose_analyzer.upload_rules import (
    PartPlan,
    check_content_type,
    check_filename,
    plan_parts,
    video_suffix,
)

ABANDONED_AFTER_S: Final = 48 * 3600.0
"""Four GiB at 200 kbit/s."""
_MAX_TIDIED: Final = 10  # who announces a video should not wait for a hundred deletions
_INCOMING: Final = "incoming"

ReadDuration = Callable[[Path], float]
"""Opens a video and gives its seconds; raises `UnreadableSourceError` if it is none."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a client says of a video it wants to upload; not checked yet."""

    filename: str
    size_bytes: int
    sha256: str | None = None
    """Hexadecimal."""
    content_type: str | None = None
    athlete_id: uuid.UUID | None = None
    exercise: str | None = None
    started_at: datetime | None = None
    direct: bool = True


class VideoUploads:
    """What the service does with uploads; every call may wait for disks and servers.

    Parameters
    ----------
    database, store
        Where rows and files go.
    settings
        What is accepted, and where files wait.
    read_duration
        Looks whether a file is a video.
    start_job
        Queues the analysis of a stored video; None where nothing is analysed.

    Raises
    ------
    DatabaseUnavailableError, StorageUnavailableError, StorageFullError
        Every call.
    """

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        settings: StorageSettings,
        read_duration: ReadDuration,
        start_job: StartJob | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._settings = settings
        self._read_duration = read_duration
        self._start_job = start_job
        self._incoming = settings.data_dir / _INCOMING

    def announce(self, told: Announcement) -> VideoRecord:
        """Begin an upload in parts.

        Raises
        ------
        InvalidFileNameError, UnsupportedVideoTypeError, VideoTooLargeError, OverQuotaError
            It will not be accepted.
        UnknownAthleteError
            There is no such athlete.
        """
        self._remove_abandoned()
        new = self._checked(told)
        self.check_room(new.size_bytes)
        with self._database.session() as session:
            return add_video(session, new, self._settings.video_quota_bytes)

    def check_room(self, size_bytes: int) -> None:
        """Refuse a size before anything is sent.

        Raises
        ------
        VideoTooLargeError, OverQuotaError, StorageFullError
            There is no room for it.
        """
        if size_bytes > self._settings.max_video_bytes:
            raise VideoTooLargeError(self._settings.max_video_bytes)
        quota_bytes = self._settings.video_quota_bytes
        with self._database.session() as session:
            used_bytes = stored_bytes(session)
        if used_bytes + size_bytes > quota_bytes:
            raise OverQuotaError(size_bytes, used_bytes, quota_bytes)
        # Parts and what they are put together to are on the disk at the same time.
        n_copies = 1 if self._store.gives_addresses else 2
        with disk_errors(_INCOMING):
            self._incoming.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self._incoming).free < n_copies * size_bytes:
                raise StorageFullError

    def read(self, video_id: uuid.UUID) -> VideoRecord:
        """One video.

        Raises
        ------
        UnknownVideoError
            There is none of that id.
        """
        with self._database.session() as session:
            return read_video(session, video_id)

    def find(self, wanted: VideoFilter) -> list[VideoRecord]:
        """Videos, the latest first."""
        with self._database.session() as session:
            return list_videos(session, wanted)

    def missing_parts(self, video: VideoRecord) -> tuple[int, ...]:
        """Which parts of an upload are still to be sent."""
        found = self._store.sizes_bytes(upload_prefix(video.session_id))
        sizes_bytes = {
            number: size for key, size in found.items() if (number := part_number(key)) is not None
        }
        return _plan(video).missing(sizes_bytes)

    def direct_addresses(
        self, video: VideoRecord, numbers: tuple[int, ...], expires_s: float
    ) -> list[str] | None:
        """Where parts go without passing through the service; None if they must pass through it."""
        if not (video.direct and self._store.gives_addresses):
            return None
        keys = [part_key(video.session_id, number) for number in numbers]
        return self._store.presign(keys, "PUT", expires_s)

    def expected_bytes(self, video_id: uuid.UUID, number: int) -> int:
        """Size that a part must have.

        Raises
        ------
        UnknownVideoError, UnknownPartError, UploadFinishedError
            It is not to be sent.
        """
        video = self.read(video_id)
        if video.state is not VideoState.UPLOADING:
            raise UploadFinishedError(video_id, video.state)
        plan = _plan(video)
        if not 0 <= number < plan.n_parts:
            raise UnknownPartError(number, plan.n_parts)
        return plan.size_of(number)

    def store_part(self, video_id: uuid.UUID, number: int, path: Path) -> None:
        """Keep a part that has arrived whole, in place of an earlier one.

        Raises
        ------
        UnknownVideoError, UploadFinishedError
            The upload ended meanwhile; the part is not kept.
        """
        key = part_key(self.read(video_id).session_id, number)
        self._store.adopt(key, path)
        try:
            self.expected_bytes(video_id, number)
        except (UnknownVideoError, UploadFinishedError):
            self._store.delete(key)
            raise

    def complete(self, video_id: uuid.UUID, request: JobRequest) -> VideoRecord:
        """Put an upload together, look at it, store it and queue its analysis.

        A video that is stored already is given as it is. What is no video, or not the one that was
        announced, is refused and its parts are removed.

        Raises
        ------
        UploadIncompleteError
            Parts are missing; the upload can go on.
        ChecksumMismatchError, NotAVideoError, VideoTooLongError
            It is refused.
        UnknownVideoError, UploadFinishedError
            It was deleted, or refused before.
        """
        video = self.read(video_id)
        if video.state is VideoState.REFUSED:
            raise UploadFinishedError(video_id, video.state)
        if video.state is VideoState.STORED:
            self._store.delete_prefix(upload_prefix(video.session_id))
            return video
        try:
            with self.incoming_file() as path:
                facts = self._look_at(path, self._put_together(video, path), video)
                self._store.adopt(video.artifact_key, path)
        except (ArtifactMissingError, UploadIncompleteError):
            # Unless somebody else has completed it in the meantime.
            if self.read(video_id).state is VideoState.STORED:
                return self.complete(video_id, request)
            raise
        except (ChecksumMismatchError, NotAVideoError, VideoTooLongError) as error:
            with self._database.session() as session:
                refuse_video(session, video_id, str(error))
            self._store.delete_prefix(upload_prefix(video.session_id))
            raise
        stored = self._finish(video, facts, request)
        self._store.delete_prefix(upload_prefix(video.session_id))
        return stored

    def store_whole(
        self, path: Path, told: Announcement, sha256: str, request: JobRequest
    ) -> VideoRecord:
        """Store a video that has arrived in one piece; what is refused leaves nothing.

        Parameters
        ----------
        path
            Made by `incoming_file`.
        told
            What the client says of it.
        sha256
            Of what arrived.
        request
            How it is to be analysed.

        Raises
        ------
        InvalidFileNameError, UnsupportedVideoTypeError, VideoTooLargeError, OverQuotaError
            It is not accepted.
        ChecksumMismatchError, NotAVideoError, VideoTooLongError
            Nor is this.
        UnknownAthleteError
            There is no such athlete.
        """
        new = self._checked(told)
        facts = self._look_at(path, sha256, new)
        with self._database.session() as session:
            video = add_video(session, new, self._settings.video_quota_bytes)
        try:
            self._store.adopt(video.artifact_key, path)
            return self._finish(video, facts, request)
        except BaseException:
            self.delete(video.video_id)
            raise

    def delete(self, video_id: uuid.UUID) -> None:
        """Remove a video with its session, its analyses and what they found.

        Raises
        ------
        UnknownVideoError
            There is none of that id.
        """
        video = self.read(video_id)
        try:
            delete_session(self._database, self._store, video.session_id)
        except UnknownSessionError as error:
            raise UnknownVideoError(video_id) from error

    @contextlib.contextmanager
    def incoming_file(self) -> Iterator[Path]:
        """Path of a file to write to, which is gone afterwards unless it has been moved away."""
        with disk_errors(_INCOMING):
            self._incoming.mkdir(parents=True, exist_ok=True)
        path = self._incoming / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _checked(self, told: Announcement) -> NewVideo:
        filename = check_filename(told.filename)
        suffix = video_suffix(filename)
        check_content_type(told.content_type)
        if told.size_bytes > self._settings.max_video_bytes:
            raise VideoTooLargeError(self._settings.max_video_bytes)
        return NewVideo(
            filename=filename,
            suffix=suffix,
            size_bytes=told.size_bytes,
            part_bytes=plan_parts(told.size_bytes).part_bytes,
            sha256=None if told.sha256 is None else told.sha256.lower(),
            athlete_id=told.athlete_id,
            exercise=told.exercise,
            started_at=told.started_at,
            direct=told.direct,
        )

    def _put_together(self, video: VideoRecord, path: Path) -> str:
        """Write all parts to one file; gives its SHA-256."""
        missing = self.missing_parts(video)
        if missing:
            raise UploadIncompleteError(missing)
        digest = hashlib.sha256()
        plan = _plan(video)
        with disk_errors(_INCOMING), path.open("wb") as file:
            for number in range(plan.n_parts):
                n_bytes = 0
                for piece in self._store.stream(part_key(video.session_id, number)):
                    digest.update(piece)
                    n_bytes += file.write(piece)
                if n_bytes != plan.size_of(number):  # replaced meanwhile, straight in S3
                    raise UploadIncompleteError((number,))
        return digest.hexdigest()

    def _look_at(self, path: Path, sha256: str, video: NewVideo | VideoRecord) -> StoredFacts:
        if video.sha256 is not None and video.sha256 != sha256:
            raise ChecksumMismatchError(video.sha256, sha256)
        try:
            duration_s = self._read_duration(path)
        except UnreadableSourceError as error:
            raise NotAVideoError(video.filename, error.reason) from error
        if duration_s > self._settings.max_video_seconds:
            raise VideoTooLongError(duration_s, self._settings.max_video_seconds)
        return StoredFacts(sha256, duration_s)

    def _finish(self, video: VideoRecord, facts: StoredFacts, request: JobRequest) -> VideoRecord:
        try:
            with self._database.session() as session:
                return finish_video(session, video.video_id, facts, request, self._start_job)
        except UnknownVideoError:
            delete_session_files(self._store, video.session_id)
            raise

    def _remove_abandoned(self) -> None:
        """Forget uploads that nobody went on with, and files of processes that were killed."""
        before = datetime.now(UTC) - timedelta(seconds=ABANDONED_AFTER_S)
        with self._database.session() as session:
            abandoned = abandoned_videos(session, before)
        for video_id in abandoned[:_MAX_TIDIED]:
            with contextlib.suppress(UnknownVideoError):
                self.delete(video_id)
        if self._incoming.is_dir():
            for path in self._incoming.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < time.time() - ABANDONED_AFTER_S:
                        path.unlink()


def _plan(video: VideoRecord) -> PartPlan:
    return PartPlan(video.size_bytes, video.part_bytes)
