"""Slots, batches, fairness and drops, with a detector that answers when told."""

import asyncio
import random
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pose_analyzer.batching import BatchPolicy, next_turns
from pose_analyzer.concurrent_stream_processor import (
    MAX_UNDECODABLE_IN_ROW,
    ConcurrentStreamProcessor,
)
from pose_analyzer.errors import BackendFailedError
from pose_analyzer.live_stream import MAX_UNSENT, LiveStream
from pose_analyzer.ports import FramePipeline, LiveAnalysis, StreamMetrics
from pose_analyzer.sampling import sampling_slot
from pose_analyzer.stream_types import AnalysedFrame, DropCause, FrameFailure, StreamOptions

from .live_fakes import CountingMetrics, FakeAnalysis, FakeClock, FakePipeline, FakeSink

PICTURE = b"\xff\xd8 not looked at here"


@dataclass
class Rig:
    """A processor with everything around it in the test's hands."""

    pipeline: FakePipeline
    analysis: FakeAnalysis
    metrics: CountingMetrics
    clock: FakeClock
    processor: ConcurrentStreamProcessor

    def stream(self, name: str = "a", **options: object) -> LiveStream:
        lossless = bool(options.pop("lossless", False))
        return LiveStream(
            name,
            StreamOptions(exercise="squat", detector="fake", **options),
            started_s=self.clock.now_s,
            lossless=lossless,
            n_results_kept=50,
            sink=FakeSink(),
        )

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def finish(self, failure: FrameFailure | None = None, *, broken: bool = False) -> None:
        self.pipeline.finish(failure, broken=broken)
        await self.settle()

    def offer(self, stream: LiveStream, captured_s: float | None = None) -> None:
        self.clock.now_s += 0.001
        self.processor.offer(stream, PICTURE, captured_s)


def rig(**pipeline: int | str) -> Rig:
    """Make a rig; in a running loop."""
    parts = FakePipeline(**pipeline), FakeAnalysis(), CountingMetrics(), FakeClock()
    return Rig(*parts, ConcurrentStreamProcessor(*parts))


def results(stream: LiveStream) -> list[dict]:
    """Answers the stream's client was sent."""
    messages = [msgspec.json.decode(message) for message in stream.sink.messages]
    return [message for message in messages if message["type"] == "result"]


def test_the_fakes_are_what_they_stand_for() -> None:
    assert isinstance(FakePipeline(), FramePipeline)
    analysis: LiveAnalysis = FakeAnalysis()
    metrics: StreamMetrics = CountingMetrics()
    assert analysis is not None
    assert metrics is not None


async def test_an_idle_detector_gets_a_frame_at_once_and_alone() -> None:
    it = rig()
    stream = it.stream()
    it.offer(stream)
    assert it.pipeline.seen == [[0]]
    await it.finish()
    (answer,) = results(stream)
    assert answer["frame"] == 0
    assert answer["dropped"] == {}
    assert answer["people"] == []
    assert answer["received_s"] <= answer["answered_s"]
    assert it.metrics.n_answered == 1


async def test_while_the_detector_is_busy_only_the_newest_frame_waits() -> None:
    it = rig(max_batch=1)
    stream = it.stream()
    for _ in range(5):
        it.offer(stream)
    await it.finish()
    await it.finish()
    assert it.pipeline.seen == [[0], [4]]
    assert [answer["dropped"] for answer in results(stream)] == [{"stale": 3}, {}]
    assert it.metrics.drops == [DropCause.STALE] * 3


async def test_frames_of_many_streams_share_a_batch_and_the_rest_is_next() -> None:
    it = rig(max_batch=4)
    streams = [it.stream(str(n)) for n in range(7)]
    it.offer(streams[0])
    for stream in streams[1:]:
        it.offer(stream)
    # One is begun, and a full batch is lined up behind it.
    assert it.metrics.batch_sizes == [1, 4]
    await it.finish()
    await it.finish()
    await it.finish()
    assert it.metrics.batch_sizes == [1, 4, 2]
    assert all(len(results(stream)) == 1 for stream in streams)


