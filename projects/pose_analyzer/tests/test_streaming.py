"""Live streams through real sockets."""

import base64
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from unittest.mock import create_autospec

import numpy as np
import pytest
from fastapi import WebSocket
from websockets.exceptions import ConnectionClosed

from pose_analyzer.api import streaming
from pose_analyzer.api.main import create_app
from pose_analyzer.api.streaming import MAX_WAITING, Connection, RateLimit, Reader
from pose_analyzer.live_stream import LiveStream
from pose_analyzer.stream_manager import StreamManager
from pose_analyzer.stream_types import Encoding, StreamOptions

from .live_server import LiveServer, receive, send, serving
from .squat_service import MAX_FRAME_BYTES, PICTURE, pipeline, settings


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

    def test_answers_do_not_pile_up_for_a_client_that_does_not_read(self, live: LiveServer) -> None:
        stream = live.start_stream()
        path = f"/stream/{stream['stream_id']}"
        with deaf_client(live.port, path) as socket_:
            info = live.call("GET", path)[1]
            while info["dropped"].get("stale", 0) < 100:
                with contextlib.suppress(TimeoutError):
                    socket_.sendall(binary_frame(PICTURE))
                info = live.call("GET", path)[1]
        assert info["n_answered"] < 100

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


def binary_frame(content: bytes) -> bytes:
    """The same of bytes."""
    return b"\x82\xfe" + struct.pack(">H", len(content)) + bytes(4) + content


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
