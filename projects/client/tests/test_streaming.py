import asyncio
import itertools

import numpy as np
import pytest
from PIL import Image

from pose_analyzer_client import (
    AnswerTimeoutError,
    ClientOptions,
    ControlLostError,
    ControlRefusedError,
    DisorderedFrameError,
    FrameDroppedError,
    FrameRefusedError,
    PoseAnalyzerClient,
    PoseAnalyzerClientError,
    ServiceUnreachableError,
    StateChanged,
    StreamOptions,
    StreamPausedError,
    UnreadableImageError,
)

from .fake_service import result as answer_to
from .helpers import eventually, frames_of, pictures


async def test_recorded_frames_are_all_answered_one_at_a_time_with_their_own_times(service):
    items = [(100.0 + 0.1 * n, picture) for n, picture in enumerate(pictures(20))]
    async with PoseAnalyzerClient(service.address) as client:
        stream = client.stream(iter(items), drop=False, keep_images=True)
        results = [result async for result in stream]
        told = service.stream
    assert [result.frame for result in results] == list(range(20))
    assert [result.image for result in results] == [picture for _, picture in items]
    assert told.pictures == [picture for _, picture in items]
    assert told.captured_s == [captured_s for captured_s, _ in items]
    assert service.max_unanswered == 1
    assert all(result.round_trip_s > 0 for result in results)
    assert client.statistics.n_answered == 20
    assert client.statistics.round_trip_p50_s > 0
    assert not service.streams, "leaving the context did not delete the stream"


async def test_live_frames_wait_within_the_window_and_the_newest_replaces_the_waiting(service):
    service.gate.clear()
    all_given = asyncio.Event()

    async def camera():
        for n, picture in enumerate(pictures(10)):
            yield picture
            if n < 2:
                await eventually(lambda: len(service.stream.pictures) > n)  # noqa: B023
        all_given.set()

    async def open_gate():
        await all_given.wait()
        assert service.stream.pictures == pictures(2)
        service.gate.set()

    async with PoseAnalyzerClient(service.address) as client:
        await client.start()
        opening = asyncio.create_task(open_gate())
        results = [result async for result in client.stream(camera(), keep_images=True)]
        await opening
    assert service.max_unanswered == 2
    assert [result.image for result in results] == [b"picture 0", b"picture 1", b"picture 9"]
    assert [result.frame for result in results] == [0, 1, 2]
    assert client.statistics.n_skipped == 7


async def test_a_slow_caller_gets_fewer_answers_but_the_newest(service):
    all_given = asyncio.Event()

    async def camera():
        for n, picture in enumerate(pictures(100)):
            yield picture
            await asyncio.sleep(0 if n else 0.01)
        all_given.set()

    async with PoseAnalyzerClient(service.address) as client:
        images = []
        async for result in client.stream(camera(), keep_images=True):
            await all_given.wait()
            images.append(result.image)
    assert images[0] == b"picture 0"
    assert images[-1] == b"picture 99"
    assert client.statistics.n_sent == len(images) <= 6
    assert client.statistics.n_skipped == 100 - len(images)


async def test_frames_the_service_drops_are_counted_and_do_not_stop_the_others(service):
    service.silent = {1, 2, 5}
    options = ClientOptions(window=4, answer_timeout_s=0.5)

    async def camera():
        for n, picture in enumerate(pictures(6)):
            yield picture
            await eventually(lambda: len(service.stream.pictures) > n)  # noqa: B023

    async with PoseAnalyzerClient(service.address, options=options) as client:
        await client.start()
        assert await frames_of(client, camera()) == [0, 3, 4]
    assert client.statistics.dropped == {"stale": 2}
    assert client.statistics.n_unanswered == 1


async def test_a_single_frame_tells_why_it_has_no_answer(service):
    service.silent = {1}
    options = ClientOptions(answer_timeout_s=0.5)
    async with PoseAnalyzerClient(service.address, options=options) as client:
        assert (await client.detect_async(b"picture")).frame == 0
        with pytest.raises(AnswerTimeoutError, match=r"Frame 1 .* 0\.5 s"):
            await client.detect_async(b"picture")
        with pytest.raises(FrameRefusedError, match="not an image") as refused:
            await client.detect_async(b"broken")
        assert (refused.value.frame, refused.value.code) == (2, "undecodable-frame")
        with pytest.raises(UnreadableImageError, match="float64"):
            await client.detect_async(np.zeros((4, 4, 3)))
        assert (await client.detect_async(b"picture")).frame == 3


