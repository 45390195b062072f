"""Streams as the service keeps them: admitted, resumed, shed, fed by sources, ended."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest

from pose_analyzer.admission import AdmissionConfig
from pose_analyzer.errors import (
    BackendFailedError,
    ModelUnavailableError,
    NoCapacityError,
    UnknownStreamError,
)
from pose_analyzer.live_stream import MAX_UNSENT, LiveStream
from pose_analyzer.memory_watch import MemoryWatch
from pose_analyzer.ports import FrameReceiver
from pose_analyzer.source_feed import READ_AHEAD_FRAMES
from pose_analyzer.stream_manager import (
    ManagerConfig,
    Source,
    StreamManager,
)
from pose_analyzer.stream_types import AnalysedFrame, DropCause, StreamOptions, StreamState
from pose_analyzer.vram_governor import VramReading

from .live_fakes import (
    CountingMetrics,
    FakeAnalysis,
    FakeClock,
    FakePipeline,
    FakeRecorder,
    FakeSink,
)

OPTIONS = StreamOptions(exercise="squat", detector="fake")
GIB = 1 << 30


@dataclass
class Rig:
    """A manager with everything around it in the test's hands."""

    manager: StreamManager
    pipeline: FakePipeline
    analysis: FakeAnalysis
    metrics: CountingMetrics
    clock: FakeClock
    memory: dict[str, int] = field(default_factory=dict)

    def read_memory(self, device: str) -> VramReading | None:
        if device not in self.memory:
            return None
        return VramReading(self.clock.now_s, self.memory[device], 100 * GIB)

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)


def rig(max_streams: int | None = None, **pipeline: object) -> Rig:
    made = FakePipeline(**pipeline)
    parts = made, FakeAnalysis(), CountingMetrics(), FakeClock()
    holder: list[Rig] = []

    def read_memory(device: str) -> VramReading | None:
        return holder[0].read_memory(device)

    config = ManagerConfig(AdmissionConfig(max_streams=max_streams), grace_s=30.0)
    manager = StreamManager(lambda _: made, parts[1], parts[2], config, read_memory, parts[3])
    holder.append(Rig(manager, *parts))
    return holder[0]


def said(sink: FakeSink) -> list[dict]:
    return [msgspec.json.decode(message) for message in sink.messages]


async def test_a_stream_is_told_about_itself_when_a_client_connects() -> None:
    it = rig()
    stream = await it.manager.start(OPTIONS)
    sink = FakeSink()
    it.manager.attach(stream.stream_id, sink)
    assert said(sink) == [
        {
            "type": "ready",
            "stream_id": stream.stream_id,
            "next_frame": 0,
            "resumed": False,
            "exercise": "squat",
            "detector": "fake",
            "device": "cpu",
            "state": "active",
        }
    ]
    assert it.metrics.by_state == {StreamState.ACTIVE: 1}


async def test_a_new_connection_goes_on_where_the_old_one_was_lost() -> None:
    it = rig()
    stream = await it.manager.start(OPTIONS)
    first, second = FakeSink(), FakeSink()
    it.manager.attach(stream.stream_id, first)
    it.manager.offer(stream, b"picture", 0.5)
    it.manager.detach(stream.stream_id, first)
    it.clock.now_s += 20.0
    it.manager.keep_house()
    it.manager.attach(stream.stream_id, second)
    it.pipeline.finish()
    await it.settle()
    ready, answer = said(second)
    assert (ready["resumed"], ready["next_frame"]) == (True, 1)
    assert answer["frame"] == 0
    assert list(it.analysis.open_streams) == [stream.stream_id]


async def test_a_second_connection_takes_the_stream_over() -> None:
    it = rig()
    stream = await it.manager.start(OPTIONS)
    first, second = FakeSink(), FakeSink()
    it.manager.attach(stream.stream_id, first)
    it.manager.attach(stream.stream_id, second)
    assert first.closed[0] == 4409
    it.manager.detach(stream.stream_id, first)
    assert stream.sink is second


async def test_a_stream_left_alone_ends_after_the_grace_time() -> None:
    it = rig()
    stream = await it.manager.start(OPTIONS)
    it.clock.now_s += 31.0
    it.manager.keep_house()
    with pytest.raises(UnknownStreamError):
        it.manager.get(stream.stream_id)
    assert it.analysis.open_streams == {}
    assert it.pipeline.forgotten == [stream.stream_id]


