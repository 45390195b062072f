"""Whether the service's memory stays flat while clients come, flood, break off and are refused.

For some minutes, many clients at once do in turn what clients do, good and bad, on a service with
little capacity; its resident memory (all processes) is read every ten seconds. Ends with 1 if the
memory grew, if a client that behaved went unanswered, or if the service died.

python benchmarks/soak.py --minutes 10
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from streams.camera import Camera, break_off_mid_picture, open_camera
from streams.clips import Cut, encode_clip, sample_clip
from streams.pictures import read_pictures
from streams.records import slope_per_s
from streams.service import Service, started_service
from streams.usage import describe_machine, read_processes
from websockets.exceptions import ConnectionClosed, InvalidHandshake

FPS = 15.0
SAMPLE_S = 10.0
SETTLING_S = 60.0  # models load, pools and caches fill; growth is measured after that
GROWTH_RATIO_MAX = 0.05  # over the time measured: more is not flat
PATIENCE_S = 30.0


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    visits: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    unanswered: int = 0
    closed: Counter[str] = field(default_factory=Counter)
    n_answers: int = 0
    unexpected: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Visit:
    """One client on one stream."""

    camera: Camera
    url: str
    pictures: Sequence[bytes]
    tally: Tally


async def behave(visit: Visit) -> None:
    """Send pictures for a while and get answers."""
    visit.camera.film(visit.pictures, FPS)
    try:
        await visit.camera.wait_for(lambda camera: len(camera.results) >= 10, PATIENCE_S)
    except TimeoutError:
        visit.tally.unanswered += 1


async def flood(visit: Visit) -> None:
    """Send as fast as the socket takes it, until sent away."""
    visit.camera.film(visit.pictures, 1e6)
    code = await visit.camera.wait_for_close(PATIENCE_S)
    visit.tally.closed[f"flood {code}"] += 1


async def never_read(visit: Visit) -> None:
    """Send pictures and read nothing for a while."""
    visit.camera.connection.transport.pause_reading()
    visit.camera.film(visit.pictures, FPS)
    await asyncio.sleep(5.0)


async def break_off(visit: Visit) -> None:
    """Vanish in the middle of a picture, come back, and vanish for good."""
    visit.camera.film(visit.pictures, FPS)
    await visit.camera.wait_for(lambda camera: camera.results, PATIENCE_S)
    await visit.camera.lose()
    again = await open_camera(visit.url)
    await break_off_mid_picture(again)


async def send_rubbish(visit: Visit) -> None:
    """Send what is no picture until sent away; only what the detector looked at counts there."""
    visit.camera.film([b"rubbish"], 100.0)
    code = await visit.camera.wait_for_close(PATIENCE_S)
    visit.tally.closed[f"rubbish {code}"] += 1


async def send_too_much(visit: Visit) -> None:
    """Send a picture larger than is accepted."""
    with contextlib.suppress(ConnectionClosed):  # it need not be read to its end
        await visit.camera.connection.send(bytes(9 * 1024 * 1024))
    code = await visit.camera.wait_for_close(PATIENCE_S)
    visit.tally.closed[f"too much {code}"] += 1


MANNERS: tuple[tuple[Callable[[Visit], Awaitable[None]], float], ...] = (
    (behave, 6),
    (break_off, 2),
    (flood, 1),
    (never_read, 1),
    (send_rubbish, 1),
    (send_too_much, 1),
)


async def visit_once(service: Service, pictures: Sequence[bytes], tally: Tally) -> None:
    """Ask for a stream and, if there is room, use it in one way or another."""
    started = await asyncio.to_thread(service.start_stream, fps=FPS)
    if started.status != HTTPStatus.CREATED:
        tally.refused += started.status == HTTPStatus.SERVICE_UNAVAILABLE
        if started.status != HTTPStatus.SERVICE_UNAVAILABLE:
            tally.unexpected[f"start {started.status}"] += 1
        await asyncio.sleep(random.uniform(0.5, 3.0))  # noqa: S311 - no secret
        return
    manners, weights = zip(*MANNERS, strict=True)
    (way,) = random.choices(manners, weights)  # noqa: S311 - no secret
    tally.visits[way.__name__] += 1
    url = service.address(started)
    camera = await open_camera(url)
    try:
        await way(Visit(camera, url, pictures, tally))
    except (TimeoutError, ConnectionClosed, InvalidHandshake) as error:
        closed_as_told = isinstance(error, ConnectionClosed) and way is not behave
        if not closed_as_told:
            tally.unexpected[f"{way.__name__}: {type(error).__name__} {error}"] += 1
    finally:
        tally.n_answers += len(camera.results)
        await camera.leave()
        # Half of them leave without a word, so that grace times run out, too.
        if random.random() < 0.5:  # noqa: S311 - no secret
            await asyncio.to_thread(service.end_stream, started.body["stream_id"])


async def keep_visiting(
    service: Service, pictures: Sequence[bytes], tally: Tally, until_s: float
) -> None:
    while time.monotonic() < until_s:
        try:
            await visit_once(service, pictures, tally)
        except OSError as error:  # the service is gone
            tally.unexpected[type(error).__name__] += 1
            await asyncio.sleep(1.0)


async def sample(pid: int, until_s: float, readings: list[tuple[float, int, int]]) -> None:
    """Read the service's memory at once, and every ten seconds."""
    while True:
        reading = await asyncio.to_thread(read_processes, pid)
        readings.append((time.monotonic(), reading.rss_bytes, reading.n_threads))
        print(
            f"{reading.rss_bytes / 1e6:8.1f} MB, {reading.n_threads} threads, "
            f"{reading.n_processes} processes",
            flush=True,
        )
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return
        await asyncio.sleep(min(SAMPLE_S, left_s))