async def test_an_answer_to_a_later_frame_says_the_earlier_was_dropped(service):
    service.silent = {0}
    async with PoseAnalyzerClient(service.address) as client:
        session = await client._opened()
        first = await session.send(b"picture", 0.0)
        second = await session.send(b"picture", 0.1)
        assert (await second).frame == 1
        outcome = await first
    assert isinstance(outcome, FrameDroppedError)
    assert outcome.causes == ("stale",)


async def test_single_frames_asked_for_at_once_wait_for_each_other(service):
    async with PoseAnalyzerClient(service.address) as client:
        results = await asyncio.gather(*map(client.detect_async, pictures(5)))
    assert [result.frame for result in results] == list(range(5))
    assert service.max_unanswered == 1


async def test_no_service_says_how_to_start_one(unused_tcp_port):
    async with PoseAnalyzerClient(f"ws://127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(ServiceUnreachableError, match=r"python -m pose_analyzer\.api\.main"):
            await client.detect_async(b"picture")


async def test_what_was_asked_for_reaches_the_service(service):
    stream = StreamOptions(sample_fps=5.0, roi=(0.0, 0.0, 0.5, 1.0), priority=3)
    async with PoseAnalyzerClient(service.address, "squat", "yolo", stream=stream) as client:
        items = [(n / 20, picture) for n, picture in enumerate(pictures(20))]
        assert await frames_of(client, items, drop=False) == [0, 1, 2, 3, 4]
        assert service.stream.pictures == pictures(20)[::4]
    assert client.statistics.n_unsampled == 15
    assert service.starts == [
        {
            "exercise": "squat",
            "detector": "yolo",
            "sample_fps": None,
            "roi": [0.0, 0.0, 0.5, 1.0],
            "source": None,
            "fps": 5.0,
            "priority": 3,
        }
    ]


async def test_a_second_video_goes_on_in_the_time_of_the_first(service):
    items = [(n / 10, picture) for n, picture in enumerate(pictures(20))]
    async with PoseAnalyzerClient(service.address) as client:
        for _ in range(2):
            assert len(await frames_of(client, items, drop=False)) == 20
        told_s = service.stream.captured_s
        assert told_s[:20] == [n / 10 for n in range(20)]
        assert np.diff(told_s[20:]) == pytest.approx([0.1] * 19)
        assert told_s[20] > told_s[19]
        with pytest.raises(DisorderedFrameError, match="its own time"):
            await client.detect_async(b"picture", captured_s=1.9)


async def test_controls_are_confirmed(service):
    events = []
    async with PoseAnalyzerClient(service.address, on_event=events.append) as client:
        assert await client.ping() > 0
        with pytest.raises(ControlRefusedError, match="chess"):
            await client.change_exercise("chess")
        await client.change_exercise("squat")
        assert service.stream.exercise == "squat"
        await client.pause()
        assert client.state == "paused"
        with pytest.raises(StreamPausedError, match=r"Call resume\(\)"):
            await client.detect_async(b"picture")
        await client.resume()
        assert (await client.detect_async(b"picture")).frame == 0
    states = [event.state for event in events if isinstance(event, StateChanged)]
    assert states == ["paused", "active"]


async def test_a_control_whose_fate_is_not_known_says_so(service, options):
    async with PoseAnalyzerClient(service.address, options=options) as client:
        with pytest.raises(ControlLostError, match="Send it again"):
            await client.change_exercise("thunder")
        await client.change_exercise("squat")
        assert service.stream.exercise == "squat"


async def test_frames_wait_while_the_service_sheds_the_stream(service):
    async with PoseAnalyzerClient(service.address) as client:
        await client.start()
        service.stream.state = "shed"
        await service.tell({"type": "state", "state": "shed", "reason": "GPU memory is full"})
        await eventually(lambda: client.state == "shed")
        with pytest.raises(StreamPausedError, match="GPU memory is full"):
            await client.detect_async(b"picture")
        reading = asyncio.create_task(frames_of(client, pictures(3), drop=False))
        await asyncio.sleep(0.02)
        assert not service.stream.pictures
        service.stream.state = "active"
        await service.tell({"type": "state", "state": "active", "reason": "there is memory again"})
        assert await reading == [0, 1, 2]


async def test_json_and_msgpack_give_the_same_results(service):
    results = []
    for encoding in ("json", "msgpack"):
        options = ClientOptions(encoding=encoding)
        async with PoseAnalyzerClient(service.address, options=options) as client:
            results.append(await client.detect_async(b"picture"))
            assert service.stream.connection.subprotocol == f"pose.v1.{encoding}"
    one, other = (result.people[0] for result in results)
    assert np.isnan(one.keypoints_px[0]).all()
    assert one.keypoints_px.shape == (17, 2)
    assert np.isnan([one.yaw_deg, other.yaw_deg, one.progress, other.progress]).all()
    for name in ("box_px", "keypoints_px", "keypoints_sd_px", "confidences", "flags"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.angles.values_deg, other.angles.values_deg)
    assert one.angle("angle_3").value_deg == 3.0
    assert one.angle("angle_3").trusted
    assert np.isnan(other.angle("angle_11").value_deg)
    with pytest.raises(KeyError, match="angle_0"):
        one.angle("left_nose")


async def test_a_failing_camera_is_the_callers_to_see_after_the_answers(service):
    def camera():
        yield b"picture"
        yield b"picture"
        raise OSError("the camera was unplugged")

    for how in ({"drop": False}, {"drop": True}):
        async with PoseAnalyzerClient(service.address) as client:
            results = client.stream(camera(), **how)
            assert (await anext(results)).frame == 0
            with pytest.raises(OSError, match="unplugged"):
                async for _ in results:
                    pass


async def test_a_stream_left_early_can_be_followed_by_another(service):
    async with PoseAnalyzerClient(service.address) as client:
        for how in ({"drop": False}, {"drop": True}):
            results = client.stream(itertools.repeat(b"picture"), **how)
            assert (await anext(results)).frame >= 0
            await results.aclose()
        assert (await client.detect_async(b"picture")).people


async def test_errors_of_the_callers_event_handler_are_not_hidden(service):
    def on_event(event):
        raise LookupError("no such widget")

    async with PoseAnalyzerClient(service.address, on_event=on_event) as client:
        await client.start()
        await service.tell({"type": "state", "state": "active", "reason": "to be told"})
        with pytest.raises(LookupError, match="no such widget"):
            await frames_of(client, itertools.repeat(b"picture"))


async def test_images_are_encoded_before_they_are_sent(service):
    image = np.full((48, 64, 3), (255, 0, 0), np.uint8)
    async with PoseAnalyzerClient(service.address) as client:
        assert await frames_of(client, [image, Image.new("RGB", (64, 48))], drop=False) == [0, 1]
        assert all(picture.startswith(b"\xff\xd8") for picture in service.stream.pictures)


async def test_answers_to_the_services_own_source_are_watched(service):
    stream = StreamOptions(source="rtsp://camera/1")
    async with PoseAnalyzerClient(service.address, stream=stream) as client:
        await client.start()
        for frame in range(3):
            await service.tell(answer_to(frame))
        await service.close(1000)
        assert [answer.frame async for answer in client.watch()] == [0, 1, 2]
    assert service.starts[0]["source"] == "rtsp://camera/1"


async def test_requests_without_a_stream(service, tmp_path):
    path = tmp_path / "squat.jpg"
    path.write_bytes(b"the image")
    async with PoseAnalyzerClient(service.address, detector="mediapipe") as client:
        found = await client.detect_image(path)
        assert not service.streams
        assert found.people[0].keypoint_px("nose") == (1.0, 2.0)
        assert np.isnan(found.people[0].angle("left_knee").value_deg)
        assert (await client.detect_image(b"the image")).width_px == 64
        with pytest.raises(UnreadableImageError, match="No such file"):
            await client.detect_image(tmp_path / "nothing.jpg")
        page = await client.results(since=2)
        assert [result.frame for result in page.results] == [3, 4]
        assert page.next == 4
        assert [stream.stream_id for stream in await client.streams()] == ["s1"]
        await client.delete()
    method, target, body = service.requests[0]
    assert (method, target) == ("POST", "/detect?detector=mediapipe")
    assert b'filename="squat.jpg"' in body
    assert b"the image" in body


def test_all_errors_have_one_root():
    from pose_analyzer_client import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert all(issubclass(kind, PoseAnalyzerClientError) for kind in kinds)
