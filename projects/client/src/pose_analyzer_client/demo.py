"""``pose-analyzer-client demo``: a video through a running service."""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.live import Live

from pose_analyzer_client.client import DEFAULT_ADDRESS, PoseAnalyzerClient
from pose_analyzer_client.display import (
    describe_event,
    describe_person,
    describe_statistics,
    live_table,
)
from pose_analyzer_client.errors import (
    InvalidAddressError,
    PoseAnalyzerClientError,
    UnreadableVideoError,
)
from pose_analyzer_client.events import Event
from pose_analyzer_client.options import StreamOptions
from pose_analyzer_client.results import Person, Result
from pose_analyzer_client.statistics import Statistics
from pose_analyzer_client.video import VideoInfo, at_own_pace, probe_video, video_frames

_FAILED: Final = 1
_UNUSABLE: Final = 2
_MIN_SECONDS_SEEN: Final = 1.0

app = typer.Typer(no_args_is_help=True, add_completion=False)


@dataclass(frozen=True, slots=True)
class DemoJob:
    """What is to be played, where, and how."""

    video: Path
    address: str = DEFAULT_ADDRESS
    exercise: str = "auto"
    detector: str | None = None
    as_fast_as_possible: bool = False


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What came of it."""

    statistics: Statistics
    people: tuple[Person, ...]
    """As last seen, those who were there for a second or more."""
    elapsed_s: float


class Attendance:
    """Who was seen, and for how long; a stream that was started anew knows nobody."""

    def __init__(self) -> None:
        self._earlier: tuple[Person, ...] = ()
        self._first_s: dict[int, float] = {}
        self._last: dict[int, tuple[float, Person]] = {}
        self._frame = -1

    @property
    def stayed(self) -> tuple[Person, ...]:
        """As last seen, those who were there for a second or more, on one stream."""
        return self._earlier + tuple(
            person
            for number, (last_s, person) in self._last.items()
            if last_s - self._first_s[number] >= _MIN_SECONDS_SEEN
        )

    def note(self, result: Result) -> None:
        """Take note of the next answer."""
        if result.frame <= self._frame:
            self._earlier = self.stayed
            self._first_s.clear()
            self._last.clear()
        self._frame = result.frame
        for person in result.people:
            self._first_s.setdefault(person.track_id, result.captured_s)
            self._last[person.track_id] = result.captured_s, person


@app.callback()
def pose_analyzer_client() -> None:
    """Client of the pose analyzer."""


@app.command()
def demo(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    *,
    url: Annotated[str, typer.Option(help="Address of the service.")] = DEFAULT_ADDRESS,
    exercise: Annotated[str, typer.Option(help="auto, or the name of an exercise.")] = "auto",
    detector: Annotated[str | None, typer.Option(help="As the service names them.")] = None,
    as_fast_as_possible: Annotated[
        bool, typer.Option("--as-fast-as-possible", help="Have every frame answered.")
    ] = False,
) -> None:
    """Play a video through a running service, at its own rate, and show what it sees."""
    job = DemoJob(video, url, exercise, detector, as_fast_as_possible)
    console = Console()
    try:
        info = probe_video(video)
        with Live(f"Starting a stream at {url}", console=console, transient=True) as live:

            def show(result: Result, statistics: Statistics) -> None:
                live.update(live_table(result, statistics, info.duration_s))

            def tell(event: Event) -> None:
                live.console.print(describe_event(event), markup=False)

            summary = asyncio.run(play(job, info, show, tell))
    except PoseAnalyzerClientError as error:
        fail(error)
    rate_hz = summary.statistics.n_answered / summary.elapsed_s
    for person in summary.people:
        console.print(describe_person(person))
    console.print(describe_statistics(summary.statistics), soft_wrap=True)
    console.print(f"{summary.elapsed_s:.1f} s, {rate_hz:.1f} frames/s")


def fail(error: PoseAnalyzerClientError) -> NoReturn:
    """Tell the error and end the command."""
    print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - this is the shell
    unusable = isinstance(error, InvalidAddressError | UnreadableVideoError)
    raise typer.Exit(_UNUSABLE if unusable else _FAILED) from error


async def play(
    job: DemoJob,
    info: VideoInfo,
    show: Callable[[Result, Statistics], None],
    tell: Callable[[Event], None],
) -> DemoSummary:
    """Send a video's frames and show each answer.

    Raises
    ------
    PoseAnalyzerClientError
        The service or the video is not usable.
    """
    fps = info.fps if info.fps > 0 else StreamOptions().fps
    frames = video_frames(job.video)
    attendance = Attendance()
    client = PoseAnalyzerClient(
        job.address,
        job.exercise,
        job.detector,
        stream=StreamOptions(fps=fps),
        on_event=tell,
    )
    async with client:
        await client.start()  # the video begins when the service is ready
        began_s = time.monotonic()
        paced = frames if job.as_fast_as_possible else at_own_pace(frames)
        async for result in client.stream(paced, drop=not job.as_fast_as_possible):
            attendance.note(result)
            show(result, client.statistics)
        elapsed_s = time.monotonic() - began_s
    return DemoSummary(client.statistics, attendance.stayed, elapsed_s)
