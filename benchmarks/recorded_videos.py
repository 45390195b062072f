"""How long the report of a long 1080p video takes, with workers as they run in earnest.

The service's own database and files, two workers for chunks and one that puts them together, as
processes of their own; from the moment the upload is complete to the job being done.

python benchmarks/recorded_videos.py --data SHARED_DATA --report docs/reports/recorded_videos.md
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from joined_video import join_clips

_WAIT_S = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--video", type=Path, help="use it, or make it there")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="that decode, of each worker")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--detector", default="mediapipe-lite")
    parser.add_argument("--port", type=int, default=8061)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recorded-") as folder:
        video = args.video or Path(folder) / "long.mp4"
        if not video.exists():
            join_clips(args.data / "videos", video, 60.0 * args.minutes)
        text = _report(args, video, _measure(args, video, Path(folder)))
    print(text)
    if args.report:
        args.report.write_text(text)


def _measure(args: argparse.Namespace, video: Path, folder: Path) -> dict[str, Any]:
    environment = os.environ | {
        "POSE_DATA_DIR": str(folder / "store"),
        "POSE_LOCAL_WORKERS": "0",
        "POSE_MODEL_PATH": str(args.data / "models"),
    }
    address = f"http://127.0.0.1:{args.port}"
    service = _start("pose_analyzer.api.main", environment, "--port", str(args.port))
    workers = []
    try:
        _until(lambda: _json(f"{address}/health")["database"]["state"] == "ok")
        options = ("--device", args.device, "--threads", str(args.threads))
        workers = [
            _start("pose_analyzer.chunk_worker", environment, *options) for _ in range(args.workers)
        ]
        workers.append(_start("pose_analyzer.worker_main", environment))
        time.sleep(15.0)  # they are there, as in earnest
        began_s = time.monotonic()
        with video.open("rb") as file:
            answer = requests.post(
                f"{address}/videos",
                files={"file": ("long.mp4", file, "video/mp4")},
                data={"detector": args.detector},
                timeout=600.0,
            )
        answer.raise_for_status()
        stored_s = time.monotonic()
        job = f"{address}/jobs/{answer.json()['job_id']}"
        chunks_s = None
        while (told := _json(job))["stage"] not in ("done", "failed", "cancelled"):
            if chunks_s is None and told["stage"] == "deep_running":
                chunks_s = time.monotonic()
            time.sleep(0.25)
        done_s = time.monotonic()
        results = _json(f"{job}/report?format=json") if told["stage"] == "done" else None
    finally:
        for process in [*workers, service]:
            process.terminate()
        for process in [*workers, service]:
            process.wait(60.0)
    return {
        "upload_s": stored_s - began_s,
        "chunks_s": (chunks_s or done_s) - stored_s,
        "total_s": done_s - stored_s,
        "job": told,
        "results": results,
    }


def _report(args: argparse.Namespace, video: Path, found: dict[str, Any]) -> str:
    job, results = found["job"], found["results"]
    runtimes_s = [one["runtime_ms"] / 1000.0 for one in job["chunks"] if one["runtime_ms"]]
    counted: dict[str, int] = {}
    for person in (results or {}).get("people", []):
        for repetition in person["repetitions"]:
            counted[repetition["exercise"]] = counted.get(repetition["exercise"], 0) + 1
    return f"""# Report of a long video

Reproduce: `python benchmarks/recorded_videos.py --data SHARED_DATA --minutes {
        args.minutes:g} --workers
{args.workers} --threads {args.threads} --device {args.device} --detector {args.detector}`

Machine: {os.cpu_count()} cores of {platform.processor() or platform.machine()}, Python
{platform.python_version()}. Video: {
        job["video_duration_seconds"] / 60.0:.1f} minutes of 1920x1080 at 30 frames a second,
{
        video.stat().st_size
        / 1e6:.0f} MB, labelled clips of different exercises one after the other, again and again.
{args.workers} chunk workers and an aggregator beside the service, all on this machine.

| | seconds |
| --- | --- |
| upload on loopback, checksum and plan | {found["upload_s"]:.1f} |
| chunks ({job["total_chunks"]}) | {found["chunks_s"]:.1f} |
| putting together, report, rows | {found["total_s"] - found["chunks_s"]:.1f} |
| **from complete upload to report** | **{found["total_s"]:.1f}** |

A chunk took {min(runtimes_s):.1f} to {max(runtimes_s):.1f} s. The job ended `{job["stage"]}`{
        f": {job['error']}" if job["error"] else ""
    }. Repetitions counted: {json.dumps(counted)}.
"""


def _start(module: str, environment: dict[str, str], *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, *options]
    return subprocess.Popen(command, env=environment)  # noqa: S603 - our own module


def _json(address: str) -> dict[str, Any]:
    answer = requests.get(address, timeout=30.0)
    answer.raise_for_status()
    return dict(answer.json())


def _until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + _WAIT_S
    while True:
        try:
            if condition():
                return
        except requests.ConnectionError:
            pass
        if time.monotonic() > give_up_s:
            raise TimeoutError
        time.sleep(0.2)


if __name__ == "__main__":
    main()
