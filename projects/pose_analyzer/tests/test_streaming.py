"""Live streams through real sockets."""

import base64
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import av
import numpy as np
import pytest
from fastapi import WebSocket
from websockets.exceptions import ConnectionClosed

from pose_analyzer.api import streaming
from pose_analyzer.api.main import create_app
from pose_analyzer.api.streaming import MAX_WAITING, Connection, RateLimit, Reader
from pose_analyzer.backends import create_detector
from pose_analyzer.backends.cpu_pipeline import CpuFramePipeline
from pose_analyzer.exercises import load_exercises, select_exercises
from pose_analyzer.live_stream import LiveStream
from pose_analyzer.settings import Settings
from pose_analyzer.skeletons import ANGLE_NAMES, KEYPOINT_NAMES
from pose_analyzer.sources import open_source
from pose_analyzer.stream_analyzer import AnalysisConfig
from pose_analyzer.stream_manager import StreamManager
from pose_analyzer.stream_types import Encoding, StreamOptions
from pose_analyzer.types import PersonFrame, Pose, VideoAnalysis
from pose_analyzer.ultralytics_library import ultralytics_installed
from pose_analyzer.video_processor import process_video

from .builders import FakeDetector, FakeSource, squat_pose, squat_progress
from .live_server import LiveServer, png, receive, send, serving

PICTURE = png(np.zeros((400, 640, 3), np.uint8))
MAX_FRAME_BYTES = 100_000


def squatter(time_s: float) -> list[Pose]:
    """What the detector of these tests sees: somebody who squats three times."""
    return [squat_pose(squat_progress(time_s, n_repetitions=3))]


def pipeline(model: str, settings: Settings) -> CpuFramePipeline:
    return CpuFramePipeline(
        lambda: FakeDetector(squatter), per_stream=False, n_workers=2, max_pixels=1_000_000
    )


def settings(**changes: object) -> Settings:
    defaults = {
        "detector": "yolo11n-pose",
        "stream_max_frame_bytes": MAX_FRAME_BYTES,
        "analysis_processes": 0,
        "min_stream_fps": 0.001,
    }
    return Settings(**(defaults | changes))


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with serving(create_app(settings(), pipeline_factory=pipeline)) as server:
        yield server


def closing(socket_) -> tuple[int, str]:
    """Code and reason with which the service closes the connection."""
    try:
        while True:
            socket_.recv(timeout=10)
    except ConnectionClosed as closed:
        return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (0, "not said")


