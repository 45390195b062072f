"""The detector of unusual repetitions, with what it has seen of one person and exercise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from pose_analyzer.form_anomaly_detector import (
    MIN_REFERENCES,
    FormModel,
    References,
    judge,
    learn_references,
)
from pose_analyzer.form_types import Anomaly, Verdict
from pose_analyzer.repetition_features import RepetitionFeatures

_VERDICTS: Final = {
    "normal": Verdict.NORMAL,
    "faulty": Verdict.ANOMALOUS,
    "unsure": Verdict.UNSURE,
}


@dataclass(frozen=True, slots=True, eq=False)
class AnomalyState:
    """One person's own good repetitions, by view."""

    seen: Mapping[str, tuple[RepetitionFeatures, ...]] = field(default_factory=dict)
    """The first few, and the newest of those since."""
    references: Mapping[str, References] = field(default_factory=dict)
    """Once there are enough."""


def judge_anomaly(
    state: AnomalyState, view: str, features: RepetitionFeatures, model: FormModel
) -> Anomaly | None:
    """Say whether a repetition is like correct ones; None where the model has no say.

    Parameters
    ----------
    state
        Of this person and exercise.
    view
        Of the repetition, a value of `types.View`.
    features
        Of the repetition.
    model
        Of the exercise and view.
    """
    found = judge(features, state.references.get(view), model)
    if found.mode == "none":
        return None
    decision = model.personal.decision
    if found.mode == "general" and model.general is not None:
        decision = model.general.decision
    return Anomaly(
        _VERDICTS[found.verdict],
        found.score,
        decision.faulty_above,
        "personal" if found.mode == "personal" else "general",
    )


def remember(
    state: AnomalyState, view: str, features: RepetitionFeatures, model: FormModel
) -> AnomalyState:
    """Learn from one good repetition.

    Once there is a baseline, only what it calls normal joins it: slow change is followed, a fault
    is not learned.
    """
    seen = (*state.seen.get(view, ()), features)
    known = state.references.get(view)
    if known is None:
        seen = seen[-MIN_REFERENCES:]
    elif judge(features, known, model).verdict != "normal":
        return state
    seen = tuple(newest(seen))
    state = replace(state, seen={**state.seen, view: seen})
    references = learn_references(seen, model)
    if references is None:
        return state
    return replace(state, references={**state.references, view: references})


MAX_REFERENCES: Final = 8
_Item = TypeVar("_Item")


def newest(seen: Sequence[_Item]) -> list[_Item]:
    """What a baseline keeps: what it began with, and the newest since, `MAX_REFERENCES` in all.

    The beginning stays, so that it cannot drift into a fault by small steps.
    """
    begun, since = seen[:MIN_REFERENCES], seen[MIN_REFERENCES:]
    return [*begun, *since[-(MAX_REFERENCES - MIN_REFERENCES) :]]
