"""One thing to say at a time: what is most urgent, not too often, and praise once it is mended.

A fault is mentioned only once it has come back: what shows in a single repetition may be a
misreading, and hardly anybody can act on more than one remark at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from pose_analyzer.form_faults import FaultFindings
from pose_analyzer.form_types import Cue, Fault


@dataclass(frozen=True, slots=True)
class CoachConfig:
    """How talkative the coach is."""

    insist_after: int = 2
    """A fault must be there in so many of the last `window` repetitions that could show it."""
    window: int = 3
    mended_after: int = 2
    """Praise comes after so many repetitions without the fault that was mentioned."""
    cooldown_s: float = 5.0
    """Silence after a cue."""
    repeat_s: float = 20.0
    """The same correction is not given again before."""
    max_per_minute: int = 4


@dataclass(frozen=True, slots=True)
class CoachTexts:
    """What is said, in one language."""

    corrections: Mapping[str, str]
    """By fault; ``{side}`` stands for the side."""
    praise: Mapping[str, str]
    """By fault; ``mended`` for all others."""
    sides: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CoachState:
    """What the coach remembers of one person and exercise."""

    history: tuple[tuple[str, tuple[bool, ...]], ...] = ()
    """Fault, and whether it was there in the last repetitions that could show it."""
    said: tuple[tuple[str, float], ...] = ()
    """Faults mentioned and not yet mended, with the time of the latest mention."""
    cues_s: tuple[float, ...] = ()
    """When something was said within the last minute."""


_MINUTE_S: Final = 60.0
_MENDED: Final = "mended"


def advise(
    config: CoachConfig,
    texts: CoachTexts,
    state: CoachState,
    findings: FaultFindings,
    repetition: int,
    time_s: float,
) -> tuple[CoachState, Cue | None]:
    """What to say after one repetition, if anything.

    Parameters
    ----------
    config, texts
        The same at every repetition.
    state
        ``CoachState()`` first, then what the last call returned.
    findings
        Of the repetition that has just ended.
    repetition
        Its number.
    time_s
        Now, on the clock of the source.
    """
    history = dict(state.history)
    present = {fault.name: fault for fault in findings.faults}
    for name in (*present, *findings.absent):
        seen = (*history.get(name, ()), name in present)
        history[name] = seen[-max(config.window, config.mended_after) :]
    recent_s = tuple(at_s for at_s in state.cues_s if time_s - at_s < _MINUTE_S)
    state = replace(state, history=tuple(history.items()), cues_s=recent_s)
    if len(recent_s) >= config.max_per_minute or (
        recent_s and time_s - recent_s[-1] < config.cooldown_s
    ):
        return state, None
    said = dict(state.said)
    for fault in findings.faults:
        insists = sum(history[fault.name][-config.window :]) >= config.insist_after
        is_new = time_s - said.get(fault.name, float("-inf")) >= config.repeat_s
        if insists and is_new and fault.name in texts.corrections:
            said[fault.name] = time_s
            return _say(state, said, _correction(texts, fault, repetition, time_s))
    for name in said:
        free = history.get(name, ())[-config.mended_after :]
        if len(free) == config.mended_after and not any(free):
            del said[name]
            text = texts.praise.get(name, texts.praise[_MENDED])
            cue = Cue(f"praise.{name}", text, "praise", name, repetition, time_s)
            return _say(state, said, cue)
    return state, None


def _say(state: CoachState, said: dict[str, float], cue: Cue) -> tuple[CoachState, Cue]:
    return replace(state, said=tuple(said.items()), cues_s=(*state.cues_s, cue.time_s)), cue


def _correction(texts: CoachTexts, fault: Fault, repetition: int, time_s: float) -> Cue:
    side = texts.sides.get(fault.side or "", "")
    text = texts.corrections[fault.name].replace("{side}", side)
    text = " ".join(text.split())
    return Cue(f"correct.{fault.name}", text, "correction", fault.name, repetition, time_s)
