"""From an uploaded video to its report: jobs over HTTP, real workers, a made-up detector."""

import json
import uuid
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pose_analyzer.artifact_keys import chunk_key
from pose_analyzer.chunk_files import decode_chunk
from pose_analyzer.db_connector import open_database
from pose_analyzer.exercises import load_exercises
from pose_analyzer.form_library import folders_of, load_form_library
from pose_analyzer.settings import Settings
from pose_analyzer.storage.artifacts import open_artifact_store
from pose_analyzer.storage.leases import RetryPolicy
from pose_analyzer.storage.models import DeepMode
from pose_analyzer.video_jobs import detection
from pose_analyzer.video_jobs.aggregation import AggregationDuty, Knowledge
from pose_analyzer.video_jobs.chunk_duty import ChunkDuty
from pose_analyzer.video_jobs.job_metrics import WorkerMetrics
from pose_analyzer.video_jobs.local_copies import LocalCopies
from pose_analyzer.video_jobs.work_loop import WorkLoop
from pose_analyzer.video_jobs.workplace import Workplace

from .builders import FakeDetector
from .image_service import check_problem
from .sample_videos import video_bytes
from .squat_service import squatter
from .uploaded_videos import service

NOT_THERE = uuid.UUID(int=7)
MODEL = "mediapipe-lite"


class NoWait:
    def wait(self, timeout_s):
        pass


class Workers:
    """Does in this process what waits, and then ends."""

    def __init__(self, storage, folder, people=squatter):
        self._storage, self._folder = storage, folder
        self.detector = FakeDetector(people)
        self.detector.name = MODEL
        self.registry = CollectorRegistry()

    def run(self):
        store = open_artifact_store(self._storage)
        with open_database(self._storage) as database:
            copies = LocalCopies(store, self._folder / "copies")
            place = Workplace(database, store, copies, RetryPolicy(backoff_s=0.0))
            analyse = detection.ChunkDetection(Settings(), store)
            metrics = WorkerMetrics("chunk", self.registry)
            chunks = ChunkDuty(place, tuple(DeepMode), analyse, metrics)
            WorkLoop(chunks, NoWait(), idle_s=0.0).run()
            settings = Settings()
            knowledge = Knowledge(
                load_exercises(settings.exercises_dir), load_form_library(folders_of(settings))
            )
            metrics = WorkerMetrics("aggregation", self.registry)
            jobs = AggregationDuty(place, knowledge, metrics)
            WorkLoop(jobs, NoWait(), idle_s=0.0).run()


@pytest.fixture
def client(storage_settings, tmp_path):
    storage = storage_settings.model_copy(update={"chunk_s": 3.0})
    with service(storage, tmp_path) as client:
        yield client


@pytest.fixture
def workers(storage_settings, tmp_path, monkeypatch):
    workers = Workers(storage_settings, tmp_path)
    monkeypatch.setattr(detection, "create_chunk_detector", lambda *_: workers.detector)
    return workers