class TestRest:
    def test_a_stream_says_where_its_frames_go_and_what_its_arrays_mean(
        self, live: LiveServer
    ) -> None:
        stream = live.start_stream(exercise="squat")
        assert stream["ws_url"] == f"ws://127.0.0.1:{live.port}/stream/{stream['stream_id']}"
        assert stream["keypoint_names"] == list(KEYPOINT_NAMES)
        assert stream["angle_names"] == list(ANGLE_NAMES)
        assert stream["detector"] == "fake"

    def test_results_come_in_pages(self, live: LiveServer) -> None:
        stream = live.start_stream(exercise="squat")
        with live.connect(stream, "pose.v1.msgpack") as socket_:
            for n in range(5):
                send(socket_, PICTURE, n / 30)
                receive(socket_)
        path = f"/stream/{stream['stream_id']}/results"
        _, first, _ = live.call("GET", f"{path}?limit=2")
        _, rest, _ = live.call("GET", f"{path}?since={first['next']}")
        frames = [result["frame"] for page in (first, rest) for result in page["results"]]
        assert frames == [0, 1, 2, 3, 4]
        assert rest["results"][0]["type"] == "result"
        assert live.call("GET", f"{path}?since=4")[1] == {"results": [], "next": 4}

    @pytest.mark.parametrize("query", ["since=-2", f"since={10**30}", "limit=0", "since=x"])
    def test_pages_that_cannot_be_are_refused(self, live: LiveServer, query: str) -> None:
        path = f"/stream/{live.start_stream()['stream_id']}/results"
        status, problem, _ = live.call("GET", f"{path}?{query}")
        assert (status, problem["type"].rpartition(":")[2]) == (422, "invalid-request")

    def test_a_missing_file_of_an_allowed_folder_is_told(self, tmp_path: Path) -> None:
        app = create_app(settings(allowed_sources=(str(tmp_path),)), pipeline_factory=pipeline)
        with serving(app) as live:
            status, problem, _ = live.call("POST", "/stream/start", {"source": "squat.mp4"})
        assert (status, problem["type"].rpartition(":")[2]) == (404, "unknown-source")
        assert str(tmp_path) not in json.dumps(problem)

    def test_streams_are_listed_paused_resumed_and_ended(self, live: LiveServer) -> None:
        stream = live.start_stream(exercise="lunge", priority=3)
        path = f"/stream/{stream['stream_id']}"
        assert live.call("POST", f"{path}/pause")[1]["state"] == "paused"
        _, streams, _ = live.call("GET", "/streams")
        (info,) = [one for one in streams["streams"] if one["stream_id"] == stream["stream_id"]]
        assert (info["state"], info["priority"], info["exercise"]) == ("paused", 3, "lunge")
        assert live.call("POST", f"{path}/resume")[1]["state"] == "active"
        assert live.call("GET", path)[1]["connected"] is False
        assert live.call("DELETE", path)[0] == 204
        status, problem, _ = live.call("GET", path)
        assert (status, problem["type"].rpartition(":")[2]) == (404, "unknown-stream")

    @pytest.mark.parametrize(
        ("body", "status", "kind"),
        [
            ({"source": "\udc80"}, 422, "invalid-request"),
            ({"exercise": "yodel"}, 422, "unknown-name"),
            ({"detector": "/etc/passwd.pt"}, 422, "unknown-name"),
            ({"fps": 0}, 422, "invalid-request"),
            ({"roi": [0.5, 0.0, 0.5, 1.0]}, 422, "invalid-request"),
            ({"color": "red"}, 422, "invalid-request"),
            ({"source": "/etc/passwd"}, 403, "source-not-allowed"),
            ({"source": "rtsp://camera.example/1"}, 403, "source-not-allowed"),
        ],
    )
    def test_refusals_are_problem_documents(
        self, live: LiveServer, body: dict, status: int, kind: str
    ) -> None:
        got, problem, headers = live.call("POST", "/stream/start", body)
        assert (got, problem["type"].rpartition(":")[2]) == (status, kind)
        assert headers["content-type"] == "application/problem+json"

    def test_metrics_count_frames(self, live: LiveServer) -> None:
        import urllib.request

        with live.connect(live.start_stream()) as socket_:
            send(socket_, PICTURE)
            receive(socket_)
        with urllib.request.urlopen(f"http://127.0.0.1:{live.port}/metrics") as answer:
            text = answer.read().decode()
        assert 'pose_frames_total{outcome="answered"}' in text
        assert 'pose_stage_seconds_bucket{le="0.005",stage="decode"}' in text
        assert 'pose_streams{state="active"}' in text
        assert "process_resident_memory_bytes" in text

    def test_a_full_service_refuses_with_a_reason_and_a_time(self) -> None:
        app = create_app(settings(max_streams=2), pipeline_factory=pipeline)
        with serving(app) as live:
            live.start_stream()
            live.start_stream()
            status, problem, headers = live.call("POST", "/stream/start", {})
            assert (status, problem["type"].rpartition(":")[2]) == (503, "no-capacity")
            assert "2 streams" in problem["detail"]
            assert int(headers["retry-after"]) > 0


