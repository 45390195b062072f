"""Whether the stream manager of a real service does what docs/API.md says.

Starts a service for four streams (or uses the one at --url), plays its clients, and prints one row
per check. Ends with 1 if one failed.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from websockets.exceptions import ConnectionClosed

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from streams.camera import Camera, break_off_mid_picture, open_camera
from streams.clips import Cut, encode_clip, sample_clip
from streams.pictures import read_pictures
from streams.service import Answer, Service, started_service

from pose_analyzer.stream_types import StreamState
from pose_analyzer.wire import Error, Pong, State

N_STREAMS = 4
N_CLIENTS = 100
FPS = 10.0
PATIENCE_S = 20.0  # for an answer; detectors on a busy machine are slow
SOON_S = 2.0  # for a word of the service itself


class CheckFailedError(Exception):
    """What was seen in place of what should have been."""


@dataclass(slots=True)
class Scene:
    """The service and its clients."""

    service: Service
    pictures: Sequence[bytes]
    own: bool
    """The service was started here, for four streams and nobody else."""
    ids: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    cameras: list[Camera] = field(default_factory=list)

    async def ask(self, method: str, path: str) -> Answer:
        """Send a request without a body."""
        return await asyncio.to_thread(self.service.request, method, path)

    async def start(self) -> Answer:
        """Ask for one more stream."""
        return await asyncio.to_thread(self.service.start_stream, fps=FPS)

    async def answers(self, number: int, n_more: int) -> None:
        """Wait until a camera has had so many more answers."""
        target = len(self.cameras[number].results) + n_more
        await self.cameras[number].wait_for(lambda c: len(c.results) >= target, PATIENCE_S)


def expect(condition: object, seen: object) -> None:
    """Let a check fail with what was seen unless the condition holds."""
    if not condition:
        raise CheckFailedError(f"saw {seen}")


def is_refusal(answer: Answer) -> bool:
    """Whether it says that there is no room, and when to come back."""
    return (
        answer.status == HTTPStatus.SERVICE_UNAVAILABLE
        and answer.body["type"].endswith(":no-capacity")
        and int(answer.headers["retry-after"]) > 0
    )


async def four_start(scene: Scene) -> str:
    """Four streams start and greet their clients."""
    for _ in range(N_STREAMS):
        answer = await scene.start()
        expect(answer.status == HTTPStatus.CREATED, answer)
        camera = await open_camera(scene.service.address(answer))
        expect(camera.ready.next_frame == 0 and not camera.ready.resumed, camera.ready)
        scene.ids.append(answer.body["stream_id"])
        scene.urls.append(scene.service.address(answer))
        scene.cameras.append(camera)
    return f"{camera.ready.detector} on {camera.ready.device}"


async def all_answered(scene: Scene) -> str:
    """Each gets answers in order, every other picture named as dropped."""
    for camera in scene.cameras:
        camera.film(scene.pictures, FPS)
    for number in range(N_STREAMS):
        await scene.answers(number, 10)
    for camera in scene.cameras:
        numbers = [result.frame for result in camera.results]
        expect(numbers == sorted(set(numbers)), numbers)
        n_dropped = sum(sum(result.dropped.values()) for result in camera.results)
        expect(numbers[-1] + 1 == len(numbers) + n_dropped, (numbers, n_dropped))
    return "answers " + ", ".join(str(len(camera.results)) for camera in scene.cameras)


async def fifth_refused(scene: Scene) -> str:
    """A fifth is refused with the reason and a time to come back."""
    answer = await scene.start()
    expect(is_refusal(answer), answer)
    return str(answer.body["detail"])


async def one_pauses(scene: Scene) -> str:
    """A paused stream is told, gets no answers, and goes on when resumed; others never stop."""
    camera, path = scene.cameras[0], f"/stream/{scene.ids[0]}"
    answer = await scene.ask("POST", f"{path}/pause")
    expect(answer.status == HTTPStatus.OK and answer.body["state"] == "paused", answer)
    await camera.wait_for(_state(StreamState.PAUSED), SOON_S)
    await asyncio.sleep(1.0)  # frames already in the detector may still be answered
    n_before = len(camera.results)
    await scene.answers(1, 5)
    expect(len(camera.results) == n_before, f"{len(camera.results) - n_before} answers in a pause")
    answer = await scene.ask("POST", f"{path}/resume")
    expect(answer.status == HTTPStatus.OK and answer.body["state"] == "active", answer)
    await scene.answers(0, 1)
    n_paused = camera.results[n_before].dropped.get("paused", 0)
    expect(n_paused > 0, camera.results[n_before].dropped)
    return f"{n_paused} pictures dropped as paused"


async def lost_one_resumes(scene: Scene) -> str:
    """A stream whose connection breaks goes on when its client is back."""
    old = scene.cameras[1]
    last = old.results[-1].frame
    await old.lose()
    await scene.answers(2, 3)
    scene.cameras[1] = new = await open_camera(scene.urls[1])
    expect(new.ready.resumed and last < new.ready.next_frame <= old.n_sent + 1, new.ready)
    new.film(scene.pictures, FPS)
    await scene.answers(1, 3)
    first = new.results[0].frame
    expect(first >= new.ready.next_frame, first)
    return f"went on with picture {new.ready.next_frame}"


async def half_a_picture(scene: Scene) -> str:
    """A client that vanishes in the middle of a picture harms nobody; half a picture is none."""
    await scene.cameras[1].leave()
    between = await open_camera(scene.urls[1])
    await break_off_mid_picture(between)
    scene.cameras[1] = new = await open_camera(scene.urls[1])
    expect(new.ready.next_frame == between.ready.next_frame, (between.ready, new.ready))
    new.film(scene.pictures, FPS)
    await scene.answers(1, 1)
    await scene.answers(2, 1)
    return "resumed"


async def nonsense(scene: Scene) -> str:
    """What cannot be used is named, and the stream goes on; a ping is answered."""
    camera = scene.cameras[2]
    await camera.connection.send(b"no picture")
    await camera.wait_for(_error("undecodable-frame"), PATIENCE_S)
    await camera.connection.send('{"type": "dance"}')
    await camera.wait_for(_error("unknown-message"), SOON_S)
    await camera.connection.send('{"type": "exercise", "exercise": "dance"}')
    await camera.wait_for(_error("unknown-exercise"), SOON_S)
    await camera.connection.send('{"type": "ping", "data": "x"}')
    await camera.wait_for(
        lambda c: any(isinstance(m, Pong) and m.data == "x" for m in c.messages), SOON_S
    )
    await scene.answers(2, 2)
    return "undecodable-frame, unknown-message, unknown-exercise, pong"


async def results_paged(scene: Scene) -> str:
    """Recent answers can be read page by page, and streams listed."""
    path = f"/stream/{scene.ids[2]}/results"
    first = (await scene.ask("GET", f"{path}?limit=3")).body
    second = (await scene.ask("GET", f"{path}?since={first['next']}&limit=3")).body
    numbers = [result["frame"] for page in (first, second) for result in page["results"]]
    expect(len(numbers) == 6 and numbers == sorted(set(numbers)), numbers)
    listed = {info["stream_id"] for info in (await scene.ask("GET", "/streams")).body["streams"]}
    expect(set(scene.ids) <= listed, listed)
    return f"pictures {numbers}"


async def taken_over(scene: Scene) -> str:
    """A second connection takes a stream over; the first is told."""
    old = scene.cameras[2]
    scene.cameras[2] = new = await open_camera(scene.urls[2])
    code = await old.wait_for_close(SOON_S)
    await old.leave()
    expect(code == 4409, code)
    new.film(scene.pictures, FPS)
    await scene.answers(2, 1)
    return f"close code {code}"


async def hundred_at_once(scene: Scene) -> str:
    """A hundred clients at once on a full service: each is refused, the others never stop."""
    counts = [len(camera.results) for camera in scene.cameras]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(N_CLIENTS) as threads:
        answers = await asyncio.gather(
            *(
                loop.run_in_executor(threads, lambda: scene.service.start_stream(fps=FPS))
                for _ in range(N_CLIENTS)
            )
        )
    expect(all(is_refusal(answer) for answer in answers), Counter(a.status for a in answers))
    for number in range(N_STREAMS):
        await scene.answers(number, 1)
    expect((await scene.ask("GET", "/health")).status == HTTPStatus.OK, "no health")
    gained = [len(c.results) - n for c, n in zip(scene.cameras, counts, strict=True)]
    return f"{N_CLIENTS} refused, meanwhile answers {gained}"


async def one_deleted(scene: Scene) -> str:
    """A deleted stream is closed and unknown afterwards."""
    camera, path = scene.cameras[3], f"/stream/{scene.ids[3]}"
    answer = await scene.ask("DELETE", path)
    expect(answer.status == HTTPStatus.NO_CONTENT, answer)
    code = await camera.wait_for_close(SOON_S)
    await camera.leave()
    expect(code == 1000, code)
    expect((await scene.ask("GET", path)).status == HTTPStatus.NOT_FOUND, "it is still there")
    try:
        again = await open_camera(scene.urls[3])
    except ConnectionClosed as closed:
        expect(closed.rcvd is not None and closed.rcvd.code == 4404, closed)
    else:
        await again.leave()
        raise CheckFailedError("it could be connected to again")
    return "close code 1000, then 4404"


async def rush_for_the_free_place(scene: Scene) -> str:
    """A hundred clients at once on one free place: one gets it."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(N_CLIENTS) as threads:
        answers = await asyncio.gather(
            *(
                loop.run_in_executor(threads, lambda: scene.service.start_stream(fps=FPS))
                for _ in range(N_CLIENTS)
            )
        )
    accepted = [answer for answer in answers if answer.status == HTTPStatus.CREATED]
    n_refused = sum(is_refusal(answer) for answer in answers)
    expect((len(accepted), n_refused) == (1, N_CLIENTS - 1), Counter(a.status for a in answers))
    scene.cameras[3] = camera = await open_camera(scene.service.address(accepted[0]))
    camera.film(scene.pictures, FPS)
    await scene.answers(3, 1)
    return f"1 accepted and served, {n_refused} refused"


