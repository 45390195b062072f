"""Live streams over REST."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pose_analyzer.api.main import create_app
from pose_analyzer.skeletons import ANGLE_NAMES, KEYPOINT_NAMES

from .live_server import LiveServer, receive, send, serving
from .squat_service import PICTURE, pipeline, settings


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with serving(create_app(settings(), pipeline_factory=pipeline)) as server:
        yield server


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
        paused = live.call("POST", f"{path}/pause")[1]
        assert (paused["state"], paused["reason"]) == ("paused", "paused by the client")
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

    def test_health_names_the_detectors_of_streams(self, live: LiveServer) -> None:
        live.start_stream()
        assert {"name": "fake", "device": "cpu"} in live.call("GET", "/health")[1]["detectors"]

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