def upload(client, duration_s=9.0, **fields):
    content = video_bytes(duration_s=duration_s)
    files = {"file": ("squats.mp4", content, "video/mp4")}
    answer = client.post("/videos", files=files, data={"detector": MODEL} | fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


def events_of(text):
    blocks = [block for block in text.replace("\r\n", "\n").split("\n\n") if "data:" in block]
    for block in blocks:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        yield lines["event"], json.loads(lines["data"])


def test_an_uploaded_video_gets_its_report(client, workers, storage_settings):
    video = upload(client, exercise="squat", overlay="true")
    job = client.get(f"/jobs/{video['job_id']}").json()
    assert (job["stage"], job["percent"], job["total_chunks"]) == ("queued", 0, 3)
    assert [(one["start_s"], one["status"]) for one in job["chunks"]] == [
        (0.0, "queued"),
        (3.0, "queued"),
        (6.0, "queued"),
    ]
    check_problem(client.get(f"/jobs/{job['job_id']}/report"), 409, "result-not-ready")

    workers.run()

    job = client.get(f"/jobs/{video['job_id']}").json()
    assert (job["stage"], job["percent"], job["error"]) == ("done", 100, None)
    assert all(one["runtime_ms"] is not None for one in job["chunks"])
    page = client.get(f"/jobs/{job['job_id']}/report")
    assert page.headers["content-type"].startswith("text/html")
    assert "overlay.mp4" in page.text
    results = client.get(f"/jobs/{job['job_id']}/report", params={"format": "json"}).json()
    (person,) = results["people"]
    assert len(person["repetitions"]) == 3
    overlay = client.get(f"/jobs/{job['job_id']}/overlay.mp4", headers={"Range": "bytes=0-99"})
    assert (overlay.status_code, len(overlay.content)) == (206, 100)
    session = client.get(f"/sessions/{job['session_id']}").json()
    assert session["n_repetitions"] == 3
    assert session["exercise"] == "squat"


def test_each_chunk_begins_where_it_begins(client, workers, storage_settings):
    video = upload(client)
    workers.run()
    store = open_artifact_store(storage_settings)
    ids = uuid.UUID(video["session_id"]), uuid.UUID(video["job_id"])
    firsts = [decode_chunk(store.get(chunk_key(*ids, n))).frames[0].time_s for n in range(3)]
    assert firsts == [0.0, 3.0, 6.0]


def test_events_tell_what_changes_until_the_end(client, workers):
    video = upload(client, duration_s=2.0)
    workers.run()
    answer = client.get(f"/jobs/{video['job_id']}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    ((name, told),) = events_of(answer.text)
    assert (name, told["stage"]) == ("end", "done")


def test_a_job_can_be_cancelled(client, workers):
    video = upload(client)
    job = client.post(f"/jobs/{video['job_id']}/cancel").json()
    assert job["stage"] == "cancelled"
    workers.run()
    assert client.get(f"/jobs/{video['job_id']}").json()["stage"] == "cancelled"
    assert workers.detector.times_s == []


def test_a_stored_video_can_be_analysed_again(client, workers):
    video = upload(client, duration_s=2.0)
    wishes = {"video_id": video["video_id"], "exercise": "lunge", "detector": MODEL}
    answer = client.post("/jobs", json=wishes)
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert job["options"]["exercise"] == "lunge"
    assert client.get(f"/videos/{video['video_id']}").json()["job_id"] == job["job_id"]
    listed = client.get("/jobs", params={"video_id": video["video_id"]}).json()["jobs"]
    assert [one["job_id"] for one in listed] == [job["job_id"], video["job_id"]]
    workers.run()
    check_problem(client.get(f"/jobs/{job['job_id']}/overlay.mp4"), 409, "result-not-ready")


def test_a_video_that_is_gone_fails_the_job_with_the_reason(client, workers, storage_settings):
    video = upload(client, duration_s=2.0)
    folder = storage_settings.data_dir / "files"
    (original,) = folder.rglob("original.mp4")
    original.unlink()
    workers.run()
    job = client.get(f"/jobs/{video['job_id']}").json()
    assert job["stage"] == "failed"
    assert "original.mp4" in job["error"]


def test_what_a_detector_cannot_do_is_tried_again_and_then_told(client, workers):
    def broken(time_s):
        raise RuntimeError("the network has holes")

    workers.detector = FakeDetector(broken)
    workers.detector.name = MODEL
    video = upload(client, duration_s=2.0)
    workers.run()
    job = client.get(f"/jobs/{video['job_id']}").json()
    assert job["stage"] == "failed"
    assert "the network has holes" in job["error"]
    assert job["chunks"][0]["attempts"] == RetryPolicy().max_errors


def test_workers_count_what_they_do(client, workers):
    upload(client)
    workers.run()
    sample = workers.registry.get_sample_value
    assert sample("pose_chunk_attempts_total", {"outcome": "completed"}) == 3
    assert sample("pose_chunk_seconds_count") == 3
    assert sample("pose_aggregation_seconds_count") == 1


def test_what_is_not_there(client):
    for path in ("", "/report", "/overlay.mp4", "/events"):
        check_problem(client.get(f"/jobs/{NOT_THERE}{path}"), 404, "unknown-job")
    check_problem(client.post(f"/jobs/{NOT_THERE}/cancel"), 404, "unknown-job")
    answer = client.post("/jobs", json={"video_id": str(NOT_THERE)})
    check_problem(answer, 404, "unknown-video")


def test_gpu_jobs_are_refused_where_there_are_no_such_workers(
    storage_settings, tmp_path: Path
) -> None:
    storage = storage_settings.model_copy(update={"gpu_processing_enabled": False})
    with service(storage, tmp_path) as client:
        files = {"file": ("squats.mp4", video_bytes(duration_s=2.0), "video/mp4")}
        answer = client.post("/videos", files=files, data={"deep_mode": "gpu"})
        check_problem(answer, 409, "gpu-workers-disabled")
