"""``pose-analyzer-client upload``: a video sent to a running service."""

import asyncio
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from pose_analyzer_client.client import AUTO, DEFAULT_ADDRESS, PoseAnalyzerClient
from pose_analyzer_client.demo import app, fail
from pose_analyzer_client.errors import PoseAnalyzerClientError
from pose_analyzer_client.uploads import OnProgress, UploadProgress, VideoOptions
from pose_analyzer_client.wire import Video

_STAGES: Final = {
    "reading": "Computing the checksum",
    "sending": "Sending",
    "completing": "The service looks at it",
}


@app.command()
def upload(  # noqa: PLR0913 - its options
    video: Annotated[Path, typer.Argument(help="A video file.")],
    *,
    url: Annotated[str, typer.Option(help="Address of the service.")] = DEFAULT_ADDRESS,
    exercise: Annotated[str, typer.Option(help="auto, or the name of an exercise.")] = AUTO,
    detector: Annotated[str | None, typer.Option(help="As the service names them.")] = None,
    athlete: Annotated[str | None, typer.Option(help="Id of the athlete it belongs to.")] = None,
    language: Annotated[str | None, typer.Option(help="Of the report.")] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also draw into the video.")] = False,
    through_service: Annotated[
        bool, typer.Option("--through-service", help="Do not send straight to S3.")
    ] = False,
) -> None:
    """Send a video to a running service, which analyses it.

    After an interruption, the same command goes on where it was.
    """
    options = VideoOptions(
        athlete_id=athlete, language=language, overlay=overlay, direct=not through_service
    )
    # Bars are for people: stdout holds the result only.
    console = Console(stderr=True)
    bar = _bar(console) if console.is_terminal else None
    try:
        with bar or nullcontext():
            show = None if bar is None else _shown_in(bar)
            stored = asyncio.run(
                _send(PoseAnalyzerClient(url, exercise, detector), video, options, show)
            )
    except PoseAnalyzerClientError as error:
        fail(error)
    print(f"video {stored.video_id}")  # noqa: T201 - this is the shell
    if stored.job_id is not None:
        print(f"job {stored.job_id}")  # noqa: T201


async def _send(
    client: PoseAnalyzerClient, video: Path, options: VideoOptions, show: OnProgress | None
) -> Video:
    async with client:
        return await client.upload_video(video, options, on_progress=show)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _shown_in(bar: Progress) -> OnProgress:
    task = bar.add_task("")
    shown = ""

    def show(progress: UploadProgress) -> None:
        nonlocal shown
        if progress.stage != shown:
            shown = progress.stage
            bar.reset(task, description=_STAGES[shown], total=progress.size_bytes)
        bar.update(task, completed=progress.n_bytes)

    return show
