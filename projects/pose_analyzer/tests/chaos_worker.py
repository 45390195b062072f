"""A worker for tests, started as a process of its own: real queue and files, no detector.

``python -m tests.chaos_worker DATA_DIR chunk|aggregation``; options of the job say what to do.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from pose_analyzer.artifact_keys import result_key
from pose_analyzer.db_connector import open_database
from pose_analyzer.storage.artifacts import open_artifact_store
from pose_analyzer.storage.leases import RetryPolicy
from pose_analyzer.storage.listening import Listener
from pose_analyzer.storage.models import DeepMode
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.video_jobs.chunk_duty import ChunkDuty
from pose_analyzer.video_jobs.job_metrics import WorkerMetrics
from pose_analyzer.video_jobs.local_copies import LocalCopies
from pose_analyzer.video_jobs.work_loop import WorkLoop, reported
from pose_analyzer.video_jobs.workplace import Workplace

POLICY = RetryPolicy(lease_s=1.0, backoff_s=0.05, max_backoff_s=0.2, max_lost=8)


def analyse(claimed, video, check):
    """Take a moment, and tell which chunk it was; or die of it, or fail at it."""
    if claimed.chunk_index == claimed.options.get("kills"):
        os.kill(os.getpid(), signal.SIGKILL)
    if claimed.chunk_index == claimed.options.get("fails"):
        raise RuntimeError("this one cannot be done")
    assert video.read_bytes() == b"video"
    give_up_s = time.monotonic() + claimed.options.get("takes_s", 0.02)
    while time.monotonic() < give_up_s:
        check()
        time.sleep(0.005)
    return json.dumps({"chunk": claimed.chunk_index, "start_s": claimed.start_s}).encode()


def counting_duty(place, metrics):
    """Puts numbers together instead of poses."""
    # Takes seconds to import, which the workers for chunks, often replaced, need not wait for.
    from pose_analyzer.video_jobs.aggregation import AggregationDuty

    class Counting(AggregationDuty):
        def perform(self, claimed, check):
            chunks = [json.loads(self._place.store.get(key)) for key in claimed.chunk_keys]
            time.sleep(claimed.options.get("aggregation_takes_s", 0.0))
            check()
            key = result_key(claimed.session_id, claimed.job_id)
            self._place.store.put(key, json.dumps(chunks).encode())
            reported(lambda: self._finish(claimed), self._place.report_patience_s)

    return Counting(place, None, metrics)


def main(data_dir: Path, kind: str) -> None:
    settings = StorageSettings(data_dir=data_dir)
    store = open_artifact_store(settings)
    with open_database(settings, migrate=False) as database:
        place = Workplace(database, store, LocalCopies(store, data_dir / "copies"), POLICY)
        metrics = WorkerMetrics(kind, CollectorRegistry())
        duty = (
            ChunkDuty(place, tuple(DeepMode), analyse, metrics)
            if kind == "chunk"
            else counting_duty(place, metrics)
        )
        loop = WorkLoop(duty, Listener(database), poll_s=0.3, grace_s=5.0)
        signal.signal(signal.SIGTERM, lambda *_: loop.stop())
        print("ready", flush=True)
        loop.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
