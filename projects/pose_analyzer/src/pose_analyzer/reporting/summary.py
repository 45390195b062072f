"""What a reader wants to know first, said in words and small tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool

from pose_analyzer.skeletons import ANGLE_NAMES
from pose_analyzer.types import PersonAnalysis, RangeOfMotion, Repetition, View

VIEW_CAVEATS: Final = {
    View.FRONT: "Seen from the front or back: knees and hips bend along the line of sight, so how "
    "far they bend cannot be read from the picture.",
    View.THREE_QUARTER: "Seen at an angle: bends are foreshortened, so angles are less certain "
    "than from the side.",
    View.SIDE: "Seen from the side: the far arm and leg are partly hidden, and knees that move "
    "in or out cannot be seen.",
    View.UNKNOWN: "The direction of the camera could not be told: compare angles with care.",
}
MAX_RANGE_COLUMNS: Final = 6


@dataclass(frozen=True, slots=True)
class Tempo:
    """Mean seconds of the parts of a repetition."""

    duration_s: float
    eccentric_s: float
    hold_s: float
    concentric_s: float


@dataclass(frozen=True, slots=True)
class RepetitionTable:
    """Ranges of motion beside each repetition."""

    angles: tuple[str, ...]
    """Readable names of the range columns."""
    rows: tuple[tuple[Repetition, tuple[RangeOfMotion | None, ...]], ...]
    n_left_out: int
    """Angles that have ranges but no column."""


def readable(name: str) -> str:
    """``left_knee`` as a person writes it."""
    return name.replace("_", " ")


def tempo(repetitions: Sequence[Repetition]) -> Tempo | None:
    """Mean tempo, None without repetitions."""
    if not repetitions:
        return None
    parts = [(r.duration_s, r.eccentric_s, r.hold_s, r.concentric_s) for r in repetitions]
    duration_s, eccentric_s, hold_s, concentric_s = np.mean(parts, axis=0).tolist()
    return Tempo(duration_s, eccentric_s, hold_s, concentric_s)


def exercising(person: PersonAnalysis) -> Bool[np.ndarray, "frames"]:
    """Frames that lie within a repetition."""
    inside = np.zeros(len(person.time_s), dtype=bool)
    for repetition in person.repetitions:
        inside |= (person.time_s >= repetition.start_s) & (person.time_s <= repetition.end_s)
    return inside


def unreliable_angles(person: PersonAnalysis) -> tuple[str, ...]:
    """Angles measured but to be trusted in less than half of those frames, sides joined.

    Of somebody who exercised, only the repetitions count.
    """
    known = np.isfinite(person.angles_deg)
    counted = exercising(person)
    known = known & counted[:, None] if counted.any() else known
    trusted = (person.angles_trusted & known).sum(axis=0)
    doubtful = known.any(axis=0) & (trusted < 0.5 * known.sum(axis=0))
    return _join_sides(name for name, bad in zip(ANGLE_NAMES, doubtful, strict=True) if bad)


def unmeasured_angles(person: PersonAnalysis) -> tuple[str, ...]:
    """Angles that are known in no frame, sides joined."""
    missing = ~np.isfinite(person.angles_deg).any(axis=0)
    return _join_sides(name for name, gone in zip(ANGLE_NAMES, missing, strict=True) if gone)


def repetition_table(repetitions: Sequence[Repetition]) -> RepetitionTable:
    """Repetitions with the ranges of the angles that move most, trusted ones first."""
    by_angle: dict[str, list[RangeOfMotion]] = {}
    for repetition in repetitions:
        for extremes in repetition.ranges:
            by_angle.setdefault(extremes.angle, []).append(extremes)
    ranked = sorted(by_angle, key=lambda angle: _importance(by_angle[angle]), reverse=True)
    chosen = tuple(ranked[:MAX_RANGE_COLUMNS])
    rows = []
    for repetition in repetitions:
        found = {extremes.angle: extremes for extremes in repetition.ranges}
        rows.append((repetition, tuple(found.get(angle) for angle in chosen)))
    left_out = len(ranked) - len(chosen)
    return RepetitionTable(tuple(readable(angle) for angle in chosen), tuple(rows), left_out)


def _importance(ranges: Sequence[RangeOfMotion]) -> tuple[bool, float]:
    trusted = sum(extremes.trusted for extremes in ranges) >= 0.5 * len(ranges)
    spans_deg = np.array([extremes.range_deg for extremes in ranges])
    known = spans_deg[np.isfinite(spans_deg)]
    return trusted, float(known.mean()) if known.size else 0.0


def _join_sides(names: Iterable[str]) -> tuple[str, ...]:
    """``left_knee, right_knee`` becomes ``both knees``; other names are made readable."""
    given = list(names)
    joined: list[str] = []
    for name in given:
        side, _, joint = name.partition("_")
        other = {"left": f"right_{joint}", "right": f"left_{joint}"}.get(side)
        if other not in given:
            joined.append(readable(name))
        elif side == "left":
            joined.append(f"both {joint}s")
    return tuple(joined)