def growth(readings: Sequence[tuple[float, int, int]]) -> dict[str, float]:
    """How much memory grew after settling: between the medians of the first and last third.

    Single readings go up and down with the streams that happen to be alive.
    """
    settled = [r for r in readings if r[0] - readings[0][0] >= SETTLING_S] or list(readings)
    times_s, rss_bytes, _ = zip(*settled, strict=True)
    n_third = max(1, len(rss_bytes) // 3)
    early, late = (statistics.median(part) for part in (rss_bytes[:n_third], rss_bytes[-n_third:]))
    return {
        "measured_s": round(times_s[-1] - times_s[0], 1),
        "rss_early_bytes": early,
        "rss_late_bytes": late,
        "rss_max_bytes": max(rss_bytes),
        "slope_bytes_per_minute": round(60 * slope_per_s(times_s, rss_bytes)),
        "growth_ratio": round(late / early - 1, 4),
    }


async def soak(service: Service, pictures: Sequence[bytes], options: argparse.Namespace) -> Any:  # noqa: ANN401 - JSON
    assert service.pid is not None
    tally = Tally()
    readings: list[tuple[float, int, int]] = []
    until_s = time.monotonic() + 60 * options.minutes
    clients = [
        asyncio.create_task(keep_visiting(service, pictures, tally, until_s))
        for _ in range(options.clients)
    ]
    await sample(service.pid, until_s, readings)
    await asyncio.gather(*clients)
    alive = False
    with contextlib.suppress(OSError):
        alive = (await asyncio.to_thread(service.request, "GET", "/health")).status == HTTPStatus.OK
    return {
        "minutes": options.minutes,
        "clients": options.clients,
        "streams": options.streams,
        "alive": alive,
        "growth": growth(readings),
        "threads_first_last": [readings[0][2], readings[-1][2]],
        "visits": dict(tally.visits),
        "refused": tally.refused,
        "answers": tally.n_answers,
        "unanswered": tally.unanswered,
        "closed": dict(tally.closed),
        "unexpected": dict(tally.unexpected),
        "rss_bytes": [rss_bytes for _, rss_bytes, _ in readings],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--streams", type=int, default=4, help="what the service takes at once")
    parser.add_argument("--detector", default="mediapipe")
    parser.add_argument("--log", type=Path, help="file for the service's log")
    parser.add_argument("--report", type=Path, help="JSON file to write")
    options = parser.parse_args()
    settings = {
        "POSE_DETECTOR": options.detector,
        "POSE_MAX_STREAMS": str(options.streams),
        "POSE_STREAM_GRACE_S": "2",
    }
    machine = describe_machine()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "pictures").mkdir()
        encode_clip(sample_clip(), folder / "pictures", Cut(720, FPS, 30))
        log = options.log or folder / "service.log"
        service = stack.enter_context(started_service(log, settings))
        found = asyncio.run(soak(service, read_pictures(folder / "pictures"), options))
    results = {"machine": machine, **found}
    print(json.dumps({k: v for k, v in results.items() if k != "rss_bytes"}, indent=2))
    if options.report is not None:
        options.report.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    flat = results["growth"]["growth_ratio"] <= GROWTH_RATIO_MAX
    sound = results["alive"] and not results["unanswered"] and not results["unexpected"]
    sys.exit(0 if flat and sound else 1)


if __name__ == "__main__":
    main()
