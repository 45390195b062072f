"""Progress bars of the command line; always on stderr, so that stdout stays for results."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from pose_analyzer.model_files import DownloadProgress


class _RichDownloadProgress:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def start(self, label: str, total_bytes: int | None) -> None:
        self._bars.add_task(label, total=total_bytes)

    def advance(self, n_bytes: int) -> None:
        self._bars.advance(self._bars.task_ids[-1], n_bytes)

    def finish(self) -> None:
        for task_id in self._bars.task_ids:
            self._bars.remove_task(task_id)


@contextmanager
def download_progress(*, quiet: bool = False) -> Iterator[DownloadProgress]:
    """Show a bar for each running download; nothing when quiet or not on a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        yield _RichDownloadProgress(progress)
