"""What the routes about form take and answer."""

from typing import Annotated
from uuid import UUID

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pose_analyzer import wire
from pose_analyzer.api.schemas import Answer, MaybeFloat
from pose_analyzer.exercises import AUTO, Exercise
from pose_analyzer.form_references import FormReference
from pose_analyzer.form_scorer import score_set
from pose_analyzer.form_sequences import JudgedPerson, KeypointSequence
from pose_analyzer.form_types import FormUpdate
from pose_analyzer.reference_files import NAME_PATTERN

MAX_FRAMES = 9_000
"""Five minutes at 30 frames a second."""
# Further away nothing is seen; squares stay far from overflowing.
_Coordinate = Annotated[float, Field(ge=-1e6, le=1e6)]
_Point = tuple[_Coordinate | None, _Coordinate | None, Annotated[float, Field(ge=0.0, le=1.0)]]


class FormQuestion(BaseModel):
    """Keypoints of one person over time, and what to judge them by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exercise: str = AUTO
    """Name of an exercise, or ``auto``."""
    reference: str | None = Field(None, max_length=64)
    """What form is compared with; by default the general reference of the exercise."""
    language: str | None = Field(None, max_length=8)
    """Of the cues, such as ``en``."""
    fps: float | None = Field(None, gt=0.0, le=1000.0)
    """Of the frames, if they come evenly; otherwise give `times_s`."""
    times_s: (
        Annotated[list[Annotated[float, Field(ge=-1e6, le=1e6)]], Field(max_length=MAX_FRAMES)]
        | None
    ) = None
    frames: list[Annotated[list[_Point], Field(min_length=17, max_length=17)]] = Field(
        min_length=1, max_length=MAX_FRAMES
    )
    """Of each frame the 17 COCO keypoints: x and y in pixels (y down) and confidence."""

    @model_validator(mode="after")
    def _timed(self) -> "FormQuestion":
        if (self.fps is None) == (self.times_s is None):
            raise ValueError("give either fps or times_s")
        if self.times_s is not None:
            if len(self.times_s) != len(self.frames):
                raise ValueError("give a time for each frame")
            if np.any(np.diff(self.times_s) <= 0.0):
                raise ValueError("times_s must increase")
        return self

    def sequence(self) -> KeypointSequence:
        """The same as arrays."""
        points = np.array(self.frames, dtype=np.float64)
        times_s = (
            np.arange(len(points)) / self.fps if self.fps is not None else np.array(self.times_s)
        )
        return KeypointSequence(times_s, points[..., :2], points[..., 2])


class Teaching(FormQuestion):
    """Keypoints of good repetitions only, and what the reference made of them is to be called."""

    name: str = Field(pattern=NAME_PATTERN)
    for_everyone: bool = False
    """Others are scored with it too, who are built otherwise: tolerances are wider."""
    athlete_id: UUID | None = None
    """Who showed them: their sessions are judged by it from now on."""


class FormLoss(Answer):
    """Why some points are missing."""

    component: str
    points: float
    phase: str
    joint: str
    amount: float
    unit: str
    at_s: float
    text_key: str


class FormFault(Answer):
    """A named mistake."""

    name: str
    severity: float
    joint: str
    side: str | None
    phase: str
    amount: float
    unit: str
    at_s: float


class FormCue(Answer):
    """One thing to say to the person."""

    key: str
    text: str
    kind: str
    fault: str | None
    time_s: float


class RepetitionForm(Answer):
    """How one repetition was done; as `Form` of the stream's messages."""

    repetition: int
    score: MaybeFloat
    components: dict[str, MaybeFloat]
    reference: str | None
    mode: str | None
    losses: list[FormLoss]
    faults: list[FormFault]
    cannot_judge: dict[str, str]
    anomaly: str | None
    cue: FormCue | None

    @classmethod
    def of(cls, form: FormUpdate) -> "RepetitionForm":
        """Put what was judged into words."""
        return cls.model_validate(msgspec.to_builtins(wire.Form.of(form)))


class SetForm(Answer):
    """Answer of ``POST /analyze-form``."""

    exercise: str | None
    """Null: none was recognised."""
    n_repetitions: int
    """Counted; those that were not seen well enough are not judged."""
    score: MaybeFloat
    """Mean over the repetitions."""
    components: dict[str, MaybeFloat]
    repetitions: list[RepetitionForm]
    problems: list[str]
    """What a reader must know."""

    @classmethod
    def of(cls, judged: JudgedPerson | None) -> "SetForm":
        """Put it into words."""
        if judged is None:
            return cls(
                exercise=None,
                n_repetitions=0,
                score=None,
                components={},
                repetitions=[],
                problems=["Nobody was found."],
            )
        whole = score_set([form.score for form in judged.forms if form.score is not None])
        problems = []
        if not judged.repetitions:
            problems.append("No repetition was counted.")
        elif whole.total is None:
            problems.append("There is no reference for this exercise and view.")
        return cls(
            exercise=judged.exercise,
            n_repetitions=len(judged.repetitions),
            score=whole.total,
            components={c.value: points for c, points in whole.components.items()},
            repetitions=[RepetitionForm.of(form) for form in judged.forms],
            problems=problems,
        )


class ReferenceInfo(Answer):
    """One reference."""

    name: str
    exercise: str
    mode: str
    """``personal`` or ``general``."""
    views: list[str]
    n_repetitions: int
    provenance: dict[str, str]
    athlete_id: UUID | None
    """Whose it is, if it is somebody's."""

    @classmethod
    def of(cls, reference: FormReference, athlete_id: UUID | None = None) -> "ReferenceInfo":
        """Tell what it is, without its numbers."""
        return cls(
            name=reference.name,
            exercise=reference.exercise,
            mode=reference.mode,
            views=[pattern.view.value for pattern in reference.patterns],
            n_repetitions=sum(pattern.n_repetitions for pattern in reference.patterns),
            provenance=dict(reference.provenance),
            athlete_id=athlete_id,
        )


class ExerciseInfo(Answer):
    """One exercise."""

    name: str
    title: str
    description: str
    main_angles: list[str]
    references: list[str]
    """What it can be compared with."""
    faults: dict[str, str]
    """What is looked for: name and title."""

    @classmethod
    def of(
        cls, exercise: Exercise, references: list[str], faults: dict[str, str]
    ) -> "ExerciseInfo":
        """Tell what there is."""
        return cls(
            name=exercise.name,
            title=exercise.title,
            description=exercise.description,
            main_angles=list(exercise.main_angles),
            references=references,
            faults=faults,
        )


class ExerciseList(Answer):
    """Answer of ``GET /exercises``."""

    exercises: list[ExerciseInfo]
    languages: list[str]
    """In which the coach speaks."""


class ReferenceList(Answer):
    """Answer of ``GET /references``."""

    references: list[ReferenceInfo]