async def test_what_a_stream_shows_is_kept_to_its_last_frame() -> None:
    it, recorder = rig(max_batch=1, n_stages=3, per_stream=3), FakeRecorder()
    it.manager.record_with(recorder)
    stream = await it.manager.start(OPTIONS)
    (recording,) = recorder.recordings
    assert stream.session_id == recording.session_id
    it.analysis.held = True
    for time_s in (0.1, 0.2, 0.3):
        it.manager.offer(stream, b"picture", time_s)
        it.pipeline.finish()
        await it.settle()
    it.analysis.pending[0].set_result(AnalysedFrame(b"[]", 0, 0, 0.0))
    await it.settle()
    it.manager.end(stream.stream_id, "enough")
    it.analysis.pending[1].set_result(AnalysedFrame(b"[]", 0, 0, 0.0))
    it.analysis.pending[2].set_exception(BackendFailedError("analysis", "gone"))
    it.analysis.last[stream.stream_id].set_result(b"the last")
    await it.settle()
    assert recording.frames == [0, 1]
    assert recording.closed_with == b"the last"


async def test_a_recording_is_closed_although_the_analysis_has_died() -> None:
    it, recorder = rig(), FakeRecorder()
    it.manager.record_with(recorder)
    stream = await it.manager.start(OPTIONS)
    it.manager.end_all()
    it.analysis.last[stream.stream_id].set_exception(BackendFailedError("analysis", "gone"))
    await it.manager.close()
    assert recorder.recordings[0].closed_with == b""


async def test_a_stream_with_a_listener_stays() -> None:
    it = rig()
    stream = await it.manager.start(OPTIONS)
    it.manager.attach(stream.stream_id, FakeSink())
    it.clock.now_s += 3600.0
    it.manager.keep_house()
    assert it.manager.get(stream.stream_id) is stream


async def test_pausing_drops_what_waits_and_is_told() -> None:
    it = rig()
    stream = await it.manager.start(OPTIONS)
    sink = FakeSink()
    it.manager.attach(stream.stream_id, sink)
    it.manager.offer(stream, b"1", None)
    it.manager.offer(stream, b"2", None)
    it.manager.pause(stream.stream_id)
    assert stream.dropped == {DropCause.PAUSED: 1}
    assert said(sink)[-1] == {
        "type": "state",
        "state": "paused",
        "reason": "paused by the client",
    }
    it.manager.resume(stream.stream_id)
    assert said(sink)[-1]["state"] == "active"


async def test_a_hundred_at_once_are_admitted_up_to_the_limit_and_told_why_not() -> None:
    it = rig(max_streams=4)
    answers = await asyncio.gather(
        *(it.manager.start(OPTIONS) for _ in range(100)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, NoCapacityError)]
    assert len(it.manager.streams) == 4
    assert len(refused) == 96
    assert all("4 streams" in error.reason and error.retry_after_s > 0 for error in refused)
    assert it.metrics.actions == ["refuse"] * 96


async def test_a_detector_that_cannot_be_had_is_an_error_of_the_start() -> None:
    def missing(_: str) -> FakePipeline:
        raise ModelUnavailableError("yolo11n-pose", "Download it.")

    clock = FakeClock()
    manager = StreamManager(
        missing,
        FakeAnalysis(),
        CountingMetrics(),
        ManagerConfig(AdmissionConfig()),
        lambda _: None,
        clock,
    )
    with pytest.raises(ModelUnavailableError):
        await manager.start(OPTIONS)
    assert manager.streams == ()


async def test_closing_tells_everybody_and_frees_everything() -> None:
    it = rig()
    stream = await it.manager.start(OPTIONS)
    sink = FakeSink()
    it.manager.attach(stream.stream_id, sink)
    await it.manager.close()
    assert sink.closed == (1001, "the service is shutting down")
    assert said(sink)[-1]["state"] == "ended"
    assert it.pipeline.closed
    assert it.analysis.closed
    with pytest.raises(NoCapacityError):
        await it.manager.start(OPTIONS)


