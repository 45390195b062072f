"""One person's own way of doing an exercise: learned from their good repetitions, kept up slowly.

The first few accepted repetitions of a view make its pattern. Later ones move it by a tenth of the
way, so that it follows a person who improves but no single repetition; bad ones are not accepted.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pose_analyzer.form_measures import FormMeasures
from pose_analyzer.form_patterns import N_OWN, closer_signals, taught_pattern
from pose_analyzer.form_references import FormReference, Pattern
from pose_analyzer.form_types import FormScore
from pose_analyzer.types import View

UPDATE_WEIGHT: Final = 0.1
"""Of an accepted repetition in the pattern it joins."""
# Points a repetition must have to be learned from: by the general reference, strangers' correct
# repetitions have some 83 on average and incorrect ones 54; by the person's own 87 and 20, nine of
# ten correct ones 60 or more, nine of ten incorrect ones less (benchmarks/form_scores.py).
_MIN_GENERAL: Final = 70.0
_MIN_OWN: Final = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class PersonalBaseline:
    """What is known of one person and exercise; ``PersonalBaseline(...)`` anew is a reset."""

    exercise: str
    signals: tuple[str, ...]
    """What is compared; see `form_references.signals_for`."""
    waiting: tuple[FormMeasures, ...] = ()
    """Accepted repetitions of views that have no pattern yet."""
    patterns: tuple[Pattern, ...] = ()

    def reference(self, name: str = "own") -> FormReference | None:
        """What to score with; None before the first pattern."""
        if not self.patterns:
            return None
        return FormReference(
            name=name,
            exercise=self.exercise,
            mode="personal",
            provenance={"source": "accepted repetitions of one person"},
            signals=self.signals,
            patterns=self.patterns,
        )


def from_reference(reference: FormReference) -> PersonalBaseline:
    """Go on from a reference that was taught or saved."""
    return PersonalBaseline(
        reference.exercise, reference.signals, patterns=tuple(reference.patterns)
    )


def is_acceptable(score: FormScore | None) -> bool:
    """Whether a repetition is good enough to learn from.

    One without a score is: where there is no reference, who begins is believed.
    """
    if score is None or score.total is None or score.reference is None:
        return True
    return score.total >= (_MIN_OWN if score.reference.mode == "personal" else _MIN_GENERAL)


def accept(
    baseline: PersonalBaseline, repetition: FormMeasures, general: FormReference | None = None
) -> PersonalBaseline:
    """Learn from one repetition.

    Parameters
    ----------
    baseline
        What is known so far.
    repetition
        A good one, `is_acceptable`; of an unknown view it teaches nothing.
    general
        Of the same exercise, if there is one.
    """
    if repetition.view is View.UNKNOWN:
        return baseline
    kind = repetition.view, repetition.returns_only
    known = [p for p in baseline.patterns if (p.view, p.returns_only) == kind]
    if known:
        moved = _moved(known[0], repetition)
        patterns = tuple(moved if p is known[0] else p for p in baseline.patterns)
        return replace(baseline, patterns=patterns)
    alike = [one for one in baseline.waiting if (one.view, one.returns_only) == kind]
    if len(alike) + 1 < N_OWN:
        return replace(baseline, waiting=(*baseline.waiting, repetition))
    lender = None if general is None else general.pattern_at(repetition.yaw_deg)
    return replace(
        baseline,
        waiting=tuple(one for one in baseline.waiting if one not in alike),
        patterns=(*baseline.patterns, taught_pattern([*alike, repetition], lender)),
    )


def _moved(pattern: Pattern, repetition: FormMeasures) -> Pattern:
    signals = closer_signals(repetition, pattern.mean)
    # What the repetition did not show stays.
    towards = np.where(np.isfinite(signals), signals, pattern.mean)
    return replace(
        pattern,
        n_repetitions=pattern.n_repetitions + 1,
        mean=pattern.mean + UPDATE_WEIGHT * (towards - pattern.mean),
        yaw_deg=_towards(pattern.yaw_deg, repetition.yaw_deg),
        log_duration=_towards(pattern.log_duration, float(np.log(repetition.duration_s))),
        smoothness=_towards(pattern.smoothness, repetition.smoothness),
    )


def _towards(old: float, new: float) -> float:
    return old if np.isnan(new) else old + UPDATE_WEIGHT * (new - old)
