import asyncio
import itertools
import socket

import pytest

from pose_analyzer_client import (
    ClientOptions,
    ConnectionInterrupted,
    ConnectionLostError,
    ConnectionResumed,
    FrameLostError,
    FrameTooLargeError,
    NoCapacityError,
    PoseAnalyzerClient,
    ProtocolViolationError,
    ReconnectPolicy,
    RequestRefusedError,
    ServiceUnreachableError,
    SlowReaderError,
    StreamEndedError,
    StreamRestarted,
    StreamTakenOverError,
    TooManyMessagesError,
    UndecodableFramesError,
)

from .helpers import Sleeps, eventually, frames_of, pictures


@pytest.mark.parametrize(("broken", "expected"), [(True, [0, 1, 3, 4]), (False, [0, 1, 2, 3, 4])])
async def test_a_broken_connection_resumes_the_stream(service, options, sleeps, broken, expected):
    """A frame that had arrived is lost with its answer; one that had not is sent again."""
    (service.broken if broken else service.unheard).add(2)
    events = []
    client = PoseAnalyzerClient(service.address, options=options, on_event=events.append)
    async with client:
        assert await frames_of(client, pictures(5), drop=False) == expected
        assert service.stream.pictures == pictures(5)
    assert len(service.starts) == 1
    assert [type(event) for event in events[:2]] == [ConnectionInterrupted, ConnectionResumed]
    assert events[1] == ConnectionResumed("s1", n_lost=1)
    assert sleeps.waited_s == [0.25]
    assert (client.statistics.n_lost, client.statistics.n_reconnects) == (1, 1)


async def test_a_long_break_does_not_use_up_the_time_for_answers(service):
    async def sleep(seconds):
        await asyncio.sleep(0.7)

    service.unheard = {2}
    options = ClientOptions(answer_timeout_s=0.5, reconnect=ReconnectPolicy(sleep=sleep))
    async with PoseAnalyzerClient(service.address, options=options) as client:
        assert await frames_of(client, pictures(4), drop=False) == [0, 1, 2, 3]
    assert client.statistics.n_unanswered == 0


async def test_a_live_stream_goes_on_over_a_new_connection(service, options):
    service.broken = {3}
    frames = []

    async def camera():
        while not frames or frames[-1] < 8:
            yield b"picture"
            await asyncio.sleep(0.001)

    async with PoseAnalyzerClient(service.address, options=options) as client:
        async for result in client.stream(camera()):
            frames += [result.frame]
    assert 3 not in frames
    assert frames == sorted(set(frames))
    assert client.statistics.n_reconnects == 1
    assert client.statistics.n_lost >= 1
    assert len(service.starts) == 1


async def test_a_single_frame_lost_with_its_answer_says_so(service, options):
    service.broken = {0}
    async with PoseAnalyzerClient(service.address, options=options) as client:
        with pytest.raises(FrameLostError) as lost:
            await client.detect_async(b"picture")
        assert lost.value.received
        assert (await client.detect_async(b"picture")).frame == 1


async def test_a_forgotten_stream_is_started_anew_and_this_is_told(service, options):
    events = []
    client = PoseAnalyzerClient(service.address, options=options, on_event=events.append)
    async with client:
        assert (await client.detect_async(b"picture")).frame == 0
        await client.change_exercise("squat")
        await client.pause()
        service.streams.clear()
        session = await client._opened()
        session._websocket.transport.abort()
        await eventually(lambda: client.statistics.n_restarts and client.state == "paused")
        assert [start["exercise"] for start in service.starts] == ["auto", "squat"]
        await client.resume()
        assert (await client.detect_async(b"picture")).frame == 0
    assert StreamRestarted("s1", "s2", n_lost=0) in events


async def test_a_stream_started_anew_waits_for_room(service, options, sleeps):
    async with PoseAnalyzerClient(service.address, options=options) as client:
        await client.detect_async(b"picture")
        problem = b'{"type":"urn:problem-type:pose-analyzer:no-capacity","detail":"Full."}'
        service.replies.append((503, {"Retry-After": "7"}, problem))
        service.streams.clear()
        client._session._websocket.transport.abort()
        assert (await client.detect_async(b"picture")).frame == 0
    assert sleeps.waited_s == [0.25, 7.0, 0.5]


async def test_a_stream_that_cannot_be_reached_is_not_left_behind(service):
    service.refuses_connections = True
    async with PoseAnalyzerClient(service.address) as client:
        with pytest.raises(ServiceUnreachableError, match="503"):
            await client.start()
        assert len(service.starts) == 1
        assert not service.streams


