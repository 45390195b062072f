"""The frozen vocabulary of form: tracks of repetitions, scores with reasons, faults, cues.

Times are seconds of the source; angles are degrees. Texts for people are made elsewhere: what
stands here names things, so that any language can say them.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float

from pose_analyzer.types import Phase, Repetition, View


@dataclass(frozen=True, slots=True, eq=False)
class RepetitionTrack:
    """The frames of one counted repetition, and a little before and after it."""

    track_id: int
    repetition: Repetition
    view: View
    """The most frequent one within the repetition."""
    yaw_deg: float
    """Median; 0 facing the camera or turned away, 90 seen from the side; NaN unknown."""
    times_s: Float[np.ndarray, "frames"]
    """Increasing."""
    keypoints_px: Float[np.ndarray, "frames 17 2"]
    """Smoothed COCO-17, x right and y down; NaN where unknown."""
    sd_px: Float[np.ndarray, "frames 17"]
    confidences: Float[np.ndarray, "frames 17"]
    angles_deg: Float[np.ndarray, "frames 12"]
    """Columns as in `skeletons.ANGLE_NAMES`; NaN where unknown."""
    angles_sd_deg: Float[np.ndarray, "frames 12"]
    angles_trusted: Bool[np.ndarray, "frames 12"]
    progress: Float[np.ndarray, "frames"]
    """0 at the start position, 1 at the full one; NaN unknown."""
    phases: tuple[Phase, ...]
    """One per frame."""


class Component(StrEnum):
    """What a score is made of."""

    DEVIATION = "deviation"
    """How far joints are from where the reference has them at the same moment of the movement."""
    SYMMETRY = "symmetry"
    """How much more left and right differ than they do in the reference."""
    SMOOTHNESS = "smoothness"
    RANGE = "range"
    """How much of the reference's range of motion is covered."""
    TEMPO = "tempo"


Unit = Literal["deg", "body_ratio", "ratio", "s"]
"""``body_ratio``: lengths of trunk, thigh and shank together; ``ratio``: of the reference's."""


@dataclass(frozen=True, slots=True)
class PointLoss:
    """Why some points of the total are missing."""

    component: Component
    points: float
    """Of the total's 100; the losses of one score add up to what the total lacks."""
    repetition: int
    """1-based number."""
    phase: Phase
    """Where in the movement it is worst."""
    joint: str
    """An angle of `skeletons.ANGLE_NAMES`; a place such as ``left_knee_sideways`` or
    ``pelvis_height``; ``body`` where no single joint is meant."""
    amount: float
    """Signed, in `unit`: what the repetition has more than the reference, at the worst moment."""
    unit: Unit
    at_s: float
    """The worst moment."""
    from_s: float
    to_s: float
    """The stretch around it that costs points."""
    text_key: str
    """Names the sentence to say, such as ``deviation.more`` or ``range.less``."""
    row: int
    """Moment of the reference that the worst one was compared with, of 25."""


class Reason(StrEnum):
    """Why something was not judged."""

    VIEW = "view"
    """The camera does not stand where it would show."""
    CONFIDENCE = "confidence"
    """The keypoints are hidden or uncertain."""
    NO_REFERENCE = "no_reference"
    """Nothing to compare with, at all or from this view."""


@dataclass(frozen=True, slots=True)
class CannotJudge:
    """What cost nothing because it cannot be seen from here."""

    what: str
    """An angle, joint, component or fault."""
    reason: Reason


@dataclass(frozen=True, slots=True)
class ReferenceUsed:
    """What a repetition was compared with."""

    name: str
    mode: Literal["personal", "general"]
    """Personal: made of this person's own repetitions."""
    view: View
    course: Float[np.ndarray, "25 39"] | None = field(default=None, compare=False, repr=False)
    """How the repetition should have gone; columns as in `repetition_features.SIGNAL_NAMES`."""
    signals: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Which of them were compared."""


@dataclass(frozen=True, slots=True)
class FormScore:
    """How well one repetition, or a set of them, was done."""

    total: float | None
    """0..100; None if nothing could be judged."""
    components: dict[Component, float | None]
    """Each 0..100; None where it cannot be judged from here."""
    losses: tuple[PointLoss, ...]
    """Most points first."""
    cannot_judge: tuple[CannotJudge, ...]
    reference: ReferenceUsed | None
    """None without a reference: only what needs none is scored."""


@dataclass(frozen=True, slots=True)
class FormChoice:
    """What somebody wants form to be judged by."""

    reference: str | None = None
    """Name of a reference; None: the general one, until the person's own takes its place."""
    language: str = "en"
    """In which the coach speaks."""
    documents: tuple[str, ...] = ()
    """References that are in no file, as `reference_files.format_reference` writes them."""
    own: tuple[str, ...] = ()
    """The same of this person's earlier repetitions: where learning their own way begins."""


NO_CHOICE: Final = FormChoice()


Side = Literal["left", "right", "both"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A named mistake that trusted measurements show."""

    name: str
    """As in the fault's rule file."""
    severity: float
    """0 just noticeable .. 1 clear."""
    joint: str
    side: Side | None
    phase: Phase
    repetition: int
    amount: float
    """In `unit`, at the worst moment."""
    unit: Unit
    at_s: float


@dataclass(frozen=True, slots=True)
class Cue:
    """One thing to say to the person now."""

    key: str
    """Of the texts in config/coaching."""
    text: str
    kind: Literal["correction", "praise"]
    fault: str | None
    """Name of the fault it is about."""
    repetition: int
    time_s: float


class Verdict(StrEnum):
    """Whether a repetition is like correct ones."""

    NORMAL = "normal"
    ANOMALOUS = "anomalous"
    UNSURE = "unsure"
    """Too close to the threshold to say, or not enough seen."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What the detector of unusual repetitions says."""

    verdict: Verdict
    score: float
    """Higher is less usual; NaN if not measured."""
    threshold: float
    mode: Literal["personal", "general"]


@dataclass(frozen=True, slots=True)
class FormUpdate:
    """What one finished repetition adds."""

    track_id: int
    repetition: int
    score: FormScore | None
    faults: tuple[Fault, ...]
    cannot_judge: tuple[CannotJudge, ...]
    """Faults that could not be looked for from here."""
    anomaly: Anomaly | None
    cue: Cue | None
    exercise: str = ""
    yaw_deg: float = float("nan")
    """From where it was seen; NaN unknown."""
    accepted: bool = False
    """Good enough to learn the person's own way from."""
