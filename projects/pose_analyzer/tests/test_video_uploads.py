"""Uploads from the announcement to the stored video: the same with a folder and with S3."""

import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from pose_analyzer.artifact_keys import part_key, session_prefix
from pose_analyzer.db_connector import Database
from pose_analyzer.errors import NotAVideoError, UnknownAthleteError
from pose_analyzer.sources import open_source
from pose_analyzer.storage.artifacts import ArtifactStore, open_artifact_store
from pose_analyzer.storage.models import (
    Athlete,
    DeepMode,
    ExerciseSession,
    PoseFrame,
    Video,
    VideoState,
)
from pose_analyzer.storage.videos import JobRequest, StartJob, VideoFilter, VideoRecord
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.upload_errors import (
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
from pose_analyzer.video_uploads import ABANDONED_AFTER_S, Announcement, VideoUploads

from .s3_server import bucket_settings, s3_server
from .sample_videos import sha256, video_bytes
from .test_artifacts import files_of_at_most, send
from .uploaded_videos import files_below, small_parts

__all__ = ["small_parts"]

SIZE = 2_500_000
CONTENT = video_bytes(SIZE)
REQUEST = JobRequest(DeepMode.CPU, {"exercise": "squat"})


@pytest.fixture(scope="module")
def endpoint_url() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def settings(
    request: pytest.FixtureRequest, storage_settings: StorageSettings, tmp_path: Path
) -> StorageSettings:
    if request.param == "folder":
        return storage_settings
    bucket = bucket_settings(request.getfixturevalue("endpoint_url"), tmp_path)
    names = ("s3_bucket", "s3_region", "s3_endpoint_url")
    return storage_settings.model_copy(update={name: getattr(bucket, name) for name in names})


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def duration_of(path: Path) -> float:
    return open_source(path).info.duration_s


class Desk:
    """Uploads, and what is beneath them."""

    def __init__(
        self, database: Database, settings: StorageSettings, start_job: StartJob | None = None
    ) -> None:
        self.database = database
        self.settings = settings
        self.store: ArtifactStore = open_artifact_store(settings)
        self.uploads = VideoUploads(database, self.store, settings, duration_of, start_job)

    def changed(self, **changes: object) -> "Desk":
        return Desk(self.database, self.settings.model_copy(update=changes))

    def announce(self, content: bytes = CONTENT, **told: Any) -> VideoRecord:
        wanted = {"filename": "squats.mp4", "size_bytes": len(content), "sha256": sha256(content)}
        return self.uploads.announce(Announcement(**(wanted | told)))

    def send(self, video: VideoRecord, number: int, content: bytes) -> None:
        with self.uploads.incoming_file() as path:
            path.write_bytes(content)
            self.uploads.store_part(video.video_id, number, path)

    def send_all(self, video: VideoRecord, content: bytes = CONTENT) -> None:
        for number in self.uploads.missing_parts(video):
            start = number * video.part_bytes
            self.send(video, number, content[start : start + video.part_bytes])

    def files(self, video: VideoRecord) -> list[str]:
        found = self.store.sizes_bytes(session_prefix(video.session_id))
        return sorted(key.rpartition("/")[2] for key in found)

    def leftovers(self) -> list[str]:
        return files_below(self.settings.data_dir / "incoming")

    def count(self, table: type) -> int:
        with self.database.session() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.fixture
def desk(database: Database, settings: StorageSettings, small_parts: None) -> Desk:
    return Desk(database, settings)


def test_parts_may_come_in_any_order_and_twice(desk: Desk) -> None:
    video = desk.announce()
    assert desk.uploads.missing_parts(video) == (0, 1, 2)
    size = video.part_bytes
    desk.send(video, 2, CONTENT[2 * size :])
    desk.send(video, 0, bytes(size))
    desk.send(video, 0, CONTENT[:size])
    assert desk.uploads.missing_parts(video) == (1,)
    with pytest.raises(UploadIncompleteError) as caught:
        desk.uploads.complete(video.video_id, REQUEST)
    assert caught.value.missing == (1,)
    desk.send(video, 1, CONTENT[size : 2 * size])
    stored = desk.uploads.complete(video.video_id, REQUEST)
    assert (stored.state, stored.sha256) == (VideoState.STORED, sha256(CONTENT))
    assert stored.duration_s == pytest.approx(2.0, abs=0.15)
    assert desk.store.get(stored.artifact_key) == CONTENT
    assert desk.files(stored) == ["original.mp4"]
    assert desk.leftovers() == []


def test_completing_again_changes_nothing(desk: Desk) -> None:
    video = desk.announce()
    desk.send_all(video)
    first = desk.uploads.complete(video.video_id, REQUEST)
    # As a process killed after the row was written would leave them.
    desk.store.put(part_key(video.session_id, 0), b"left behind")
    assert desk.uploads.complete(video.video_id, REQUEST) == first
    assert desk.files(first) == ["original.mp4"]


def test_what_a_killed_process_had_put_together_is_put_together_again(desk: Desk) -> None:
    video = desk.announce()
    desk.send_all(video)
    desk.store.put(video.artifact_key, b"from a process killed before the row was written")
    stored = desk.uploads.complete(video.video_id, REQUEST)
    assert desk.store.get(stored.artifact_key) == CONTENT


def test_two_who_complete_at_once_get_the_same_video(desk: Desk) -> None:
    video = desk.announce()
    desk.send_all(video)
    started: list[uuid.UUID] = []

    def start(session: Session, row: Video, mode: DeepMode, options: dict[str, Any]) -> uuid.UUID:
        started.append(row.video_id)
        return uuid.uuid4()

    others = [Desk(desk.database, desk.settings, start).uploads for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        answers = pool.map(lambda one: one.complete(video.video_id, REQUEST), others)
        assert {answer.state for answer in answers} == {VideoState.STORED}
    assert started == [video.video_id]
    assert desk.store.get(video.artifact_key) == CONTENT


def test_parts_for_nothing_are_refused_and_not_kept(desk: Desk) -> None:
    video = desk.announce()
    with pytest.raises(UnknownPartError):
        desk.uploads.expected_bytes(video.video_id, 3)
    with pytest.raises(UnknownVideoError):
        desk.uploads.expected_bytes(uuid.uuid4(), 0)
    desk.send_all(video)
    stored = desk.uploads.complete(video.video_id, REQUEST)
    with pytest.raises(UploadFinishedError):
        desk.uploads.expected_bytes(video.video_id, 0)
    with pytest.raises(UploadFinishedError):  # it had begun to arrive before
        desk.send(video, 0, CONTENT[: video.part_bytes])
    assert desk.files(stored) == ["original.mp4"]
    assert desk.leftovers() == []


@pytest.mark.parametrize(
    ("content", "changes", "error"),
    [
        (CONTENT, {"sha256": "0" * 64}, ChecksumMismatchError),
        (b"no video" * 1000, {}, NotAVideoError),
        (CONTENT[: SIZE // 3], {"size_bytes": SIZE // 3, "sha256": None}, None),
        (video_bytes()[:500], {}, NotAVideoError),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/x.ts\n", {}, NotAVideoError),
    ],
    ids=["checksum", "text", "padding cut off", "cut off", "playlist"],
)
def test_what_is_not_what_it_was_said_to_be_is_refused_for_good(
    desk: Desk, content: bytes, changes: dict[str, Any], error: type[Exception] | None
) -> None:
    video = desk.announce(content, **changes)
    desk.send_all(video, content)
    if error is None:
        assert desk.uploads.complete(video.video_id, REQUEST).state is VideoState.STORED
        return
    with pytest.raises(error) as caught:
        desk.uploads.complete(video.video_id, REQUEST)
    refused = desk.uploads.read(video.video_id)
    assert (refused.state, refused.refusal) == (VideoState.REFUSED, str(caught.value))
    assert desk.files(video) == desk.leftovers() == []
    with pytest.raises(UploadFinishedError):
        desk.uploads.complete(video.video_id, REQUEST)


def test_a_video_that_lasts_too_long_is_refused(desk: Desk) -> None:
    strict = desk.changed(max_video_seconds=1.0)
    video = strict.announce()
    strict.send_all(video)
    with pytest.raises(VideoTooLongError, match="POSE_MAX_VIDEO_SECONDS"):
        strict.uploads.complete(video.video_id, REQUEST)
    assert strict.files(video) == []


def test_a_part_changed_behind_the_services_back_counts_as_missing(desk: Desk) -> None:
    video = desk.announce()
    desk.send_all(video)
    desk.store.put(part_key(video.session_id, 1), b"short")
    with pytest.raises(UploadIncompleteError) as caught:
        desk.uploads.complete(video.video_id, REQUEST)
    assert caught.value.missing == (1,)
    assert desk.uploads.read(video.video_id).state is VideoState.UPLOADING


def test_size_and_quota_are_looked_at_before_anything_is_sent(desk: Desk) -> None:
    strict = desk.changed(max_video_bytes=SIZE, video_quota_bytes=2 * SIZE + 100)
    with pytest.raises(VideoTooLargeError, match="POSE_MAX_VIDEO_BYTES"):
        strict.announce(size_bytes=SIZE + 1)
    first, _ = strict.announce(), strict.announce()
    with pytest.raises(OverQuotaError, match="DELETE /videos"):
        strict.announce()
    strict.announce(size_bytes=100)
    strict.uploads.delete(first.video_id)
    strict.announce()
    assert desk.count(Video) == 3


def test_many_at_once_do_not_get_past_the_quota(desk: Desk) -> None:
    strict = desk.changed(video_quota_bytes=3 * SIZE)

    def announce(_: int) -> bool:
        try:
            strict.announce()
        except OverQuotaError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(announce, range(8))) == 3
    assert desk.count(ExerciseSession) == 3


def test_refused_uploads_do_not_count(desk: Desk) -> None:
    strict = desk.changed(video_quota_bytes=SIZE)
    video = strict.announce(sha256="0" * 64)
    strict.send_all(video)
    with pytest.raises(ChecksumMismatchError):
        strict.uploads.complete(video.video_id, REQUEST)
    strict.announce()


def test_a_video_belongs_to_a_session_and_an_athlete(desk: Desk) -> None:
    athlete = Athlete(name="Maria", athlete_id=uuid.uuid4())
    with desk.database.session() as session:
        session.add(athlete)
    recorded = datetime(2026, 5, 4, 10, 30, tzinfo=UTC)
    video = desk.announce(athlete_id=athlete.athlete_id, exercise="squat", started_at=recorded)
    with desk.database.session() as session:
        row = session.get_one(ExerciseSession, video.session_id)
        assert (row.athlete_id, row.exercise, row.started_at, row.kind) == (
            athlete.athlete_id,
            "squat",
            recorded,
            "recorded",
        )
    other = desk.announce(filename="other.mov")
    found = desk.uploads.find
    assert found(VideoFilter(athlete_id=athlete.athlete_id)) == [video]
    assert found(VideoFilter()) == [other, video]
    assert found(VideoFilter(limit=1)) == [other]
    assert found(VideoFilter(before=other.created_at)) == [video]
    assert found(VideoFilter(sha256=video.sha256, state=VideoState.STORED)) == []
    with pytest.raises(UnknownAthleteError):
        desk.announce(athlete_id=uuid.uuid4())


def test_deleting_leaves_nothing_of_it_and_all_of_others(desk: Desk) -> None:
    videos = [desk.announce() for _ in range(2)]
    for video in videos:
        desk.send_all(video)
        desk.uploads.complete(video.video_id, REQUEST)
        with desk.database.session() as session:
            session.add(frame_of(video))
    gone, kept = videos
    desk.uploads.delete(gone.video_id)
    assert desk.files(gone) == []
    assert desk.files(kept) == ["original.mp4"]
    assert (desk.count(Video), desk.count(ExerciseSession), desk.count(PoseFrame)) == (1, 1, 1)
    with pytest.raises(UnknownVideoError):
        desk.uploads.delete(gone.video_id)


def frame_of(video: VideoRecord) -> PoseFrame:
    return PoseFrame(
        time=datetime.now(UTC),
        session_id=video.session_id,
        track_id=1,
        frame_index=0,
        time_s=0.0,
        keypoints=[0.0] * 51,
        angles=[0.0] * 12,
        n_repetitions=0,
    )


def test_the_job_is_queued_once_and_with_the_row(
    database: Database, settings: StorageSettings, small_parts: None
) -> None:
    asked: list[tuple[Any, ...]] = []

    def start(session: Session, video: Video, mode: DeepMode, options: dict[str, Any]) -> uuid.UUID:
        asked.append((video.state, video.duration_s, mode, options))
        if len(asked) == 1:
            raise LookupError
        return uuid.uuid4()

    desk = Desk(database, settings, start)
    video = desk.announce()
    desk.send_all(video)
    with pytest.raises(LookupError):
        desk.uploads.complete(video.video_id, REQUEST)
    assert desk.uploads.read(video.video_id).state is VideoState.UPLOADING
    for _ in range(2):
        desk.uploads.complete(video.video_id, REQUEST)
    assert len(asked) == 2
    assert asked[1] == (VideoState.STORED, pytest.approx(2.0, abs=0.15), "cpu", REQUEST.options)


def test_a_whole_video_is_stored_or_leaves_nothing(desk: Desk) -> None:
    def store(content: bytes, **told: Any) -> VideoRecord:
        wanted = {"filename": "squats.mp4", "size_bytes": len(content)}
        with desk.uploads.incoming_file() as path:
            path.write_bytes(content)
            announcement = Announcement(**(wanted | told))
            return desk.uploads.store_whole(path, announcement, sha256(content), REQUEST)

    video = store(CONTENT)
    assert desk.store.get(video.artifact_key) == CONTENT
    for content, told, error in (
        (CONTENT, {"sha256": "0" * 64}, ChecksumMismatchError),
        (b"text", {}, NotAVideoError),
        (CONTENT, {"athlete_id": uuid.uuid4()}, UnknownAthleteError),
    ):
        with pytest.raises(error):
            store(content, **told)
    assert (desk.count(Video), desk.leftovers()) == (1, [])


def test_uploads_nobody_goes_on_with_are_forgotten(desk: Desk) -> None:
    stale, stored, fresh = (desk.announce() for _ in range(3))
    for video in (stale, stored):
        desk.send_all(video)
    desk.uploads.complete(stored.video_id, REQUEST)
    long_ago = datetime.now(UTC) - timedelta(seconds=ABANDONED_AFTER_S + 60)
    with desk.database.session() as session:
        session.execute(
            update(Video).where(Video.video_id != fresh.video_id).values(created_at=long_ago)
        )
    killed, recent = (desk.settings.data_dir / "incoming" / name for name in ("killed", "recent"))
    for path in (killed, recent):
        path.touch()
    os.utime(killed, (time.time() - ABANDONED_AFTER_S - 60,) * 2)
    newest = desk.announce()
    left = {video.video_id for video in desk.uploads.find(VideoFilter())}
    assert left == {stored.video_id, fresh.video_id, newest.video_id}
    assert desk.files(stale) == []
    assert desk.leftovers() == ["recent"]


def test_a_full_disk_ends_neither_the_upload_nor_what_is_there(desk: Desk) -> None:
    video = desk.announce()
    desk.send_all(video)
    with files_of_at_most(1_500_000), pytest.raises(StorageFullError):
        desk.uploads.complete(video.video_id, REQUEST)
    assert desk.leftovers() == []
    assert desk.uploads.missing_parts(video) == ()
    assert desk.uploads.complete(video.video_id, REQUEST).state is VideoState.STORED


def test_more_than_the_disk_holds_is_refused_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = SIZE // 2

    monkeypatch.setattr("pose_analyzer.video_uploads.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(StorageFullError):
        desk.announce()


def test_parts_go_straight_to_s3_where_that_is_wanted(
    database: Database,
    storage_settings: StorageSettings,
    endpoint_url: str,
    tmp_path: Path,
    small_parts: None,
) -> None:
    bucket = bucket_settings(endpoint_url, tmp_path)
    desk = Desk(database, bucket)
    through_service = desk.announce(direct=False)
    assert desk.uploads.direct_addresses(through_service, (0,), 60.0) is None
    video = desk.announce()
    numbers = desk.uploads.missing_parts(video)
    urls = desk.uploads.direct_addresses(video, numbers, 60.0)
    assert urls is not None
    for number, url in zip(numbers, urls, strict=True):
        start = number * video.part_bytes
        send(url, CONTENT[start : start + video.part_bytes])
    stored = desk.uploads.complete(video.video_id, REQUEST)
    # Who still has an address can no longer change what was looked at.
    send(urls[0], b"something else")
    assert desk.store.get(stored.artifact_key) == CONTENT
    folder = Desk(database, storage_settings)
    assert folder.uploads.direct_addresses(folder.announce(), (0,), 60.0) is None
