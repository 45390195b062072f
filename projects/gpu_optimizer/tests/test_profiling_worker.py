"""A job may explode, hang or run out of memory; its end is told clearly and the caller lives."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gpu_optimizer.errors import UnknownNameError
from gpu_optimizer.profiling_worker import (
    FailureReason,
    JobLimits,
    JobRunner,
    NetworkConfinement,
    WorkerConfig,
)

HERE = Path(__file__).parent
HOSTILE = (
    "echo", "surroundings", "refuse", "fail", "hang", "hang_deaf", "spin", "hoard",
    "hoard_in_children", "hoard_tensors", "vanish", "crash", "chatter", "one_long_line", "noise",
    "not_json", "breed", "leave_child", "big_file", "connect", "connect_with_hook",
)  # fmt: skip
LIMITS = JobLimits(
    memory_bytes=300 << 20, wall_s=60.0, cpu_s=60, file_bytes=1 << 20, output_bytes=1 << 20
)


@pytest.fixture
def runner() -> JobRunner:
    jobs = {name: f"hostile_jobs:{name}" for name in HOSTILE}
    return JobRunner(WorkerConfig(jobs=jobs, limits=LIMITS, python_path=(HERE,)))


def is_gone(path: str) -> bool:
    return not Path(path).exists()


async def gone(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid):
            return True
        await asyncio.sleep(0.05)
    return False


async def test_a_job_reports_and_returns(runner: JobRunner):
    events = []
    result = await runner.run("echo", {"a": [1, None]}, on_event=events.append)
    assert result.ok
    assert result.value == {"echo": {"a": [1, None]}}
    assert [event["event"] for event in events] == ["started", "progress"]
    assert events[1]["ratio"] == 0.5
    assert result.peak_memory_bytes > 1 << 20


async def test_a_job_sees_nothing_of_the_service(runner: JobRunner, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    result = await runner.run("surroundings", {})
    assert result.value is not None
    environment = result.value["environment"]
    assert "DATABASE_URL" not in environment
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HOME"] == environment["TMPDIR"] == result.value["cwd"]
    assert result.value["cwd"] not in (os.getenv("HOME"), str(HERE))
    assert is_gone(result.value["cwd"])
    assert (result.value["files"], result.value["session"]) == ([], True)
    assert result.value["umask"] == 0o077


@pytest.mark.parametrize(
    ("kind", "payload", "limits", "reason", "message"),
    [
        ("refuse", {}, {}, FailureReason.INVALID, "x.json: too large."),
        ("fail", {}, {}, FailureReason.CRASHED, "without a result"),
        ("vanish", {}, {}, FailureReason.CRASHED, "without a result"),
        ("crash", {}, {}, FailureReason.CRASHED, "SIGSEGV"),
        ("not_json", {}, {}, FailureReason.CRASHED, "without a result"),
        ("big_file", {}, {}, FailureReason.CRASHED, "without a result"),
        ("hang", {}, {"wall_s": 1.5}, FailureReason.TIMEOUT, "longer than 1.5 s"),
        ("hang_deaf", {}, {"wall_s": 1.5}, FailureReason.TIMEOUT, "longer than 1.5 s"),
        ("spin", {}, {"cpu_s": 1}, FailureReason.TIMEOUT, "processor time"),
        ("hoard", {"pause_s": 0.01}, {}, FailureReason.OUT_OF_MEMORY, "memory"),
        ("hoard", {}, {"memory_bytes": 64 << 20}, FailureReason.OUT_OF_MEMORY, "memory"),
        ("hoard_in_children", {}, {}, FailureReason.OUT_OF_MEMORY, "300 MiB"),
        ("chatter", {}, {}, FailureReason.CRASHED, "wrote more"),
        ("one_long_line", {}, {}, FailureReason.CRASHED, "wrote more"),
        ("breed", {}, {}, FailureReason.CRASHED, "more than 8 processes"),
    ],
)
async def test_a_bad_end_is_told(runner: JobRunner, kind, payload, limits, reason, message):
    chosen = JobLimits(**{**{name: getattr(LIMITS, name) for name in LIMITS.__slots__}, **limits})
    result = await runner.run(kind, payload, limits=chosen)
    assert result.failure is not None
    assert result.failure.reason is reason
    assert message in result.failure.message
    assert result.value is None
    assert (await runner.run("echo", {})).ok


async def test_an_internal_error_is_kept_for_the_log_only(runner: JobRunner):
    result = await runner.run("fail", {})
    assert result.failure is not None
    assert "internal" in result.failure.detail
    assert "internal" not in result.failure.message


async def test_a_flood_of_errors_is_cut(runner: JobRunner):
    assert (await runner.run("noise", {})).ok


async def test_a_jump_in_memory_is_refused_by_the_system(runner: JobRunner):
    limits = JobLimits(memory_bytes=1 << 30)
    result = await runner.run("hoard_tensors", {}, limits=limits)
    assert result.failure is not None
    assert result.failure.reason is FailureReason.OUT_OF_MEMORY
    assert result.peak_memory_bytes < 1 << 30


async def test_nothing_stays_behind(runner: JobRunner):
    result = await runner.run("leave_child", {})
    assert result.value is not None
    assert await gone(result.value["pid"])


async def test_the_network_is_out_of_reach(runner: JobRunner):
    with socket.create_server(("127.0.0.1", 0)) as server:
        payload = {"port": server.getsockname()[1]}
        plain = await runner.run("connect", payload)
        assert plain.value is not None
        assert plain.network in set(NetworkConfinement)
        assert plain.value["connected"] is False
        hooked = await runner.run("connect_with_hook", payload)
        assert hooked.value == {"connected": False, "error": "PermissionError"}


async def test_a_job_can_be_cancelled(runner: JobRunner):
    cancel = asyncio.Event()
    pids = []

    def heard(event):
        if "pid" in event:
            pids.append(event["pid"])
            cancel.set()

    result = await runner.run("hang_deaf", {}, on_event=heard, cancel=cancel)
    assert result.failure is not None
    assert result.failure.reason is FailureReason.CANCELLED
    assert await gone(pids[0])


async def test_a_cancelled_task_takes_its_job_with_it(runner: JobRunner):
    started = asyncio.Event()
    pids = []

    def heard(event):
        if "pid" in event:
            pids.append(event["pid"])
            started.set()

    task = asyncio.create_task(runner.run("hang_deaf", {}, on_event=heard))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(pids[0])
    assert (await runner.run("echo", {})).ok


async def test_jobs_wait_for_their_turn():
    jobs = {"hang": "hostile_jobs:hang", "echo": "hostile_jobs:echo"}
    runner = JobRunner(WorkerConfig(jobs, LIMITS, max_concurrent=1, python_path=(HERE,)))
    first, second = asyncio.Event(), asyncio.Event()
    began = asyncio.Event()
    running = asyncio.create_task(
        runner.run("hang", {}, cancel=first, on_event=lambda _: began.set())
    )
    await began.wait()
    waiting = asyncio.create_task(runner.run("hang", {}, cancel=second))
    third = asyncio.create_task(runner.run("echo", {}))
    await asyncio.sleep(0.2)
    second.set()
    skipped = await waiting
    assert skipped.failure is not None
    assert "before it began" in skipped.failure.message
    assert not third.done()
    first.set()
    await running
    assert (await third).ok


async def test_an_unknown_kind_is_no_job(runner: JobRunner):
    with pytest.raises(UnknownNameError):
        await runner.run("os:system", {})


async def test_an_upload_is_described(tmp_path: Path):
    path = tmp_path / "stored"
    path.write_text(json.dumps({"model_type": "gpt2", "auto_map": {"AutoModel": "x.Y"}}))
    result = await JobRunner().run("describe", {"path": str(path), "name": "config.json"})
    assert result.value is not None
    assert result.value["n_parameters"] == 124_439_808
    assert result.value["dropped"] == ["auto_map"]
    path.write_bytes(b"\x80\x04N.")
    result = await JobRunner().run("describe", {"path": str(path), "name": "../m.bin"})
    assert result.failure is not None
    assert result.failure.message.startswith("m.bin: a pickle")


def test_a_job_dies_with_its_service(tmp_path: Path):
    script = tmp_path / "service.py"
    script.write_text(
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from gpu_optimizer.profiling_worker import JobRunner, WorkerConfig\n"
        "config = WorkerConfig({'hang': 'hostile_jobs:hang_deaf'}, "
        f"python_path=(Path({str(HERE)!r}),))\n"
        "heard = lambda event: 'pid' in event and print(event['pid'], flush=True)\n"
        "asyncio.run(JobRunner(config).run('hang', {}, on_event=heard))\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        pid = int(service.stdout.readline())
        assert psutil.pid_exists(pid)
        service.send_signal(signal.SIGKILL)
        service.wait()
    deadline_s = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)
