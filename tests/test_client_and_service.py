"""The Python client against the real service: loopback sockets, only the detector is made up."""

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from pose_analyzer.api.main import create_app
from pose_analyzer.backends.cpu_pipeline import CpuFramePipeline
from pose_analyzer.settings import Settings
from pose_analyzer_client import (
    BlockingPoseAnalyzerClient,
    ClientOptions,
    ConnectionInterrupted,
    ConnectionResumed,
    ControlRefusedError,
    NoCapacityError,
    PoseAnalyzerClient,
    ReconnectPolicy,
    RequestRefusedError,
    StateChanged,
    StreamOptions,
    StreamRestarted,
)

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects" / "pose_analyzer" / "tests"))

from builders import FakeDetector, squat_keypoints, squat_pose, squat_progress
from live_server import LiveServer, serving

IMAGE = np.zeros((400, 640, 3), np.uint8)
FPS = 15.0
N_FRAMES = 75
AT_ONCE = ClientOptions(reconnect=ReconnectPolicy(first_delay_s=0.01, max_delay_s=0.05))


def service(port: int = 0, **changes: object):
    """A service whose detector sees somebody squat twice, whatever the picture shows."""

    def pipeline(_model: str, _settings: Settings) -> CpuFramePipeline:
        return CpuFramePipeline(
            lambda: FakeDetector(lambda time_s: [squat_pose(squat_progress(time_s, 0.5, 2))]),
            per_stream=False,
            n_workers=1,
            max_pixels=1_000_000,
        )

    wanted = {"detector": "yolo11n-pose", "analysis_processes": 0, "min_stream_fps": 0.001}
    app = create_app(Settings(**(wanted | changes)), pipeline_factory=pipeline)
    return serving(app, port)


@pytest.fixture
def live() -> Iterator[LiveServer]:
    with service() as server:
        yield server


def address(live: LiveServer) -> str:
    return f"ws://127.0.0.1:{live.port}"


def timed(n_frames: int = N_FRAMES):
    """Pictures with the times at which they were taken, as of a video."""
    return ((index / FPS, IMAGE) for index in range(n_frames))


def break_connections(live: LiveServer) -> None:
    """Cut all connections, as a network would."""
    for connection in tuple(live.server.server_state.connections):
        connection.loop.call_soon_threadsafe(connection.transport.abort)


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
async def test_each_frame_of_a_video_is_answered_with_what_the_service_saw(live, encoding):
    options = ClientOptions(encoding=encoding)
    async with PoseAnalyzerClient(address(live), "squat", options=options) as client:
        results = [result async for result in client.stream(timed(), drop=False)]
        page = await client.results(since=N_FRAMES - 4, limit=2)
        streams = await client.streams()
    assert [result.frame for result in results] == list(range(N_FRAMES))
    assert [result.captured_s for result in results] == pytest.approx(np.arange(N_FRAMES) / FPS)
    assert [len(result.people) for result in results] == [1] * N_FRAMES
    person = results[-1].people[0]
    assert (person.exercise, person.n_repetitions) == ("squat", 2)
    assert person.last_repetition.end_s == pytest.approx(4.5, abs=0.5)
    np.testing.assert_allclose(person.keypoints_px, squat_keypoints(), atol=3.0)
    assert person.angle("left_knee").value_deg == pytest.approx(180.0, abs=10.0)
    assert [result.frame for result in page.results] == [N_FRAMES - 3, N_FRAMES - 2]
    assert [stream.n_answered for stream in streams] == [N_FRAMES]
    assert live.call("GET", "/streams")[1] == {"streams": []}


def test_a_script_pauses_changes_exercise_and_is_refused_what_does_not_exist(live):
    events = []
    with BlockingPoseAnalyzerClient(address(live), "squat", on_event=events.append) as client:
        assert client.detect(IMAGE, 0.0).people[0].exercise == "squat"
        client.pause()
        assert client.state == "paused"
        client.resume()
        client.change_exercise("lunge")
        with pytest.raises(ControlRefusedError, match="Known: auto,"):
            client.change_exercise("squta")
        answer = client.detect(IMAGE, 0.1).people[0]
        assert (answer.track_id, answer.exercise, answer.n_repetitions) == (1, "lunge", 0)
    changes = [event.state for event in events if isinstance(event, StateChanged)]
    assert changes == ["paused", "active"]


async def test_counts_survive_a_broken_connection(live):
    events = []

    def frames():
        for index, frame in enumerate(timed()):
            if index == N_FRAMES // 2:
                break_connections(live)
            yield frame

    client = PoseAnalyzerClient(address(live), "squat", options=AT_ONCE, on_event=events.append)
    async with client:
        results = [result async for result in client.stream(frames(), drop=False)]
    assert [type(event) for event in events] == [ConnectionInterrupted, ConnectionResumed]
    assert len(results) >= N_FRAMES - 1, "at most the frame on its way is lost"
    assert all(later.frame > earlier.frame for earlier, later in pairwise(results))
    assert {person.track_id for result in results for person in result.people} == {1}
    assert results[-1].people[0].n_repetitions == 2


async def test_a_restarted_service_is_found_again(live):
    """The new stream counts from zero, and its time goes on where the frames are."""
    events, answered = [], []
    client = PoseAnalyzerClient(address(live), "squat", options=AT_ONCE, on_event=events.append)
    async with client:
        answered += [result.frame async for result in client.stream(timed(10), drop=False)]
        live.stop()
        with service(live.port) as again:
            frames = ((10.0 + time_s, image) for time_s, image in timed(10))
            answered += [result.frame async for result in client.stream(frames, drop=False)]
            assert len(again.call("GET", "/streams")[1]["streams"]) == 1
    assert answered == [*range(10), *range(10)]
    assert isinstance(events[-1], StreamRestarted)
    assert client.statistics.n_restarts == 1


def test_a_file_the_service_reads_is_watched_to_its_end(tmp_path):
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=15)
        stream.width, stream.height, stream.pix_fmt = 64, 40, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((40, 64, 3), np.uint8), format="bgr24")
        for _ in range(N_FRAMES):
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    source = StreamOptions(source=str(clip))
    with (
        service(allowed_sources=(str(tmp_path),)) as live,
        BlockingPoseAnalyzerClient(address(live), "squat", stream=source) as client,
    ):
        results = list(client.watch())
    assert results[-1].frame == N_FRAMES - 1
    assert results[-1].people[0].n_repetitions == 2


async def test_refusals_say_what_to_do():
    with service(max_streams=1) as live:
        where = address(live)
        async with PoseAnalyzerClient(where, "squta") as client:
            with pytest.raises(RequestRefusedError, match="squat") as refused:
                await client.start()
            assert (refused.value.status, refused.value.code) == (422, "unknown-name")
        async with PoseAnalyzerClient(where, stream=StreamOptions(source="/etc/hosts")) as client:
            with pytest.raises(RequestRefusedError, match="POSE_ALLOWED_SOURCES"):
                await client.start()
        async with PoseAnalyzerClient(where) as first, PoseAnalyzerClient(where) as second:
            await first.start()
            with pytest.raises(NoCapacityError) as full:
                await second.start()
            assert full.value.retry_after_s > 0
            await first.delete()
            await second.start()
