"""``pose-analyzer cost``: what workers for recorded videos cost on rented machines."""

import json
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pose_analyzer.errors import UnknownNameError
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.worker_cost import (
    INSTANCES,
    PRICES_AS_OF,
    SCHEDULES,
    Instance,
    per_day_usd,
    per_video_usd,
    workers_for,
)
from shared_utils.settings import read_settings

_MINUTE_S = 60.0


def show_cost(
    instance: Annotated[
        str | None, typer.Option(help="Only this machine, such as g4dn.xlarge.")
    ] = None,
    *,
    minutes: Annotated[float, typer.Option(min=0.1, help="Length of a video.")] = 15.0,
    videos_per_hour: Annotated[float, typer.Option(min=0.0, help="How many come.")] = 4.0,
    seconds_per_chunk: Annotated[
        float | None,
        typer.Option(min=0.01, help="Measured time for 30 s of video, in place of what is known."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Show what workers for recorded videos cost a day, and a video."""
    storage = read_settings(StorageSettings)
    rows = [
        _row(one, minutes * _MINUTE_S, videos_per_hour, storage.chunk_s)
        for one in _chosen(instance, seconds_per_chunk)
    ]
    if as_json:
        print(json.dumps({"prices": PRICES_AS_OF, "instances": rows}, indent=2))  # noqa: T201
        return
    Console().print(_table(rows, minutes, videos_per_hour))


def _chosen(name: str | None, seconds_per_chunk: float | None) -> list[Instance]:
    chosen = [one for one in INSTANCES if name in (None, one.name)]
    if not chosen:
        raise UnknownNameError("instance", str(name), tuple(one.name for one in INSTANCES))
    if seconds_per_chunk is None:
        return chosen
    return [replace(one, chunk_s=seconds_per_chunk, basis="as given") for one in chosen]


def _row(
    one: Instance, video_s: float, videos_per_hour: float, chunk_s: float
) -> dict[str, object]:
    return {
        "instance": one.name,
        "gpu": one.gpu,
        "usd_per_hour": one.usd_per_hour,
        "usd_per_day": {
            f"{n} x {hours:g} h": round(per_day_usd(one, n, hours), 2) for n, hours in SCHEDULES
        },
        "usd_per_video": per_video_usd(one, video_s, chunk_s),
        "workers": workers_for(one, videos_per_hour, video_s),
        "seconds_per_30_s": one.chunk_s,
        "basis": one.basis,
    }


def _table(rows: list[dict[str, object]], minutes: float, videos_per_hour: float) -> Table:
    table = Table(
        title="Workers for recorded videos, US dollars",
        caption=f"Prices: {PRICES_AS_OF}. A video: {minutes:g} minutes, {videos_per_hour:g} an "
        "hour. Storage and traffic are not in it.",
    )
    table.add_column("machine")
    table.add_column("GPU")
    table.add_column("an hour", justify="right")
    for n_workers, hours in SCHEDULES:
        table.add_column(f"{n_workers} x {hours:g} h a day", justify="right")
    table.add_column("a video", justify="right")
    table.add_column("workers", justify="right")
    table.add_column("30 s of video take")
    for row in rows:
        by_day = row["usd_per_day"]
        assert isinstance(by_day, dict)  # noqa: S101 - made above
        pace, video = row["seconds_per_30_s"], row["usd_per_video"]
        table.add_row(
            str(row["instance"]),
            str(row["gpu"]),
            f"{row['usd_per_hour']:.4g}",
            *[f"{usd:.2f}" for usd in by_day.values()],
            "?" if video is None else f"{video:.3f}",
            "?" if row["workers"] is None else str(row["workers"]),
            str(row["basis"]) if pace is None else f"{pace:g} s ({row['basis']})",
        )
    return table