class TestWebSocket:
    def test_every_picture_is_answered_with_where_its_time_went(self, live: LiveServer) -> None:
        stream = live.start_stream(exercise="squat")
        with live.connect(stream) as socket_:
            ready = receive(socket_, "ready")
            assert (ready["stream_id"], ready["next_frame"]) == (stream["stream_id"], 0)
            for n in range(6):
                send(socket_, PICTURE, n / 30)
                answer = receive(socket_)
                assert answer["frame"] == n
                assert answer["captured_s"] == n / 30
                assert answer["dropped"] == {}
        assert set(answer["timing"]) == {"queue_s", "decode_s", "infer_s", "postprocess_s"}
        assert all(0.0 <= value < 10.0 for value in answer["timing"].values())
        (person,) = answer["people"]
        assert len(person["keypoints_px"]) == 17
        assert len(person["angles"]["values_deg"]) == 12
        assert person["angles_3d"] is None
        assert person["exercise"] == "squat"

    def test_messagepack_says_the_same_as_json(self, live: LiveServer) -> None:
        answers = []
        for protocol in ("pose.v1.json", "pose.v1.msgpack"):
            with live.connect(live.start_stream(exercise="squat"), protocol) as socket_:
                assert socket_.subprotocol == protocol
                for n in range(10):
                    send(socket_, PICTURE, n / 30)
                    answer = receive(socket_)
                answers.append(answer["people"])
        as_json, as_msgpack = answers
        assert without_nan(as_msgpack) == as_json

    def test_a_reconnected_client_loses_no_repetition(self, live: LiveServer) -> None:
        stream = live.start_stream(exercise="squat")
        n_sent = 0
        for part in range(4):
            with live.connect(stream) as socket_:
                ready = receive(socket_, "ready")
                assert (ready["resumed"], ready["next_frame"]) == (part > 0, n_sent)
                for _ in range(60):
                    send(socket_, PICTURE, n_sent / 20)
                    answer = receive(socket_)
                    n_sent += 1
        (person,) = answer["people"]
        assert person["n_repetitions"] == 3
        assert person["last_repetition"]["number"] == 3
        with live.connect(stream) as socket_:
            for n in range(5):  # after twenty seconds without a connection
                send(socket_, PICTURE, n_sent / 20 + 20.0 + n / 20)
                (again,) = receive(socket_)["people"]
                assert (again["track_id"], again["n_repetitions"]) == (person["track_id"], 3)

    def test_an_exercise_can_be_changed_while_the_person_stays_known(
        self, live: LiveServer
    ) -> None:
        with live.connect(live.start_stream(exercise="lunge")) as socket_:
            send(socket_, PICTURE, 0.0)
            before = receive(socket_)
            socket_.send('{"type": "exercise", "exercise": "squat"}')
            for n in range(1, 100):
                send(socket_, PICTURE, n / 20)
                after = receive(socket_)
            socket_.send('{"type": "exercise", "exercise": "yodel"}')
            error = receive(socket_, "error")
        assert before["people"][0]["exercise"] == "lunge"
        assert after["people"][0]["exercise"] == "squat"
        assert after["people"][0]["n_repetitions"] > 0
        assert after["people"][0]["track_id"] == before["people"][0]["track_id"]
        assert error["code"] == "unknown-exercise"

    def test_a_client_may_pause_and_is_answered_pings(self, live: LiveServer) -> None:
        with live.connect(live.start_stream()) as socket_:
            socket_.send('{"type": "pause"}')
            assert receive(socket_, "state")["state"] == "paused"
            send(socket_, PICTURE)
            socket_.send('{"type": "resume"}')
            assert receive(socket_, "state")["state"] == "active"
            send(socket_, PICTURE)
            answer = receive(socket_)
            assert (answer["frame"], answer["dropped"]) == (1, {"paused": 1})
            socket_.send('{"type": "ping", "data": "7"}')
            assert receive(socket_, "pong")["data"] == "7"

    @pytest.mark.parametrize(
        "picture",
        [b"", b"no picture", PICTURE[:-20], b"GIF89a" + bytes(50)],
        ids=["empty", "text", "truncated", "gif"],
    )
    def test_what_cannot_be_decoded_is_told_and_the_stream_goes_on(
        self, live: LiveServer, picture: bytes
    ) -> None:
        with live.connect(live.start_stream()) as socket_:
            send(socket_, picture)
            error = receive(socket_, "error")
            assert (error["code"], error["frame"]) == ("undecodable-frame", 0)
            send(socket_, PICTURE)
            assert receive(socket_)["dropped"] == {"undecodable": 1}

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            '{"type": "dance"}',
            '{"captured_s": 1}',
            '{"type": "frame", "captured_s": 1e300}',
            '{"type": "frame", "captured_s": NaN}',
            '{"type": "ping", "data": "%s"}' % ("x" * 70_000),
        ],
    )
    def test_unknown_messages_are_told_and_the_stream_goes_on(
        self, live: LiveServer, text: str
    ) -> None:
        with live.connect(live.start_stream()) as socket_:
            socket_.send(text)
            assert receive(socket_, "error")["code"] == "unknown-message"
            send(socket_, PICTURE)
            assert receive(socket_)["frame"] == 0

    def test_too_large_a_picture_ends_the_connection_not_the_stream(self, live: LiveServer) -> None:
        stream = live.start_stream()
        with live.connect(stream) as socket_:
            socket_.send(bytes(MAX_FRAME_BYTES + 1))
            assert closing(socket_)[0] == 1009
        with live.connect(stream) as socket_:
            assert receive(socket_, "ready")["resumed"]

    def test_a_second_connection_takes_over(self, live: LiveServer) -> None:
        stream = live.start_stream()
        with live.connect(stream) as first, live.connect(stream) as second:
            assert closing(first)[0] == 4409
            send(second, PICTURE)
            assert receive(second)["frame"] == 0

    def test_an_unknown_stream_is_closed_with_its_code(self, live: LiveServer) -> None:
        unknown = {"ws_url": f"ws://127.0.0.1:{live.port}/stream/nothing"}
        with live.connect(unknown) as socket_:
            code, reason = closing(socket_)
        assert code == 4404
        assert "POST /stream/start" in reason

    def test_a_deleted_stream_closes_its_connection(self, live: LiveServer) -> None:
        stream = live.start_stream()
        with live.connect(stream) as socket_:
            receive(socket_, "ready")
            live.call("DELETE", f"/stream/{stream['stream_id']}")
            assert receive(socket_, "state")["state"] == "ended"
            assert closing(socket_)[0] == 1000

    def test_a_flood_is_sent_away(self, live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streaming, "MAX_MESSAGES_AT_ONCE", 50)
        with live.connect(live.start_stream()) as socket_:
            with contextlib.suppress(ConnectionClosed):
                for _ in range(20_000):
                    socket_.send(b"x")
            assert closing(socket_)[0] == 4429

    def test_announcing_pictures_without_end_is_a_flood(
        self, live: LiveServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streaming, "MAX_MESSAGES_AT_ONCE", 50)
        with live.connect(live.start_stream()) as socket_:
            with contextlib.suppress(ConnectionClosed):
                for _ in range(20_000):
                    socket_.send('{"type": "frame", "captured_s": 1}')
            assert closing(socket_)[0] == 4429

    def test_a_client_that_does_not_read_is_sent_away(
        self, live: LiveServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streaming, "SLOW_READER_S", 0.3)
        stream = live.start_stream()
        path = f"/stream/{stream['stream_id']}"
        with deaf_client(live.port, path) as socket_:
            # Each ping is answered with as much, until nobody can take more.
            ping = text_frame(json.dumps({"type": "ping", "data": "x" * 60_000}))
            deadline_s = time.monotonic() + 20.0
            while live.call("GET", path)[1]["connected"]:
                assert time.monotonic() < deadline_s
                with contextlib.suppress(OSError):
                    socket_.sendall(ping)

    def test_a_client_that_vanishes_mid_frame_may_come_back(self, live: LiveServer) -> None:
        stream = live.start_stream()
        with deaf_client(live.port, f"/stream/{stream['stream_id']}") as socket_:
            # The first half of a picture, then a broken connection.
            socket_.sendall(b"\x82\xfe\xff\xff" + bytes(100))
            while not live.call("GET", f"/stream/{stream['stream_id']}")[1]["connected"]:
                time.sleep(0.02)
        deadline_s = time.monotonic() + 5.0
        while live.call("GET", f"/stream/{stream['stream_id']}")[1]["connected"]:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        with live.connect(stream) as again:
            send(again, PICTURE)
            assert receive(again)["frame"] == 0

    def test_a_server_that_shuts_down_says_so(self) -> None:
        app = create_app(settings(), pipeline_factory=pipeline)
        with serving(app) as live, live.connect(live.start_stream()) as socket_:
            receive(socket_, "ready")
            stopping = threading.Thread(target=live.stop)
            stopping.start()
            assert receive(socket_, "state")["state"] == "ended"
            assert closing(socket_)[0] == 1001
            stopping.join()