async def counted(scene: Scene) -> str:
    """Prometheus metrics are there."""
    answer = await scene.ask("GET", "/metrics")
    expect(answer.status == HTTPStatus.OK, answer)
    samples = [line for line in str(answer.body).splitlines() if line.startswith("pose_")]
    expect(samples, answer.body)
    return f"{len(samples)} samples"


async def farewell(scene: Scene) -> str:
    """A service that is stopped says so to its clients and ends in order."""
    process = scene.service.process
    if process is None:
        raise CheckFailedError("this needs a service of its own")
    process.send_signal(signal.SIGTERM)
    codes = [await camera.wait_for_close(PATIENCE_S) for camera in scene.cameras]
    expect(codes == [1001] * N_STREAMS, codes)
    status = await asyncio.to_thread(process.wait, PATIENCE_S)
    expect(status in {0, -signal.SIGTERM}, f"exit status {status}")
    return f"close codes {codes}, exit status {status}"


Check = Callable[[Scene], Awaitable[str]]
CHECKS: tuple[Check, ...] = (
    four_start,
    all_answered,
    one_pauses,
    lost_one_resumes,
    half_a_picture,
    nonsense,
    results_paged,
    taken_over,
    fifth_refused,
    hundred_at_once,
    one_deleted,
    rush_for_the_free_place,
    counted,
    farewell,
)
NEED_OWN_SERVICE = {fifth_refused, hundred_at_once, rush_for_the_free_place, farewell}