async def test_who_connects_again_is_told_why_the_stream_waits() -> None:
    it = rig()
    stream = await it.manager.start(OPTIONS)
    it.manager.shed([stream.stream_id], "no memory")
    sink = FakeSink()
    it.manager.attach(stream.stream_id, sink)
    ready, state = said(sink)
    assert ready["state"] == "shed"
    assert (state["state"], state["reason"]) == ("shed", "no memory")
    it.manager.resume(stream.stream_id)
    assert said(sink)[-1]["reason"] == "resumed by the client; no memory"


async def test_streams_that_ended_meanwhile_are_neither_shed_nor_resumed() -> None:
    it = rig()
    stream, other = await it.manager.start(OPTIONS), await it.manager.start(OPTIONS)
    it.manager.end(stream.stream_id, "done")
    it.manager.shed([stream.stream_id, other.stream_id], "no memory")
    assert other.state is StreamState.SHED
    it.manager.unshed([stream.stream_id, other.stream_id], "memory again")
    assert other.state is StreamState.ACTIVE
    assert stream.state is StreamState.ENDED


class ScriptedReader:
    """A source whose thread does what the test says."""

    def __init__(self, feed: FrameReceiver, play: Callable[[FrameReceiver], None]) -> None:
        self._thread = threading.Thread(target=play, args=(feed,), daemon=True)
        self.closed = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.closed.set()


def source(
    play: Callable[[FrameReceiver], None], *, lossless: bool
) -> tuple[Source, list[ScriptedReader]]:
    readers: list[ScriptedReader] = []

    def opened(feed: FrameReceiver, device: str) -> ScriptedReader:
        readers.append(ScriptedReader(feed, play))
        return readers[-1]

    return Source(opened, lossless), readers


async def serve_until(it: Rig, stream: LiveStream, done: Callable[[], bool]) -> None:
    """Answer batches until the condition holds."""
    async with asyncio.timeout(5.0):
        while not done():
            if it.pipeline.batches:
                it.pipeline.finish()
            it.manager.keep_house()
            await asyncio.sleep(0.001)


async def test_a_file_is_read_no_faster_than_it_is_analysed_and_ends_its_stream() -> None:
    n_frames, n_read = 3 * READ_AHEAD_FRAMES, 0

    def play(feed: FrameReceiver) -> None:
        nonlocal n_read
        for n in range(n_frames):
            feed.on_frame(n / 30, b"picture")
            n_read += 1
        feed.on_end(None)

    it = rig(max_batch=4, per_stream=8)
    opened, readers = source(play, lossless=True)
    options = StreamOptions(exercise="squat", detector="fake", source="squat.mp4")
    stream = await it.manager.start(options, opened)
    sink = FakeSink()
    it.manager.attach(stream.stream_id, sink)
    await asyncio.sleep(0.1)
    assert n_read <= READ_AHEAD_FRAMES + 8
    await serve_until(it, stream, lambda: stream.ended)
    assert stream.n_answered == n_frames
    assert it.analysis.times_s[stream.stream_id] == [n / 30 for n in range(n_frames)]
    assert sink.closed == (1000, "the source has ended")
    assert readers[0].closed.wait(1.0)
    assert it.manager.pause(stream.stream_id).reason == "the source has ended"
    assert it.manager.get(stream.stream_id).results[-1].frame_index == n_frames - 1
    it.manager.detach(stream.stream_id, sink)
    it.clock.now_s += 31.0
    it.manager.keep_house()
    assert it.manager.streams == ()


async def test_the_results_of_a_long_file_may_be_fetched_after_its_end() -> None:
    def play(feed: FrameReceiver) -> None:
        feed.on_rate(25.0)
        feed.on_frame(0.0, b"picture")
        feed.on_end(None)

    it = rig()
    opened, _ = source(play, lossless=True)
    options = StreamOptions(exercise="squat", detector="fake", source="squat.mp4")
    stream = await it.manager.start(options, opened)
    it.clock.now_s += 3600.0
    await serve_until(it, stream, lambda: stream.ended)
    assert stream.source_fps == 25.0
    it.clock.now_s += 29.0
    it.manager.keep_house()
    assert len(it.manager.get(stream.stream_id).results) == 1
    it.clock.now_s += 2.0
    it.manager.keep_house()
    assert it.manager.streams == ()