async def test_a_picture_of_a_connection_that_was_sent_away_is_not_taken() -> None:
    manager = create_autospec(StreamManager, instance=True)
    live = LiveStream("a", StreamOptions("squat", "fake"), 0.0, lossless=False, n_results_kept=1)

    async def receive() -> dict:
        connection.close(4409, "another connection took the stream over")
        return {"type": "websocket.receive", "bytes": PICTURE}

    socket_ = create_autospec(WebSocket, instance=True)
    socket_.receive.side_effect = receive
    connection = Connection(socket_, Encoding.JSON)
    await Reader(connection, live, manager, {}, MAX_FRAME_BYTES).receive_all(socket_)
    manager.offer.assert_not_called()


def test_messages_for_a_reader_who_never_reads_are_bounded() -> None:
    connection = Connection(create_autospec(WebSocket, instance=True), Encoding.JSON)
    for _ in range(10 * MAX_WAITING):
        connection.put(b"{}")
    assert connection.n_unsent == MAX_WAITING
    assert connection.closing


@contextlib.contextmanager
def deaf_client(port: int, path: str) -> Iterator[socket.socket]:
    """A connection whose other end never reads."""
    with socket.socket() as socket_:
        socket_.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        socket_.settimeout(0.5)
        socket_.connect(("127.0.0.1", port))
        key = base64.b64encode(bytes(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        socket_.sendall(request.encode())
        yield socket_


def text_frame(text: str) -> bytes:
    """A masked WebSocket text frame of 126 to 65535 bytes (RFC 6455, 5.2), masked with zeros."""
    return b"\x81\xfe" + struct.pack(">H", len(text)) + bytes(4) + text.encode()


def without_nan(value: object) -> object:
    """The same with None for NaN, as JSON has it."""
    if isinstance(value, float) and np.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    return [without_nan(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("rate_hz", "n_at_once"), [(10.0, 5), (100.0, 50)])
def test_a_rate_limit_allows_its_rate_for_ever_and_bursts_for_a_moment(
    rate_hz: float, n_at_once: int
) -> None:
    limit = RateLimit(rate_hz, n_at_once)
    burst = [limit.allows(0.0) for _ in range(3 * n_at_once)]
    assert n_at_once <= burst.count(True) <= n_at_once + 1
    steady = RateLimit(rate_hz, n_at_once)
    assert all(steady.allows(n / rate_hz) for n in range(1000))
    twice = RateLimit(rate_hz, n_at_once)
    allowed = [twice.allows(n / (2 * rate_hz)) for n in range(1000)]
    assert 500 <= allowed.count(True) <= 501 + n_at_once


def stream_of(live: LiveServer, protocol: str, frames, **start: object) -> list[dict]:
    """Answers of the service to each of these (time, picture), one by one."""
    answers = []
    with live.connect(live.start_stream(**start), protocol) as socket_:
        for time_s, image in frames:
            send(socket_, png(image), time_s)
            answers.append(receive(socket_))
    return answers


def recorded(source, detector, config: AnalysisConfig) -> tuple[VideoAnalysis, list]:
    """The same frames on the recorded path: analysis, and everybody in each frame."""
    people: list[list[PersonFrame]] = []
    analysis = process_video(source, detector, config, lambda _, seen: people.append(list(seen)))
    return analysis, people


def assert_equal(answers: list[dict], people: list[list[PersonFrame]]) -> None:
    """Live answers are the recorded ones to the last bit."""
    assert len(answers) == len(people)
    for answer, seen in zip(answers, people, strict=True):
        assert [one["track_id"] for one in answer["people"]] == [one.track_id for one in seen]
        for live_one, one in zip(answer["people"], seen, strict=True):
            angles = live_one["angles"]
            np.testing.assert_array_equal(angles["values_deg"], one.angles.values_deg)
            np.testing.assert_array_equal(angles["sd_deg"], one.angles.sd_deg)
            np.testing.assert_array_equal(angles["trusted"], one.angles.trusted)
            np.testing.assert_array_equal(live_one["keypoints_px"], one.keypoints_px)
            assert live_one["n_repetitions"] == one.n_repetitions
            assert live_one["phase"] == one.phase


def test_live_equals_recorded() -> None:
    times_s = np.arange(0, 240) / 29.97
    source = FakeSource(times_s, width_px=64, height_px=40)
    exercises = load_exercises(Settings().exercises_dir)
    config = AnalysisConfig(select_exercises(exercises, "auto"), sample_fps=None)
    analysis, people = recorded(source, FakeDetector(squatter), config)
    frames = [(frame.time_s, frame.image_bgr) for frame in source.frames()]
    with serving(create_app(settings(analysis_processes=1), pipeline_factory=pipeline)) as live:
        answers = stream_of(live, "pose.v1.msgpack", frames, exercise="auto")
    assert_equal(answers, people)
    assert len(analysis.people[0].repetitions) == answers[-1]["people"][0]["n_repetitions"] == 3


@pytest.mark.parametrize(
    "chosen", [{"roi": (0.1, 0.2, 0.9, 0.95)}, {"sample_fps": 10.0}], ids=["roi", "sample_fps"]
)
def test_live_equals_recorded_in_a_region_and_sampled(clip: Path, chosen: dict) -> None:
    source = open_source(clip)
    exercises = load_exercises(Settings().exercises_dir)
    config = AnalysisConfig(select_exercises(exercises, "squat"), **({"sample_fps": None} | chosen))
    analysis, people = recorded(source, SizedDetector(squatter), config)
    start = {"exercise": "squat", "fps": source.info.fps, **chosen}

    def sized(model: str, settings: Settings) -> CpuFramePipeline:
        return CpuFramePipeline(
            lambda: SizedDetector(squatter), per_stream=False, n_workers=2, max_pixels=1_000_000
        )

    app = create_app(settings(allowed_sources=(str(clip.parent),)), pipeline_factory=sized)
    with serving(app) as live:
        sent = sent_whole(live, source, **start)
        read = read_by_service(live, clip.name, exercise="squat", **chosen)
    assert_equal(sent, people)
    assert_equal(read, people)
    assert len(analysis.people[0].repetitions) == sent[-1]["people"][0]["n_repetitions"] > 0


class SizedDetector(FakeDetector):
    """Sees people where the picture it is given says, so that a region matters."""

    def detect(self, images_bgr, times_s=None):
        height_px, width_px = images_bgr[0].shape[:2]
        moved = np.array([width_px / 7.0, height_px / 9.0])
        return [
            [replace(pose, keypoints_px=pose.keypoints_px + moved) for pose in people]
            for people in super().detect(images_bgr, times_s)
        ]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds at 25 pictures a second."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(200):
            image = np.full((64, 96, 3), index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def sent_whole(live: LiveServer, source, **start: object) -> list[dict]:
    """Answers to all frames of a source, each sent when the one before has been dealt with."""
    stream = live.start_stream(**start)
    path = f"/stream/{stream['stream_id']}"
    with live.connect(stream, "pose.v1.msgpack") as socket_:
        for n_sent, frame in enumerate(source.frames(), start=1):
            send(socket_, png(frame.image_bgr), frame.time_s)
            info = live.call("GET", path)[1]
            while info["n_answered"] + sum(info["dropped"].values()) < n_sent:
                info = live.call("GET", path)[1]
        assert info["dropped"].keys() <= {"unsampled"}
        return [receive(socket_) for _ in range(info["n_answered"])]


def read_by_service(live: LiveServer, name: str, **start: object) -> list[dict]:
    """Answers to a file the service reads itself."""
    path = f"/stream/{live.start_stream(source=name, **start)['stream_id']}"
    deadline_s = time.monotonic() + 20.0
    while live.call("GET", path)[1]["state"] != "ended":
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return [
        with_nan(result) for result in live.call("GET", f"{path}/results?limit=1000")[1]["results"]
    ]


def with_nan(value: object) -> object:
    """The same with NaN for None, as MessagePack has it."""
    if isinstance(value, dict):
        return {key: with_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_nan(part) for part in value]
    return float("nan") if value is None else value


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.parametrize("detector", ["mediapipe-lite", "yolo11n-pose"])
def test_live_equals_recorded_on_a_real_clip(
    shared_data: Path, tmp_path: Path, detector: str
) -> None:
    if detector.startswith("yolo") and not ultralytics_installed():
        pytest.skip("needs the extra yolo")
    chosen = Settings(
        model_path=(shared_data / "models",),
        cache_dir=tmp_path,
        detector=detector,
        analysis_processes=0,
        min_stream_fps=0.001,
    )
    clip = open_source(shared_data / "videos" / "ohp_dumbbell_side_720x408p30.mp4")
    exercises = load_exercises(chosen.exercises_dir)
    config = AnalysisConfig(select_exercises(exercises, "overhead_press"), sample_fps=10.0)
    with_detector = create_detector(detector, chosen)
    analysis, people = recorded(clip, with_detector, config)
    with_detector.close()
    frames = ((frame.time_s, frame.image_bgr) for frame in clip.frames(10.0))
    with serving(create_app(chosen)) as live:
        answers = stream_of(
            live, "pose.v1.msgpack", frames, exercise="overhead_press", detector=detector
        )
    assert_equal(answers, people)
    counted = max(len(person.repetitions) for person in analysis.people)
    told = max(one["n_repetitions"] for answer in answers for one in answer["people"])
    assert counted == told > 0
