"""Form while a repetition is under way: where in the movement a frame is, and what is off now.

Angles only, which one frame shows by itself; the score of the finished repetition says the rest.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Float

from pose_analyzer.biomechanics import joint_angles_2d
from pose_analyzer.form_references import FormReference, Pattern
from pose_analyzer.phase_alignment import PhaseState, advance
from pose_analyzer.repetition_features import SIGNAL_NAMES
from pose_analyzer.skeletons import ANGLE_NAMES
from pose_analyzer.types import PersonFrame

_JOINTS: Final = tuple(name for name in ANGLE_NAMES if f"{name}_deg" in SIGNAL_NAMES)
_COLUMNS: Final = np.array([SIGNAL_NAMES.index(f"{name}_deg") for name in _JOINTS])
_ANGLES: Final = np.array([ANGLE_NAMES.index(name) for name in _JOINTS])
_OTHER_SIDE: Final = np.array(
    [
        _JOINTS.index(
            name.replace("left", "right") if "left" in name else name.replace("right", "left")
        )
        for name in _JOINTS
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class LiveFormState:
    """What is remembered within a repetition; a new one starts with ``LiveFormState()``."""

    plain: PhaseState = field(default_factory=PhaseState)
    mirrored: PhaseState = field(default_factory=PhaseState)


@dataclass(frozen=True, slots=True)
class LiveForm:
    """One frame against the reference."""

    phase: float
    """0 at the start of the repetition, 1 at its end."""
    joint: str
    """The angle that is off most, of `skeletons.ANGLE_NAMES`."""
    difference_deg: float
    """What it has more than the reference."""
    sd: float
    """The same in standard deviations of correct repetitions, without sign."""


def follow_form(
    reference: FormReference, state: LiveFormState, frame: PersonFrame
) -> tuple[LiveFormState, LiveForm | None]:
    """Place one frame in the reference and name what is off most.

    Parameters
    ----------
    reference
        Of the exercise under way.
    state
        ``LiveFormState()`` at the start of every repetition, then what the last call returned.
    frame
        The next frame of the same person.

    Returns
    -------
    tuple of LiveFormState and LiveForm or None
        None if no trusted angle is in the reference for this view.
    """
    pattern = reference.pattern_at(frame.view.yaw_deg)
    if pattern is None:
        return state, None
    values_deg = joint_angles_2d(frame.keypoints_px)[_ANGLES]
    wanted = np.array([f"{name}_deg" in reference.signals for name in _JOINTS])
    known = frame.angles.trusted[_ANGLES] & wanted
    columns = np.arange(len(_JOINTS))
    found = []
    states = []
    for previous, order in ((state.plain, columns), (state.mirrored, _OTHER_SIDE)):
        scale = _scale(pattern)
        mean = pattern.mean[:, _COLUMNS]
        following, row = advance(mean / scale, previous, values_deg[order] / scale, known[order])
        states.append(following)
        if row is not None and following.costs is not None:
            differences_deg = values_deg[order] - mean[row]
            off = np.where(known[order], np.abs(differences_deg) / scale, -1.0)
            worst = int(np.argmax(off))
            form = LiveForm(
                phase=row / (len(mean) - 1),
                joint=_JOINTS[int(order[worst])],
                difference_deg=float(differences_deg[worst]),
                sd=float(off[worst]),
            )
            found.append((float(following.costs.min()), form))
    following_state = LiveFormState(*states)
    return following_state, min(found, key=lambda one: one[0])[1] if found else None


def _scale(pattern: Pattern) -> Float[np.ndarray, "8"]:
    """Standard deviation of each joint's angle, whatever the phase."""
    courses = (pattern.scatter.courses[:, _COLUMNS] ** 2).mean(axis=0)
    scale: Float[np.ndarray, "8"] = np.sqrt(courses + pattern.scatter.offsets[_COLUMNS] ** 2)
    return scale
