"""``pose-analyzer models``: what is here, and getting what is not."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from pose_analyzer.cli.exits import Commands
from pose_analyzer.cli.progress import download_progress
from pose_analyzer.model_files import (
    CLIPS,
    MODELS,
    DownloadProgress,
    LocalFile,
    clip_states,
    fetch_clip,
    fetch_model,
    model_states,
)
from pose_analyzer.settings import Settings
from shared_utils.errors import ProjectError
from shared_utils.exits import ExitCode
from shared_utils.settings import read_settings
from shared_utils.units import format_mib

Fetch = Callable[[str, Settings, DownloadProgress], Path]


class _ListByDefault(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own
        return super().parse_args(ctx, args or ["list"])


models_app: Final = typer.Typer(
    help="Model files and sample clips: list (when nothing is said), download.",
    cls=_ListByDefault,
)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")]
Clips = Annotated[bool, typer.Option("--clips", help="Sample clips instead of models.")]


@models_app.command("list")
def list_files(*, clips: Clips = False, as_json: Json = False) -> None:
    """Show name, size, licence, sha256 and state of every known file."""
    settings = read_settings(Settings)
    files = clip_states(settings) if clips else model_states(settings)
    if as_json:
        print(json.dumps([_as_dict(file) for file in files], indent=2))  # noqa: T201
    else:
        Console().print(_table(files))


@models_app.command("download")
def download(
    names: Annotated[list[str] | None, typer.Argument(help="Names as in the list.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Everything in the list.")] = False,
    clips: Clips = False,
    as_json: Json = False,
) -> None:
    """Download files that are not here yet; each is checked and put in place in one step."""
    fetch, known = (fetch_clip, CLIPS) if clips else (fetch_model, MODELS)
    # The clips are small and come together, so --clips alone means all of them.
    wanted = tuple(known) if every or (clips and not names) else tuple(names or ())
    if not wanted:
        raise typer.BadParameter("name the files to download, or --all")
    paths, code = _fetch_all(fetch, wanted)
    if as_json:
        print(json.dumps({name: str(path) for name, path in paths.items()}))  # noqa: T201
    else:
        for name, path in paths.items():
            print(f"{name}: {path}")  # noqa: T201
    raise typer.Exit(code)


def _fetch_all(fetch: Fetch, names: tuple[str, ...]) -> tuple[dict[str, Path], ExitCode]:
    """Fetch each file; one that fails does not keep the others from being tried."""
    settings = read_settings(Settings)
    paths: dict[str, Path] = {}
    code = ExitCode.OK
    with download_progress() as progress:
        for name in names:
            try:
                paths[name] = fetch(name, settings, progress)
            except ProjectError as error:
                print(f"Error: {error}", file=sys.stderr)  # noqa: T201
                code = max(code, Commands.exit_code(error))
    return paths, code


def _table(files: tuple[LocalFile, ...]) -> Table:
    table = Table("name", "size", "licence", "sha256", "state")
    table.columns[1].justify = "right"
    for file in files:
        size = format_mib(file.size_bytes) if file.size_bytes is not None else "?"
        sha256 = file.sha256[:12] if file.sha256 else "?"
        table.add_row(file.published.name, size, file.published.licence, sha256, file.state)
    return table


def _as_dict(file: LocalFile) -> dict[str, str | int | None]:
    return {
        "name": file.published.name,
        "filename": file.published.filename,
        "size_bytes": file.size_bytes,
        "licence": file.published.licence,
        "sha256": file.sha256,
        "state": file.state.value,
        "path": str(file.path) if file.path else None,
    }
