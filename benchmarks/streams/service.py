"""The service under load: started as its own process, or one that runs already."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

_START_TIMEOUT_S = 300.0  # CUDA graphs, or the download of a model
_STOP_TIMEOUT_S = 30.0
_REQUEST_TIMEOUT_S = 300.0  # the first stream of a detector waits until it is made


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request brought."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Any
    """Decoded if it is JSON, else text."""


@dataclass(frozen=True, slots=True)
class Service:
    """Where the service is, and its process if this program started it."""

    url: str
    """Such as ``ws://127.0.0.1:8001``."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of its main process; None if it was started elsewhere."""
        return None if self.process is None else self.process.pid

    def request(self, method: str, path: str, body: object = None) -> Answer:
        """Ask its REST side."""
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(
            place.hostname or "127.0.0.1", place.port, timeout=_REQUEST_TIMEOUT_S
        )
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
            headers = {name.lower(): value for name, value in response.getheaders()}
            is_json = "json" in headers.get("content-type", "")
            return Answer(response.status, headers, json.loads(text) if is_json and text else text)
        finally:
            connection.close()

    def start_stream(self, **options: object) -> Answer:
        """``POST /stream/start``; what is not given has the service's default."""
        return self.request("POST", "/stream/start", options)

    def end_stream(self, stream_id: str) -> Answer:
        """``DELETE /stream/{id}``."""
        return self.request("DELETE", f"/stream/{stream_id}")

    def address(self, started: Answer) -> str:
        """Where to connect to for a stream that was started."""
        return urljoin(self.url, str(started.body["ws_url"]))


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started_service(
    log_path: Path,
    environment: Mapping[str, str] | None = None,
    command: tuple[str, ...] = ("-m", "pose_analyzer.api.main"),
) -> Iterator[Service]:
    """Run the service as a process of its own until the block is left.

    Parameters
    ----------
    log_path
        File for what it writes.
    environment
        Variables on top of this process's own.
    command
        What Python is to run; ``--port`` is added.
    """
    port = free_port()
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, *command, "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    service = Service(f"ws://127.0.0.1:{port}", process)
    try:
        _wait_until_healthy(service, log_path)
        yield service
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, then make it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        print(f"the service did not end within {_STOP_TIMEOUT_S:.0f} s and was killed", flush=True)
        process.kill()
        process.wait()


def _wait_until_healthy(service: Service, log_path: Path) -> None:
    assert service.process is not None
    give_up_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < give_up_s:
        if service.process.poll() is not None:
            break
        try:
            if service.request("GET", "/health").status == HTTPStatus.OK:
                return
        except OSError:
            time.sleep(0.2)
    tail = log_path.read_text(errors="replace")[-4000:]
    raise SystemExit(f"The service did not start; the end of {log_path}:\n{tail}")
