import asyncio
import itertools
import threading

import pytest

from pose_analyzer_client import (
    BlockingPoseAnalyzerClient,
    ServiceUnreachableError,
    StreamOptions,
    StreamPausedError,
)

from .fake_service import result as answer_to


async def test_a_script_gets_the_same_answers(service):
    def frames():
        threads.add(threading.current_thread().name)
        yield from ((n / 10, b"picture %d" % n) for n in range(5))

    def script():
        with BlockingPoseAnalyzerClient(service.address, "squat") as client:
            assert client.start() == "s1"
            assert client.detect(b"picture").frame == 0
            frames_seen = [result.frame for result in client.stream(frames(), drop=False)]
            assert client.ping() > 0
            client.change_exercise("lunge")
            client.pause()
            assert client.state == "paused"
            with pytest.raises(StreamPausedError):
                client.detect(b"picture")
            client.resume()
            for result in client.stream(iter(lambda: b"picture", None)):
                assert result.frame == 6
                break
            assert client.detect_image(b"image").people
            assert [result.frame for result in client.results(2).results] == [3, 4]
            assert [stream.exercise for stream in client.streams()] == ["lunge"]
            client.delete()
            assert client.statistics.n_answered >= 7
        return frames_seen

    threads: set[str] = set()
    assert await asyncio.to_thread(script) == [1, 2, 3, 4, 5]
    assert all(name.startswith("pose-frames") for name in threads)
    assert not [thread for thread in threading.enumerate() if thread.name == "pose-client"]


async def test_a_script_watches_the_services_own_source(service):
    watching = threading.Event()

    def script():
        stream = StreamOptions(source="lift.mp4")
        with BlockingPoseAnalyzerClient(service.address, stream=stream) as client:
            client.start()
            watching.set()
            return [result.frame for result in client.watch()]

    running = asyncio.create_task(asyncio.to_thread(script))
    await asyncio.to_thread(watching.wait)
    await service.tell(answer_to(0))
    await service.close(1000)
    assert await running == [0]


def test_errors_reach_the_script_and_leave_no_thread(unused_tcp_port):
    client = BlockingPoseAnalyzerClient(f"ws://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(ServiceUnreachableError), client:
        client.start()
    with pytest.raises(RuntimeError, match="with"):
        client.ping()
    assert not [thread for thread in threading.enumerate() if thread.name == "pose-client"]


async def test_an_interrupted_wait_leaves_nothing_running(service, monkeypatch):
    class Interrupted:
        def __init__(self, future):
            self.cancel = future.cancel

        def result(self):
            raise KeyboardInterrupt

    plain = asyncio.run_coroutine_threadsafe
    n_calls = itertools.count()

    def interrupted_once(*call):
        future = plain(*call)
        return future if next(n_calls) else Interrupted(future)

    def script():
        with BlockingPoseAnalyzerClient(service.address) as client:
            results = client.stream(iter(lambda: b"picture", None))
            assert next(results).frame == 0
            service.gate.clear()
            with monkeypatch.context() as patched:
                patched.setattr(asyncio, "run_coroutine_threadsafe", interrupted_once)
                with pytest.raises(KeyboardInterrupt):
                    next(results)
        assert not service.streams

    await asyncio.to_thread(script)