async def test_a_service_that_does_not_come_back_ends_the_stream(service, options, sleeps):
    async with PoseAnalyzerClient(service.address, options=options) as client:
        await client.detect_async(b"picture")
        service.refuses_connections = True
        service.broken = {1}
        with pytest.raises(ConnectionLostError, match=r"5 attempts .* 503"):
            await client.detect_async(b"picture")
        with pytest.raises(ConnectionLostError):
            await client.ping()
    assert sleeps.waited_s == [0.25, 0.5, 1.0, 2.0, 2.0]


async def test_attempts_end_with_the_time_for_them(service):
    times_s = itertools.count(0.0, 10.0)
    policy = ReconnectPolicy(
        give_up_after_s=25.0, sleep=Sleeps(), random=lambda: 0.0, clock=lambda: next(times_s)
    )
    options = ClientOptions(reconnect=policy)
    async with PoseAnalyzerClient(service.address, options=options) as client:
        await client.start()
        service.refuses_connections = True
        await service.close(1001)
        with pytest.raises(ConnectionLostError) as lost:
            await frames_of(client, pictures(3), drop=False)
    assert lost.value.n_attempts == 2


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (1003, ProtocolViolationError),
        (1007, UndecodableFramesError),
        (1009, FrameTooLargeError),
        (4408, SlowReaderError),
        (4409, StreamTakenOverError),
        (4429, TooManyMessagesError),
    ],
)
async def test_a_stream_closed_for_good_raises_what_happened(service, code, error):
    service.gate.clear()
    async with PoseAnalyzerClient(service.address) as client:
        waiting = asyncio.create_task(client.detect_async(b"picture"))
        await eventually(lambda: service.streams and service.stream.pictures)
        await service.close(code)
        with pytest.raises(error):
            await waiting
        with pytest.raises(error):
            await frames_of(client, pictures(2))
    deleted = [path for method, path, _ in service.requests if method == "DELETE"]
    assert deleted == ([] if error is StreamTakenOverError else ["/stream/s1"])


async def test_a_stream_that_ends_ends_the_iteration(service):
    async with PoseAnalyzerClient(service.address) as client:
        frames = []
        async for result in client.stream(itertools.repeat(b"picture"), drop=False):
            frames.append(result.frame)
            if result.frame == 2:
                await service.close(1000)
        assert frames == [0, 1, 2]
        with pytest.raises(StreamEndedError):
            await client.detect_async(b"picture")
        with pytest.raises(StreamEndedError):
            await frames_of(client, pictures(2))


async def test_unknown_messages_are_ignored_and_wrong_ones_end_the_stream(service):
    async with PoseAnalyzerClient(service.address) as client:
        await client.start()
        await service.tell({"type": "cue", "text": "Chest up"})
        assert (await client.detect_async(b"picture")).frame == 0
        await service.tell({"type": "result", "frame": "first"})
        with pytest.raises(ProtocolViolationError, match="frame"):
            await client.detect_async(b"picture")


async def test_no_capacity_is_told_or_waited_for(service, sleeps, options):
    problem = b'{"type":"urn:problem-type:pose-analyzer:no-capacity","detail":"8 streams of 8."}'
    refusal = (503, {"Retry-After": "7"}, problem)
    service.replies.append(refusal)
    async with PoseAnalyzerClient(service.address) as client:
        with pytest.raises(NoCapacityError, match="8 streams of 8") as refused:
            await client.start()
        assert refused.value.retry_after_s == 7.0
        assert await client.start() == "s1"
    service.replies.extend([refusal, refusal])
    patient = ClientOptions(capacity_wait_s=100.0, reconnect=options.reconnect)
    async with PoseAnalyzerClient(service.address, options=patient) as client:
        assert await client.start() == "s2"
    assert sleeps.waited_s == [7.0, 7.0]


async def test_other_refusals_keep_the_services_words(service):
    problem = b'{"type":"urn:problem-type:pose-analyzer:unknown-name","detail":"Unknown exercise."}'
    service.replies.append((422, {}, problem))
    async with PoseAnalyzerClient(service.address, "chess") as client:
        with pytest.raises(RequestRefusedError, match="Unknown exercise") as refused:
            await client.start()
    assert (refused.value.status, refused.value.code) == (422, "unknown-name")


async def test_a_stream_may_take_longer_to_start_than_other_requests():
    """The service may have to load its detector first."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        async with PoseAnalyzerClient(address, options=ClientOptions(start_timeout_s=0.05)) as one:
            with pytest.raises(ServiceUnreachableError, match="no answer in time"):
                await one.start()
        options = ClientOptions(connect_timeout_s=0.05)
        async with PoseAnalyzerClient(address, options=options) as other:
            with pytest.raises(ServiceUnreachableError, match="no answer in time"):
                await other.streams()
