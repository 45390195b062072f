"""What the report says about form: scores, worst moments, sides compared, cues."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pose_analyzer.form_scorer import score_set
from pose_analyzer.form_types import Component, Cue, FormScore, FormUpdate
from pose_analyzer.reporting.moments import Moment, worst_moments
from pose_analyzer.reporting.summary import readable
from pose_analyzer.types import PersonAnalysis, Repetition

_COMPONENTS: Final = tuple(component.value for component in Component)


@dataclass(frozen=True, slots=True)
class SidePair:
    """How far a joint moved on both sides, mean over the repetitions in degrees."""

    joint: str
    left_deg: float
    right_deg: float


@dataclass(frozen=True, slots=True, eq=False)
class FormSection:
    """Everything about one person's form."""

    whole: FormScore
    components: tuple[str, ...]
    rows: tuple[FormUpdate, ...]
    moments: tuple[Moment, ...]
    pairs: tuple[SidePair, ...]
    cues: tuple[Cue, ...]
    unseen: tuple[str, ...]


def form_section(person: PersonAnalysis, forms: Sequence[FormUpdate]) -> FormSection | None:
    """Sum up one person's form; None if nothing was judged."""
    rows = tuple(
        form
        for form in forms
        if form.track_id == person.track_id and form.exercise in {"", person.exercise}
    )
    if not rows:
        return None
    scores = [form.score for form in rows if form.score is not None]
    unseen = dict.fromkeys(
        readable(item.what)
        for form in rows
        for item in (*form.cannot_judge, *(form.score.cannot_judge if form.score else ()))
    )
    return FormSection(
        whole=score_set(scores),
        components=_COMPONENTS,
        rows=rows,
        moments=worst_moments(person, rows),
        pairs=side_pairs(person.repetitions),
        cues=tuple(form.cue for form in rows if form.cue is not None),
        unseen=tuple(unseen),
    )


def side_pairs(repetitions: Sequence[Repetition]) -> tuple[SidePair, ...]:
    """Compare the sides of joints that were trusted on both."""
    ranges: dict[str, list[float]] = {}
    for repetition in repetitions:
        for one in repetition.ranges:
            if one.trusted:
                ranges.setdefault(one.angle, []).append(one.range_deg)
    joints = [name.removeprefix("left_") for name in ranges if name.startswith("left_")]
    return tuple(
        SidePair(
            readable(joint),
            float(np.mean(ranges[f"left_{joint}"])),
            float(np.mean(ranges[f"right_{joint}"])),
        )
        for joint in joints
        if f"right_{joint}" in ranges
    )
