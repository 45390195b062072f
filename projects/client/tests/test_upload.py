"""Videos sent in parts: resumed, tried again, refused."""

import asyncio
import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from typer.testing import CliRunner

from pose_analyzer_client import (
    BlockingPoseAnalyzerClient,
    PoseAnalyzerClient,
    RequestRefusedError,
    ServiceUnreachableError,
    StoreUnreachableError,
    UnreadableVideoError,
    VideoOptions,
)
from pose_analyzer_client.upload_command import app

PART_BYTES = 300_000
CONTENT = bytes(range(256)) * 4_000  # four parts, the last one smaller


@dataclass
class UploadService:
    """Takes one upload and breaks where it is told to."""

    announced: dict[str, Any] | None = None
    asked: dict[str, Any] | None = None
    parts: dict[int, bytes] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)
    """Numbers of all parts that came, whatever became of them."""
    breaks: list[int] = field(default_factory=list)
    """Parts within which the connection breaks; each once."""
    answers: dict[int, list[int]] = field(default_factory=dict)
    """Statuses given to a part instead of taking it."""
    completions: list[int] = field(default_factory=list)
    """Statuses given to completions instead of doing it."""
    generation: int = 0
    """Addresses of another one have expired."""
    base: str = ""
    """Of the addresses of parts; another host stands for S3."""
    connections: dict[asyncio.StreamWriter, Any] = field(default_factory=dict)
    n_at_once: int = 0
    most_at_once: int = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object):
        self._server.close()
        for writer in self.connections:
            writer.close()
        await asyncio.gather(*self.connections.values())

    def video(self) -> dict[str, Any]:
        assert self.announced is not None
        n_parts = -(-len(CONTENT) // PART_BYTES)
        url = f"{self.base}/videos/v1/parts/{{}}?generation={self.generation}"
        parts = [
            {
                "number": number,
                "size_bytes": len(CONTENT[number * PART_BYTES : (number + 1) * PART_BYTES]),
                "stored": number in self.parts,
                "url": None if number in self.parts else url.format(number),
            }
            for number in range(n_parts)
        ]
        told = {
            "video_id": "v1",
            "session_id": "s1",
            "filename": self.announced["filename"],
            "size_bytes": len(CONTENT),
            "sha256": self.announced["sha256"],
            "athlete_id": self.announced.get("athlete_id"),
            "duration_s": None,
        }
        if self.asked is not None:
            return told | {"state": "stored", "job_id": "j1", "duration_s": 2.0}
        upload = {"part_bytes": PART_BYTES, "parts": parts}
        return told | {"state": "uploading", "job_id": None, "upload": upload}

    async def _on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections[writer] = asyncio.current_task()
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                n_bytes = int(length[1]) if length else 0
                status, answer = await self._answer(method, path, reader, n_bytes)
                body = b"" if status == 204 else json.dumps(answer).encode()
                start = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(start.encode() + body)
                await writer.drain()
        writer.close()

    async def _answer(
        self, method: str, path: str, reader: asyncio.StreamReader, n_bytes: int
    ) -> tuple[int, Any]:
        found = re.fullmatch(r"/videos/v1/parts/(\d+)\?generation=(\d+)", path)
        if found:
            return await self._take(int(found[1]), int(found[2]), reader, n_bytes)
        body = json.loads(await reader.readexactly(n_bytes) or b"null")
        if (method, path) == ("POST", "/videos"):
            self.announced = body
            return 201, self.video()
        if method == "GET" and path.startswith("/videos?"):
            found = self.announced is not None and self.announced["sha256"] in path
            return 200, {"videos": [self.video() | {"upload": None}] if found else []}
        if (method, path) == ("POST", "/videos/v1/complete"):
            if self.completions:
                return self.completions.pop(), {}
            self.asked = body
        return 200, self.video()

    async def _take(
        self, number: int, generation: int, reader: asyncio.StreamReader, n_bytes: int
    ) -> tuple[int, Any]:
        self.sent.append(number)
        self.n_at_once += 1
        self.most_at_once = max(self.most_at_once, self.n_at_once)
        try:
            if number in self.breaks:
                self.breaks.remove(number)
                await reader.readexactly(n_bytes // 2)
                raise ConnectionResetError
            body = await reader.readexactly(n_bytes)
        finally:
            self.n_at_once -= 1
        if generation != self.generation:
            return 403, {"type": "urn:problem-type:pose-analyzer:upload-address-invalid"}
        if self.answers.get(number):
            return self.answers[number].pop(), {}
        self.parts[number] = body
        return 204, {}


@pytest.fixture
async def uploads():
    async with UploadService() as running:
        yield running


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "squats.mp4"
    path.write_bytes(CONTENT)
    return path


def whole(service):
    return b"".join(service.parts[number] for number in sorted(service.parts))


async def test_a_video_is_sent_in_parts_and_completed(uploads, video, options):
    seen = []
    async with PoseAnalyzerClient(uploads.address, "squat", "mediapipe", options=options) as client:
        chosen = VideoOptions(athlete_id="a1", deep_mode="cpu", language="de", n_parallel=2)
        stored = await client.upload_video(video, chosen, on_progress=seen.append)
    assert (stored.video_id, stored.state, stored.job_id) == ("v1", "stored", "j1")
    assert whole(uploads) == CONTENT
    assert uploads.announced == {
        "filename": "squats.mp4",
        "size_bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "direct": True,
        "athlete_id": "a1",
        "exercise": "squat",
    }
    assert uploads.asked == {
        "exercise": "squat",
        "detector": "mediapipe",
        "deep_mode": "cpu",
        "language": "de",
        "overlay": False,
    }
    assert uploads.most_at_once <= 2
    sending = [one.n_bytes for one in seen if one.stage == "sending"]
    assert sending == sorted(sending)
    assert sending[-1] == len(CONTENT)
    assert [one.stage for one in seen][:: len(seen) - 1] == ["reading", "completing"]


async def test_parts_are_tried_again_when_connections_break(uploads, video, options, sleeps):
    uploads.breaks = [0, 2, 2]
    uploads.answers = {1: [503, 500]}
    async with PoseAnalyzerClient(uploads.address, options=options) as client:
        await client.upload_video(video)
    assert whole(uploads) == CONTENT
    assert sorted(uploads.sent) == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert len(sleeps.waited_s) == 5


async def test_another_call_goes_on_where_the_last_one_ended(uploads, video, options):
    uploads.answers = {3: [503] * 9}
    async with PoseAnalyzerClient(uploads.address, options=options) as client:
        with pytest.raises(RequestRefusedError):
            await client.upload_video(video, VideoOptions(n_parallel=1))
        assert sorted(uploads.parts) == [0, 1, 2]
        uploads.answers, uploads.sent = {}, []
        seen = []
        await client.upload_video(video, on_progress=seen.append)
    assert uploads.sent == [3]
    assert whole(uploads) == CONTENT
    assert next(one for one in seen if one.stage == "sending").n_bytes > 3 * PART_BYTES


async def test_addresses_that_expire_are_asked_for_anew(uploads, video, options):
    def expire(progress):
        if progress.stage == "sending" and progress.n_bytes > PART_BYTES:
            uploads.generation = 1

    async with PoseAnalyzerClient(uploads.address, options=options) as client:
        await client.upload_video(video, VideoOptions(n_parallel=1), on_progress=expire)
    assert whole(uploads) == CONTENT
    assert len(uploads.sent) > 4


async def test_completing_is_tried_again(uploads, video, options):
    uploads.completions = [504]
    async with PoseAnalyzerClient(uploads.address, options=options) as client:
        assert (await client.upload_video(video)).state == "stored"


async def test_what_the_service_does_not_take_is_not_sent_again(uploads, video, options):
    uploads.answers = {0: [507]}
    async with PoseAnalyzerClient(uploads.address, options=options) as client:
        with pytest.raises(RequestRefusedError) as caught:
            await client.upload_video(video)
    assert caught.value.status == 507
    assert uploads.sent.count(0) == 1


async def test_parts_go_to_another_host_if_the_service_says_so(uploads, video, options):
    async with UploadService() as store:
        uploads.base = store.address
        store.parts = uploads.parts
        async with PoseAnalyzerClient(uploads.address, options=options) as client:
            await client.upload_video(video)
    assert (sorted(store.sent), uploads.sent) == ([0, 1, 2, 3], [])
    assert whole(uploads) == CONTENT


async def test_a_store_that_cannot_be_reached_is_named(uploads, video, options, unused_tcp_port):
    uploads.base = f"http://127.0.0.1:{unused_tcp_port}"
    async with PoseAnalyzerClient(uploads.address, options=options) as client:
        with pytest.raises(StoreUnreachableError, match="--through-service") as caught:
            await client.upload_video(video)
    assert caught.value.host == f"127.0.0.1:{unused_tcp_port}"


async def test_without_a_service_that_is_said(video, options, unused_tcp_port):
    address = f"ws://127.0.0.1:{unused_tcp_port}"
    async with PoseAnalyzerClient(address, options=options) as client:
        with pytest.raises(ServiceUnreachableError):
            await client.upload_video(video)


@pytest.mark.parametrize("content", [None, b""])
async def test_what_is_no_file_is_not_announced(uploads, tmp_path, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    async with PoseAnalyzerClient(uploads.address) as client:
        with pytest.raises(UnreadableVideoError, match=r"clip\.mp4: "):
            await client.upload_video(path)
    assert uploads.announced is None


async def test_a_file_that_shrinks_meanwhile_is_noticed(uploads, video, options):
    def shrink(progress):
        if progress.stage == "sending":
            video.write_bytes(CONTENT[: PART_BYTES // 2])

    async with PoseAnalyzerClient(uploads.address, options=options) as client:
        with pytest.raises(UnreadableVideoError, match="shorter"):
            await client.upload_video(video, VideoOptions(n_parallel=1), on_progress=shrink)


async def test_scripts_without_an_event_loop_upload_too(uploads, video):
    def upload():
        with BlockingPoseAnalyzerClient(uploads.address) as client:
            return client.upload_video(video)

    assert (await asyncio.to_thread(upload)).job_id == "j1"


async def test_the_command_prints_what_was_made(uploads, video):
    call = ["upload", str(video), "--url", uploads.address, "--exercise", "squat", "--overlay"]
    ended = await asyncio.to_thread(CliRunner().invoke, app, call)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout == "video v1\njob j1\n"
    assert uploads.asked["overlay"] is True


def test_the_command_says_in_a_line_what_is_wrong(tmp_path):
    ended = CliRunner().invoke(app, ["upload", str(tmp_path / "clip.mp4")])
    assert ended.exit_code == 2
    assert "clip.mp4: no such file" in ended.stderr