async def test_a_file_goes_on_when_a_reader_takes_over_from_one_who_did_not_read() -> None:
    def play(feed: FrameReceiver) -> None:
        for n in range(5):
            feed.on_frame(n / 30, b"picture")
        feed.on_end(None)

    it = rig()
    opened, _ = source(play, lossless=True)
    options = StreamOptions(exercise="squat", detector="fake", source="squat.mp4")
    stream = await it.manager.start(options, opened)
    deaf = FakeSink()
    deaf.n_unsent = MAX_UNSENT
    it.manager.attach(stream.stream_id, deaf)
    await serve_until(it, stream, lambda: len(stream.waiting) >= 4)
    it.manager.attach(stream.stream_id, FakeSink())
    await serve_until(it, stream, lambda: stream.ended)
    assert stream.n_answered == 5


async def test_a_paused_file_waits_and_loses_nothing() -> None:
    def play(feed: FrameReceiver) -> None:
        for n in range(60):
            feed.on_frame(n / 30, b"picture")
        feed.on_end(None)

    it = rig(per_stream=8)
    opened, _ = source(play, lossless=True)
    options = StreamOptions(exercise="squat", detector="fake", source="squat.mp4")
    stream = await it.manager.start(options, opened)
    it.manager.pause(stream.stream_id)
    await serve_until(it, stream, lambda: len(stream.waiting) >= READ_AHEAD_FRAMES)
    it.manager.resume(stream.stream_id)
    await serve_until(it, stream, lambda: stream.ended)
    assert stream.n_answered == 60
    assert not stream.dropped


async def test_a_camera_never_waits_and_its_trouble_is_told() -> None:
    delivered = threading.Event()

    def play(feed: FrameReceiver) -> None:
        for n in range(50):
            feed.on_frame(n / 30, b"picture")
        feed.on_problem("no picture for 10 s; connecting again")
        feed.on_problem(None)
        delivered.set()

    it = rig()
    opened, _ = source(play, lossless=False)
    options = StreamOptions(exercise="squat", detector="fake", source="rtsp://cam/1")
    stream = await it.manager.start(options, opened)
    sink = FakeSink()
    it.manager.attach(stream.stream_id, sink)
    assert await asyncio.to_thread(delivered.wait, 2.0)
    await it.settle()
    assert stream.next_index == 50
    assert stream.dropped[DropCause.STALE] == 48
    lost, back = said(sink)[-2:]
    assert (lost["code"], back["type"]) == ("source-lost", "state")
    it.clock.now_s += 3600.0
    it.manager.keep_house()
    assert it.manager.get(stream.stream_id) is stream


async def test_streams_are_shed_while_memory_is_short_and_come_back_after() -> None:
    it = rig(device="cuda:0", max_batch=8)
    it.memory["cuda:0"] = 10 * GIB
    streams = [await it.manager.start(StreamOptions("squat", "fake", priority=n)) for n in range(4)]
    sinks = [FakeSink() for _ in streams]
    for stream, sink in zip(streams, sinks, strict=True):
        it.manager.attach(stream.stream_id, sink)
    watch = MemoryWatch(it.manager, it.read_memory, it.metrics, 8, it.clock)

    async def look_for(duration_s: float) -> None:
        for _ in range(round(duration_s / 0.2)):
            it.clock.now_s += 0.2
            await watch.look()

    await look_for(1.0)
    assert it.metrics.actions == []
    it.memory["cuda:0"] = 92 * GIB
    await look_for(2.0)
    assert streams[0].state is StreamState.SHED
    assert streams[3].state is StreamState.ACTIVE
    told = said(sinks[0])[-1]
    assert told["state"] == "shed"
    assert "92%" in told["reason"]
    assert it.pipeline.max_batch < 8
    with pytest.raises(NoCapacityError):
        await it.manager.start(OPTIONS)
    it.memory["cuda:0"] = 10 * GIB
    await look_for(10.0)
    assert all(stream.state is StreamState.ACTIVE for stream in streams)
    assert said(sinks[0])[-1]["state"] == "active"
    assert it.pipeline.max_batch == 8