def _state(state: StreamState) -> Callable[[Camera], bool]:
    return lambda camera: any(isinstance(m, State) and m.state is state for m in camera.messages)


def _error(code: str) -> Callable[[Camera], bool]:
    return lambda camera: any(isinstance(m, Error) and m.code == code for m in camera.messages)


async def run(scene: Scene) -> bool:
    """Play all checks in turn, since each goes on where the one before ended."""
    all_passed = True
    print("| check | passed | seen |\n| --- | --- | --- |")
    for check in CHECKS:
        if check in NEED_OWN_SERVICE and not scene.own:
            continue
        try:
            seen, passed = await check(scene), True
        except CheckFailedError as failure:
            seen, passed = str(failure), False
        except (TimeoutError, ConnectionClosed) as failure:
            seen, passed = f"{type(failure).__name__} {failure}", False
        all_passed = all_passed and passed
        what = (check.__doc__ or "").strip()
        print(f"| {what} | {'yes' if passed else 'NO'} | {seen} |", flush=True)
        if check is four_start and not passed:
            break
    for camera in scene.cameras:
        with contextlib.suppress(ConnectionClosed):
            await camera.leave()
    if not scene.own:
        for stream_id in scene.ids:
            await scene.ask("DELETE", f"/stream/{stream_id}")
    return all_passed


def main() -> None:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of a running service, such as ws://127.0.0.1:8001")
    parser.add_argument("--detector", default="mediapipe", help="for the service started here")
    parser.add_argument("--log", type=Path, help="file for that service's log")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "pictures").mkdir()
        encode_clip(sample_clip(), folder / "pictures", Cut(480, FPS, 20))
        if options.url:
            service = Service(options.url)
        else:
            settings = {"POSE_MAX_STREAMS": str(N_STREAMS), "POSE_DETECTOR": options.detector}
            log = options.log or folder / "service.log"
            service = stack.enter_context(started_service(log, settings))
        scene = Scene(service, read_pictures(folder / "pictures"), own=not options.url)
        passed = asyncio.run(run(scene))
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
