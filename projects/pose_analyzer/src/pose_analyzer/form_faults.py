"""Named mistakes: rules, each a bound on one measure in one part of a repetition.

What cannot be seen from here is never a fault; it is listed with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool

from pose_analyzer.fault_measures import MEASURES, Body, Course
from pose_analyzer.form_types import CannotJudge, Fault, Reason, RepetitionTrack, Side

Part = Literal["all", "out", "full", "back"]
"""Of a repetition: the whole, the way out, around the turning point, the way back."""
Statistic = Literal["low", "middle", "high"]

# A part must be seen in so many of its frames.
_MIN_SEEN_RATIO: Final = 0.6
_MIN_FRAMES: Final = 3
# Around the turning point and the hold there, by so much of the repetition.
_FULL_RATIO: Final = 0.12
# Percentiles: single frames are often wrong.
_PERCENTILES: Final[Mapping[Statistic, float]] = {"low": 10.0, "middle": 50.0, "high": 90.0}


@dataclass(frozen=True, slots=True)
class FaultRule:
    """One way in which an exercise is done wrongly."""

    fault: str
    joint: str
    """What it is about, as a coach would say."""
    measure: str
    """Of `fault_measures.MEASURES`."""
    part: Part
    statistic: Statistic
    mild: float
    """Where the fault begins (severity 0) …"""
    clear: float
    """… and where it is clear (severity 1); it lies on the bad side of `mild`."""
    priority: int
    """Faults that may hurt come first: the larger, the earlier."""
    versus: Literal["other_side"] | None = None
    """What is bounded: the measure, or by what part it is smaller than in the latest repetition of
    the other side (or that one than this)."""


SideAmounts = Mapping[str, Mapping[Side, float]]
"""What rules that compare sides measured in the latest repetition of each, by measure."""
_NO_AMOUNTS: Final[SideAmounts] = MappingProxyType({})
_OTHER_SIDE: Final[Mapping[Side, Side]] = {"left": "right", "right": "left"}


@dataclass(frozen=True, slots=True)
class FaultFindings:
    """What was looked for in one repetition."""

    faults: tuple[Fault, ...]
    """Most urgent first."""
    absent: tuple[str, ...]
    """Faults that could be seen, and are not there."""
    cannot_judge: tuple[CannotJudge, ...]
    amounts: SideAmounts = field(default_factory=dict)
    """Of this and earlier repetitions, to be handed over with the next."""


NO_FINDINGS: Final = FaultFindings((), (), ())


def look_for_faults(
    track: RepetitionTrack, rules: Sequence[FaultRule], amounts: SideAmounts = _NO_AMOUNTS
) -> FaultFindings:
    """Apply all rules of the exercise to one repetition.

    Parameters
    ----------
    track
        The repetition's frames.
    rules
        Of its exercise. Where several are about the same fault, the worst counts.
    amounts
        What the findings of the repetition before say.
    """
    if len(track.times_s) < 2 or not np.all(np.diff(track.times_s) > 0.0):
        reasons = dict.fromkeys(rule.fault for rule in rules)
        cannot_judge = tuple(CannotJudge(fault, Reason.CONFIDENCE) for fault in reasons)
        return FaultFindings((), (), cannot_judge, amounts)
    body = Body(track)
    courses: dict[str, tuple[Course, ...]] = {}
    faults: dict[str, tuple[int, Fault]] = {}
    seen: dict[str, bool] = {}
    unseen: dict[str, Reason] = {}
    for rule in rules:
        if track.view not in MEASURES[rule.measure].views:
            unseen.setdefault(rule.fault, Reason.VIEW)
            continue
        if rule.measure not in courses:
            courses[rule.measure] = MEASURES[rule.measure].courses(body)
        known = [
            one
            for course in courses[rule.measure]
            if (one := _measured(rule, course, track)) is not None
        ]
        reason = Reason.CONFIDENCE
        if known and rule.versus is not None:
            known, amounts = _compared(rule, known, amounts)
            reason = Reason.NO_REFERENCE
        if not known:
            unseen.setdefault(rule.fault, reason)
            continue
        seen[rule.fault] = True
        worst = max(known, key=lambda fault: fault.severity)
        before = faults.get(rule.fault)
        if worst.severity >= 0.0 and (before is None or worst.severity > before[1].severity):
            faults[rule.fault] = (rule.priority, worst)
    # By priority first; a mild fault does not push ahead of a clear one of nearly the same.
    order = sorted(faults.values(), key=lambda found: -(found[0] * (1.0 + found[1].severity)))
    return FaultFindings(
        faults=tuple(fault for _, fault in order),
        absent=tuple(fault for fault in seen if fault not in faults),
        cannot_judge=tuple(
            CannotJudge(fault, reason) for fault, reason in unseen.items() if fault not in seen
        ),
        amounts=amounts,
    )


def _compared(
    rule: FaultRule, known: Sequence[Fault], amounts: SideAmounts
) -> tuple[list[Fault], SideAmounts]:
    """Compare with the latest repetition of the other side, if any; amounts now include these."""
    before = amounts.get(rule.measure, {})
    now: dict[Side, float] = {fault.side: fault.amount for fault in known if fault.side is not None}
    found = []
    for side, amount in now.items():
        other = before.get(_OTHER_SIDE[side]) if side in _OTHER_SIDE else None
        if other is None or not min(other, amount) > 0.0:
            continue
        part = 1.0 - min(other, amount) / max(other, amount)
        smaller = side if amount < other else _OTHER_SIDE[side]
        severity = _severity(rule, part)
        found += [
            replace(fault, side=smaller, amount=part, unit="ratio", severity=severity)
            for fault in known
            if fault.side == side
        ]
    return found, {**amounts, rule.measure: {**before, **now}}


def _severity(rule: FaultRule, amount: float) -> float:
    return min((amount - rule.mild) / (rule.clear - rule.mild), 1.0)


def _measured(rule: FaultRule, course: Course, track: RepetitionTrack) -> Fault | None:
    """How far the rule is broken, severity below 0 if it is kept; None if that is not seen."""
    frames = np.flatnonzero(_PARTS[rule.part](track))
    values = course.values[frames]
    known = np.isfinite(values)
    if known.sum() < max(_MIN_FRAMES, _MIN_SEEN_RATIO * len(frames)):
        return None
    frames, values = frames[known], values[known]
    amount = float(np.percentile(values, _PERCENTILES[rule.statistic]))
    worst = int(frames[np.argmin(np.abs(values - amount))])
    return Fault(
        name=rule.fault,
        severity=_severity(rule, amount),
        joint=rule.joint,
        side=course.side,
        phase=track.phases[worst],
        repetition=track.repetition.number,
        amount=amount,
        unit=MEASURES[rule.measure].unit,
        at_s=float(track.times_s[worst]),
    )


def _all(track: RepetitionTrack) -> Bool[np.ndarray, "frames"]:
    return np.ones(len(track.times_s), dtype=bool)


def _out(track: RepetitionTrack) -> Bool[np.ndarray, "frames"]:
    return track.times_s <= track.repetition.turn_s


def _back(track: RepetitionTrack) -> Bool[np.ndarray, "frames"]:
    return track.times_s >= track.repetition.turn_s


def _full(track: RepetitionTrack) -> Bool[np.ndarray, "frames"]:
    repetition = track.repetition
    around_s = _FULL_RATIO * repetition.duration_s
    from_s, to_s = repetition.turn_s - around_s, repetition.turn_s + repetition.hold_s + around_s
    return (track.times_s >= from_s) & (track.times_s <= to_s)


_PARTS: Final[Mapping[Part, Callable[[RepetitionTrack], Bool[np.ndarray, "frames"]]]] = {
    "all": _all,
    "out": _out,
    "full": _full,
    "back": _back,
}