async def test_a_batch_that_does_not_fill_is_lined_up_after_the_window() -> None:
    it = rig(max_batch=8)
    first, second = it.stream("a"), it.stream("b")
    it.offer(first)
    it.offer(second)
    assert it.metrics.batch_sizes == [1]
    await asyncio.sleep(0.06)
    it.clock.now_s += 0.06
    it.processor.pump()
    assert it.metrics.batch_sizes == [1, 1]
    assert len(it.pipeline.batches) == 2


async def test_overload_is_shared_fairly_whatever_the_rates() -> None:
    it = rig(max_batch=1)
    flood, trickle = it.stream("flood"), it.stream("trickle")
    for _ in range(60):
        for _ in range(5):
            it.offer(flood)
        it.offer(trickle)
        await it.finish()
    answered = len(results(flood)), len(results(trickle))
    assert abs(answered[0] - answered[1]) <= 1


@given(order=st.permutations(range(6)), max_batch=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_order_of_streams_does_not_matter(order: list[int], max_batch: int) -> None:
    async def answered(names: list[int]) -> dict[str, list[int]]:
        it = rig(max_batch=max_batch)
        streams = {str(n): it.stream(str(n)) for n in range(6)}
        for _ in range(3):
            for name in names:
                it.offer(streams[str(name)])
            while it.pipeline.batches:
                await it.finish()
        return {
            name: [answer["frame"] for answer in results(stream)]
            for name, stream in streams.items()
        }

    expected = {str(n): [0, 1, 2] for n in range(6)}
    assert asyncio.run(answered(order)) == asyncio.run(answered(list(range(6)))) == expected


async def happen(it: Rig, chance: random.Random, stream: LiveStream) -> None:
    """One of the things that may happen to a stream."""
    ends = {
        0.1: lambda: it.finish(FrameFailure(DropCause.UNDECODABLE, "torn")),
        0.15: lambda: it.finish(broken=True),
        0.35: it.finish,
    }
    draw = chance.random()
    if draw > 0.4:
        it.offer(stream)
    elif draw > 0.35:
        stream.paused = not stream.paused
        if stream.paused:
            it.processor.discard_waiting(stream, DropCause.PAUSED)
        it.processor.pump()
    elif it.pipeline.batches:
        await next(end for limit, end in ends.items() if draw <= limit)()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_every_frame_is_answered_or_counted_as_dropped(seed: int) -> None:
    async def play() -> None:
        chance = random.Random(seed)  # noqa: S311 - a shuffle
        it = rig(max_batch=chance.randint(1, 4), n_stages=chance.randint(1, 3))
        streams = [it.stream(str(n)) for n in range(chance.randint(1, 5))]
        for _ in range(120):
            await happen(it, chance, chance.choice(streams))
        for stream in streams:
            stream.paused = False
        it.processor.pump()
        while it.pipeline.batches:
            await it.finish()
        for stream in streams:
            assert stream.n_answered + sum(stream.dropped.values()) == stream.next_index
            told = sum(sum(answer["dropped"].values()) for answer in results(stream))
            assert told + sum(stream.dropped_since.values()) == sum(stream.dropped.values())
            assert [a["frame"] for a in results(stream)] == sorted(
                a["frame"] for a in results(stream)
            )

    asyncio.run(play())


async def test_a_file_loses_no_frame_and_may_fill_a_batch_alone() -> None:
    it = rig(max_batch=4, per_stream=8)
    stream = it.stream(lossless=True)
    n_taken = 0

    def taken() -> None:
        nonlocal n_taken
        n_taken += 1

    stream.on_taken = taken
    for n in range(9):
        it.offer(stream, captured_s=n / 30)
    while it.pipeline.batches:
        await it.finish()
    assert [answer["frame"] for answer in results(stream)] == list(range(9))
    assert it.metrics.batch_sizes == [1, 4, 4]
    assert it.analysis.times_s["a"] == [n / 30 for n in range(9)]
    assert n_taken == 9


async def test_frames_not_newer_than_an_earlier_one_are_stale() -> None:
    it = rig()
    stream = it.stream()
    for captured_s in (0.0, 0.1, 0.1, 0.05, 0.2):
        it.offer(stream, captured_s)
        while it.pipeline.batches:
            await it.finish()
    assert it.analysis.times_s["a"] == [0.0, 0.1, 0.2]
    assert stream.dropped == {DropCause.STALE: 2}


async def test_sampling_takes_the_first_frame_of_each_period() -> None:
    it = rig()
    stream = it.stream(sample_fps=10.0)
    for n in range(31):
        it.offer(stream, n / 30)
        while it.pipeline.batches:
            await it.finish()
    assert it.analysis.times_s["a"] == pytest.approx([n / 10 for n in range(11)])
    assert stream.dropped == {DropCause.UNSAMPLED: 20}


@pytest.mark.parametrize(("fps", "sample_fps"), [(25.0, 10.0), (29.97, 12.0), (30.0, 30.0)])
async def test_sampling_takes_the_frames_the_recorded_path_takes(
    fps: float, sample_fps: float
) -> None:
    it = rig()
    stream = it.stream(fps=fps, sample_fps=sample_fps)
    slots = [sampling_slot(n / fps, sample_fps, fps) for n in range(100)]
    for n in range(100):
        it.offer(stream, n / fps)
        while it.pipeline.batches:
            await it.finish()
    taken = [n for n in range(100) if n == 0 or slots[n] != slots[n - 1]]
    assert [answer["frame"] for answer in results(stream)] == taken


async def test_a_paused_stream_drops_its_frames_and_takes_no_time_away() -> None:
    it = rig()
    stream, other = it.stream("a"), it.stream("b")
    stream.paused = True
    it.offer(stream)
    it.offer(other)
    await it.finish()
    assert stream.dropped == {DropCause.PAUSED: 1}
    assert len(results(other)) == 1
    stream.paused = False
    it.offer(stream)
    await it.finish()
    assert results(stream)[0]["dropped"] == {"paused": 1}


async def test_a_client_that_does_not_read_gets_no_more_answers_made() -> None:
    it = rig()
    stream = it.stream()
    stream.sink.n_unsent = MAX_UNSENT
    it.offer(stream)
    it.offer(stream)
    assert it.pipeline.seen == []
    stream.sink.n_unsent = MAX_UNSENT - 1
    it.processor.pump()
    assert it.pipeline.seen == [[1]]


async def test_an_unreadable_picture_is_told_and_many_in_a_row_end_the_connection() -> None:
    it = rig()
    stream = it.stream()
    torn = FrameFailure(DropCause.UNDECODABLE, "the picture is truncated")
    for _ in range(MAX_UNDECODABLE_IN_ROW - 1):
        it.offer(stream)
        await it.finish(torn)
    assert stream.sink.closed is None
    it.offer(stream)
    await it.finish(torn)
    assert stream.sink.closed[0] == 1007
    error = msgspec.json.decode(stream.sink.messages[0])
    assert error == {
        "type": "error",
        "code": "undecodable-frame",
        "detail": "the picture is truncated",
        "frame": 0,
    }
    assert stream.dropped == {DropCause.UNDECODABLE: MAX_UNDECODABLE_IN_ROW}


async def test_a_detector_that_breaks_costs_its_frames_only() -> None:
    it = rig()
    stream = it.stream()
    it.offer(stream)
    await it.finish(broken=True)
    it.offer(stream)
    await it.finish()
    (answer,) = results(stream)
    assert answer["frame"] == 1
    assert answer["dropped"] == {"overload": 1}


async def test_a_slow_analysis_holds_its_stream_back_and_no_other() -> None:
    it = rig(max_batch=1)
    slow, other = it.stream("slow"), it.stream("other")
    it.analysis.held = True
    for _ in range(20):
        it.offer(slow)
        while it.pipeline.batches:
            await it.finish()
    assert slow.n_analysing <= 4
    it.analysis.held = False
    it.offer(other)
    await it.finish()
    assert len(results(other)) == 1


async def test_frames_wait_where_the_analysis_does_not_keep_up() -> None:
    it = rig()
    stream, other = it.stream("a"), it.stream("b")
    it.analysis.full.add("a")
    for _ in range(3):
        it.offer(stream)
        it.offer(other)
        while it.pipeline.batches:
            await it.finish()
    assert (len(results(stream)), len(results(other))) == (0, 3)
    assert stream.dropped == {DropCause.STALE: 2}
    it.analysis.full.clear()
    it.processor.pump()
    await it.finish()
    assert results(stream)[0]["frame"] == 2


@pytest.mark.parametrize("ended", [False, True])
async def test_room_left_by_a_failed_or_unwanted_analysis_is_used(ended: bool) -> None:
    it = rig(max_batch=1)
    first, file = it.stream("first"), it.stream("file", lossless=True)
    it.analysis.held = True
    it.offer(first)
    await it.finish()
    it.analysis.full.add("file")
    it.offer(file)
    assert not it.pipeline.batches
    first.ended = ended
    it.analysis.full.clear()
    it.analysis.pending.pop().set_exception(BackendFailedError("analysis", "its process ended"))
    await it.settle()
    assert len(it.pipeline.batches) == 1


async def test_the_stages_together_are_the_whole_time() -> None:
    it = rig(max_batch=1)
    stream = it.stream()
    it.analysis.held = True
    for n_analysed in range(2):
        it.offer(stream, n_analysed / 30)
    it.clock.now_s += 0.25
    await it.finish()
    await it.finish()
    it.clock.now_s += 0.5
    for pending in it.analysis.pending:
        pending.set_result(AnalysedFrame(b"[]", 0, 0, 0.0))
    await it.settle()
    for answer in results(stream):
        total_s = answer["answered_s"] - answer["received_s"]
        assert sum(answer["timing"].values()) == pytest.approx(total_s)
        assert answer["timing"]["postprocess_s"] == pytest.approx(0.501)
        assert answer["timing"]["queue_s"] > 0.2


async def test_an_ended_stream_gets_no_late_answer() -> None:
    it = rig()
    stream = it.stream()
    it.offer(stream)
    stream.ended = True
    await it.finish()
    assert stream.sink.messages == []


@pytest.mark.parametrize(("device", "rehearsed"), [("cuda:0", ["a"]), ("cpu", [])])
async def test_while_a_gpu_looks_at_a_lone_picture_its_analysis_is_woken(
    device: str, rehearsed: list[str]
) -> None:
    r = rig(max_batch=4, device=device)
    one, other = r.stream("a"), r.stream("b")
    r.offer(one)
    assert r.analysis.rehearsed == rehearsed
    r.offer(one)
    r.offer(other)
    await r.finish()
    assert [len(batch) for batch in r.pipeline.seen] == [1, 2]
    assert r.analysis.rehearsed == rehearsed


def test_turns_go_to_those_who_waited_longest() -> None:
    @dataclass
    class One:
        served_s: float

    ones = [One(3.0), One(1.0), One(2.0)]
    assert [one.served_s for one in next_turns(ones, 2)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("n_waiting", "oldest_wait_s", "n_idle", "room", "due"),
    [
        (0, 0.0, 1, 8, False),
        (1, 0.0, 1, 8, True),
        (1, 0.0, 0, 8, False),
        (8, 0.0, 0, 8, True),
        (1, 0.05, 0, 8, True),
        (9, 1.0, 0, 0, False),
    ],
)
def test_batches_are_begun_at_once_or_collected(
    n_waiting: int, oldest_wait_s: float, n_idle: int, room: int, due: bool
) -> None:
    assert BatchPolicy().is_due(n_waiting, oldest_wait_s, n_idle, room) is due
