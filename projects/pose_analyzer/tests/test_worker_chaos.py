"""Workers, aggregators and the database are killed at random; nothing is lost or counted twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from pose_analyzer.artifact_keys import original_key, result_key
from pose_analyzer.db_connector import open_database
from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.storage.artifacts import open_artifact_store
from pose_analyzer.storage.jobs import add_job, read_job
from pose_analyzer.storage.models import (
    DeepMode,
    ExerciseSession,
    SessionKind,
    Video,
    VideoAnalysisChunkStatus,
    VideoAnalysisJobStatus,
    VideoState,
)
from pose_analyzer.storage_settings import StorageSettings

PROJECT = Path(__file__).resolve().parents[1]
GIVE_UP_S = 240.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A database of this test's own, which may be killed, and its files."""
    settings = StorageSettings(data_dir=tmp_path_factory.mktemp("chaos"))
    with open_database(settings) as database:
        yield settings, database, open_artifact_store(settings)


class Crew:
    """Workers that are replaced when they are gone, as an orchestrator would."""

    def __init__(self, data_dir, kinds):
        self._data_dir = data_dir
        self._kinds = kinds
        self._workers = {}

    def __enter__(self):
        self.replace()
        return self

    def __exit__(self, *_):
        for worker in self._workers.values():
            worker.terminate()
        for worker in self._workers.values():
            worker.wait(30.0)
            worker.stdout.close()

    def replace(self):
        for place, kind in enumerate(self._kinds):
            worker = self._workers.get(place)
            if worker is not None and worker.poll() is None:
                continue
            if worker is not None:
                worker.stdout.close()
            self._workers[place] = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos_worker", str(self._data_dir), kind],
                cwd=PROJECT,
                stdout=subprocess.PIPE,
            )

    def kill(self, place):
        self._workers[place].send_signal(signal.SIGKILL)


def new_job(place, n_chunks, **options):
    _, database, store = place
    with database.session() as session:
        owner = ExerciseSession(session_id=uuid.uuid4(), kind=SessionKind.RECORDED)
        session.add(owner)
        session.flush()
        key = original_key(owner.session_id, ".mp4")
        store.put(key, b"video")
        video = Video(
            video_id=uuid.uuid4(),
            session_id=owner.session_id,
            filename="video.mp4",
            artifact_key=key,
            state=VideoState.STORED,
            size_bytes=5,
            part_bytes=5,
            upload={},
            duration_s=float(n_chunks),
        )
        session.add(video)
        session.flush()
        bounds_s = [(float(n), n + 1.0) for n in range(n_chunks)]
        return add_job(session, video, DeepMode.AUTO, options, bounds_s).job_id


def look(place, job_id):
    while True:
        try:
            with place[1].session() as session:
                return read_job(session, job_id)
        except DatabaseUnavailableError:
            time.sleep(0.1)


def follow(place, job_id, meanwhile=lambda view: None):
    give_up_s = time.monotonic() + GIVE_UP_S
    while True:
        view = look(place, job_id)
        if view.job.finished_at is not None:
            return view
        assert time.monotonic() < give_up_s, (view.job.status, view.job.completed_chunks)
        meanwhile(view)
        time.sleep(0.05)


def postmaster_pid(data_dir):
    return int((data_dir / "database" / "cluster" / "postmaster.pid").read_text().splitlines()[0])


@pytest.mark.timeout(300)
def test_killing_anything_loses_nothing(place):
    settings, _, store = place
    n_chunks, luck = 200, random.Random(7)  # noqa: S311 - no secret
    job_id = new_job(place, n_chunks, takes_s=0.05, aggregation_takes_s=1.0)
    done = {"workers": 0, "database": False, "aggregator": False}
    with Crew(settings.data_dir, ["chunk", "chunk", "aggregation"]) as crew:

        def meanwhile(view):
            completed = view.job.completed_chunks
            if completed >= 30 * (done["workers"] + 1) and completed < n_chunks:
                crew.kill(luck.randrange(2))
                done["workers"] += 1
            if completed >= n_chunks // 2 and not done["database"]:
                os.kill(postmaster_pid(settings.data_dir), signal.SIGKILL)
                done["database"] = True
            leased = view.job.lease_owner is not None
            if leased and not done["aggregator"]:
                crew.kill(2)
                done["aggregator"] = True
            crew.replace()

        view = follow(place, job_id, meanwhile)
    assert done["database"]
    assert done["aggregator"]
    assert done["workers"] >= 5
    assert view.job.status is VideoAnalysisJobStatus.DONE
    assert view.job.completed_chunks == n_chunks
    assert {chunk.status for chunk in view.chunks} == {VideoAnalysisChunkStatus.COMPLETED}
    result = json.loads(store.get(result_key(view.job.session_id, job_id)))
    assert [one["chunk"] for one in result] == list(range(n_chunks))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("poison", "reason"), [("kills", "8 workers ended"), ("fails", "this one cannot be done")]
)
def test_a_poison_chunk_fails_and_the_job_says_so(place, poison, reason):
    job_id = new_job(place, 4, **{poison: 2})
    with Crew(place[0].data_dir, ["chunk", "chunk"]) as crew:
        view = follow(place, job_id, lambda view: crew.replace())
    assert view.job.status is VideoAnalysisJobStatus.FAILED
    assert view.job.error.startswith("chunk 2 (2.0 to 3.0 s): ")
    assert reason in view.job.error
    assert view.chunks[2].status is VideoAnalysisChunkStatus.FAILED


@pytest.mark.timeout(120)
def test_a_stopped_worker_gives_its_chunk_back(place):
    job_id = new_job(place, 1, takes_s=60.0)
    with Crew(place[0].data_dir, ["chunk"]):
        give_up_s = time.monotonic() + 60.0
        while look(place, job_id).chunks[0].status is not VideoAnalysisChunkStatus.PROCESSING:
            assert time.monotonic() < give_up_s
            time.sleep(0.05)
    (chunk,) = look(place, job_id).chunks
    assert (chunk.status, chunk.attempts) == (VideoAnalysisChunkStatus.QUEUED, 0)
