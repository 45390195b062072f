"""Answers and statistics as tables for the terminal."""

import math
from typing import Final

from rich.table import Table

from pose_analyzer_client.events import (
    ConnectionInterrupted,
    ConnectionResumed,
    Event,
    ServiceComplaint,
    StateChanged,
    StreamRestarted,
)
from pose_analyzer_client.results import Person, Result
from pose_analyzer_client.statistics import Statistics

KNEES: Final = ("left_knee", "right_knee")
_N_SHOWN: Final = 4


def live_table(result: Result, statistics: Statistics, duration_s: float) -> Table:
    """The latest answer and how the stream does."""
    end = "" if math.isnan(duration_s) else f" of {duration_s:.1f}"
    table = Table(
        "person",
        "exercise",
        "reps",
        "phase",
        "left knee",
        "right knee",
        title=f"frame {result.frame}, {result.captured_s:.1f}{end} s",
        caption=describe_statistics(statistics),
    )
    for person in result.people[:_N_SHOWN]:
        table.add_row(
            str(person.track_id),
            person.exercise or "–",
            str(person.n_repetitions),
            person.phase,
            *(_angle(person, name) for name in KNEES),
        )
    return table


def describe_statistics(statistics: Statistics) -> str:
    """Round trips and drops in one line."""
    dropped = dict(statistics.dropped)
    if statistics.n_skipped:
        dropped["not sent"] = statistics.n_skipped
    if statistics.n_lost:
        dropped["lost"] = statistics.n_lost
    if statistics.n_unanswered:
        dropped["unanswered"] = statistics.n_unanswered
    drops = ", ".join(f"{n} {cause}" for cause, n in dropped.items()) or "none"
    return (
        f"round trip p50 {_milliseconds(statistics.round_trip_p50_s)}, "
        f"p95 {_milliseconds(statistics.round_trip_p95_s)}; "
        f"{statistics.n_answered} frames answered; dropped: {drops}"
    )


def describe_person(person: Person) -> str:
    """What was counted of one person."""
    if person.exercise is None:
        return f"person {person.track_id}: no exercise recognised"
    noun = "repetition" if person.n_repetitions == 1 else "repetitions"
    return f"person {person.track_id}: {person.exercise}, {person.n_repetitions} {noun}"


def describe_event(event: Event) -> str:
    """What happened to the stream in one line."""
    match event:
        case StateChanged(state, reason):
            return f"stream {state}: {reason}"
        case ConnectionInterrupted(reason):
            return f"connection broke ({reason}), trying again"
        case ConnectionResumed(_, n_lost):
            return f"connected again, {n_lost} frames lost"
        case StreamRestarted(_, _, n_lost):
            return f"the service had forgotten the stream; started anew, {n_lost} frames lost"
        case ServiceComplaint(code, detail, _):
            return f"{code}: {detail}"


def _angle(person: Person, name: str) -> str:
    if name not in person.angles.names:
        return "–"
    angle = person.angle(name)
    return f"{angle.value_deg:.0f}° ± {angle.sd_deg:.0f}°" if angle.trusted else "not visible"


def _milliseconds(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{1e3 * seconds:.1f} ms"
