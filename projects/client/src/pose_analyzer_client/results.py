"""What callers get. Image coordinates are pixels of the upright image, x right and y down.

Angles are degrees. A number that is not known is NaN.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pose_analyzer_client import wire

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Names:
    """Names of the rows of keypoint and angle arrays, as the service tells them."""

    keypoints: tuple[str, ...]
    angles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Angle:
    """One joint angle."""

    value_deg: float
    sd_deg: float
    """Standard deviation."""
    trusted: bool
    """False where this view or the keypoints' confidence cannot show the angle."""


@dataclass(frozen=True, slots=True, eq=False)
class Angles:
    """All joint angles of one person."""

    names: tuple[str, ...]
    values_deg: NDArray[np.float64]
    """(12,)"""
    sd_deg: NDArray[np.float64]
    """(12,) standard deviations."""
    trusted: NDArray[np.bool_]
    """(12,)"""

    def __getitem__(self, name: str) -> Angle:
        """One angle by its name."""
        index = _index(name, self.names)
        return Angle(
            float(self.values_deg[index]), float(self.sd_deg[index]), bool(self.trusted[index])
        )

    @classmethod
    def of(cls, angles: wire.Angles, names: tuple[str, ...]) -> "Angles":
        """Put the service's lists into arrays."""
        return cls(
            names, _floats(angles.values_deg), _floats(angles.sd_deg), np.array(angles.trusted)
        )


@dataclass(frozen=True, slots=True)
class Repetition:
    """One completed repetition. Times are seconds on the stream's clock."""

    number: int
    """1-based."""
    start_s: float
    turn_s: float
    """When the extreme position was reached."""
    end_s: float
    eccentric_s: float
    """From leaving the start position to arriving at the extreme position."""
    hold_s: float
    """Time in the extreme position."""
    concentric_s: float
    """From leaving the extreme position to counting."""
    depth: float
    """Largest progress from the start (0) to the full (1) position; may exceed 1."""

    @classmethod
    def of(cls, told: wire.Repetition) -> "Repetition":
        """Copy the service's numbers, the unknown ones as NaN."""
        times = {name: _float(getattr(told, name)) for name in told.__struct_fields__[1:]}
        return cls(told.number, **times)


@dataclass(frozen=True, slots=True)
class Cue:
    """One thing to say to the person, once."""

    key: str
    """Such as ``correct.heels_lifting``, for who has texts of their own."""
    text: str
    kind: str
    """``correction`` or ``praise``."""
    fault: str | None
    time_s: float
    """On the stream's clock; the same cue has the same time in every result."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Why some points are missing; the service's docs/FORM.md tells the keys."""

    component: str
    points: float
    phase: str
    joint: str
    amount: float
    """What the repetition has more than the reference, in `unit`."""
    unit: str
    at_s: float
    text_key: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A named mistake."""

    name: str
    severity: float
    """0 just noticeable .. 1 clear."""
    joint: str
    side: str | None
    phase: str
    amount: float
    unit: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Form:
    """How one repetition was done."""

    repetition: int
    """1-based number."""
    score: float
    """0..100; NaN where there is nothing to compare with from here."""
    components: dict[str, float]
    reference: str | None
    mode: str | None
    """``personal`` or ``general``: what the score is relative to."""
    losses: tuple[Loss, ...]
    """The largest first."""
    faults: tuple[Fault, ...]
    """The most urgent first."""
    cannot_judge: dict[str, str]
    """What is not to be seen from here, with the reason."""
    anomaly: str | None
    """``normal``, ``anomalous`` or ``unsure``; None where the service cannot tell."""
    cue: Cue | None

    @classmethod
    def of(cls, told: wire.Form) -> "Form":
        """Copy what the service says, unknown numbers as NaN."""
        return cls(
            repetition=told.repetition,
            score=_float(told.score),
            components={name: _float(points) for name, points in told.components.items()},
            reference=told.reference,
            mode=told.mode,
            losses=tuple(Loss(**_known(loss)) for loss in told.losses),
            faults=tuple(Fault(**_known(fault)) for fault in told.faults),
            cannot_judge=told.cannot_judge,
            anomaly=told.anomaly,
            cue=None if told.cue is None else Cue(**_known(told.cue)),
        )


@dataclass(frozen=True, slots=True)
class FormNow:
    """How one frame compares with the reference, within the repetition under way."""

    phase: float
    """0 at the start of the repetition, 1 at its end."""
    score: float
    """0..100: what the repetition so far is worth, by its deviation; an estimate."""
    joint: str
    """What is off most in this frame, such as ``left_knee`` or ``left_knee_sideways``."""
    amount: float
    """What it has more than the reference, in `unit`."""
    unit: str
    """``deg`` or ``body_ratio``."""
    sd: float
    """The same in standard deviations of correct repetitions, without sign; worth showing from
    about 2; 6 at most."""

    @classmethod
    def of(cls, told: wire.FormNow) -> "FormNow":
        """Copy what the service says."""
        return cls(**_known(told))


def _known(told: wire.Loss | wire.Fault | wire.Cue | wire.FormNow) -> dict[str, Any]:
    """Members by name; numbers stay unknown as NaN."""
    texts = {"side", "fault"}
    values = {name: getattr(told, name) for name in told.__struct_fields__}
    return {
        name: NAN if value is None and name not in texts else value
        for name, value in values.items()
    }


@dataclass(frozen=True, slots=True, eq=False)
class DetectedPerson:
    """One person in one picture."""

    score: float
    """The detector's confidence, 0..1."""
    box_px: NDArray[np.float64]
    """(4,) x0, y0, x1, y1."""
    keypoints_px: NDArray[np.float64]
    """(17, 2) COCO keypoints."""
    confidences: NDArray[np.float64]
    """(17,) 0..1 for each keypoint."""
    keypoint_names: tuple[str, ...]
    angles: Angles
    """In the image plane."""
    angles_3d: Angles | None
    """In space; only MediaPipe gives them."""

    def angle(self, name: str) -> Angle:
        """One angle in the image plane by its name, such as ``left_knee``."""
        return self.angles[name]

    def keypoint_px(self, name: str) -> tuple[float, float]:
        """One keypoint by its name, such as ``left_wrist``: x, y."""
        x_px, y_px = self.keypoints_px[_index(name, self.keypoint_names)].tolist()
        return x_px, y_px

    @classmethod
    def of_detection(cls, person: wire.DetectedPerson) -> "DetectedPerson":
        """Put the service's named points and angles into arrays."""
        return DetectedPerson(
            score=_float(person.score),
            box_px=_floats(person.box_px),
            keypoints_px=_points([(point.x_px, point.y_px) for point in person.keypoints]),
            confidences=_floats([point.confidence for point in person.keypoints]),
            keypoint_names=tuple(point.name for point in person.keypoints),
            angles=_named(person.angles),
            angles_3d=None if person.angles_3d is None else _named(person.angles_3d),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Person(DetectedPerson):
    """One person in one frame of a stream, with what is known from the frames before."""

    track_id: int
    """1-based, stable for as long as the person is followed."""
    detected: bool
    """False: not found in this frame, and bridged from earlier ones."""
    keypoints_sd_px: NDArray[np.float64]
    """(17,) standard deviation of each coordinate."""
    flags: NDArray[np.uint8]
    """(17,) bits: 1 bridged, 2 left and right put back, 4 measurement rejected; 0 none."""
    view: str
    """``front``, ``three_quarter``, ``side`` or ``unknown``."""
    yaw_deg: float
    """0 = facing towards or away from the camera, 90 = seen from the side."""
    exercise: str | None
    """What is being counted; None while ``auto`` has not recognised one."""
    phase: str
    """``top``, ``eccentric``, ``bottom``, ``concentric`` or ``unknown``."""
    progress: float
    """0 at the start position, 1 at the full position of the exercise."""
    n_repetitions: int
    """Completed so far."""
    last_repetition: Repetition | None
    form: Form | None
    """What was said of the latest repetition that is over; None before."""
    form_now: FormNow | None
    """Of the repetition under way; None between two, and where nothing can be judged."""

    @classmethod
    def of(cls, person: wire.Person, names: Names) -> "Person":
        """Put the service's lists into arrays."""
        angles_3d, last = person.angles_3d, person.last_repetition
        return cls(
            score=_float(person.score),
            box_px=_floats(person.box_px),
            keypoints_px=_points(person.keypoints_px),
            confidences=_floats(person.confidences),
            keypoint_names=names.keypoints,
            angles=Angles.of(person.angles, names.angles),
            angles_3d=None if angles_3d is None else Angles.of(angles_3d, names.angles),
            track_id=person.track_id,
            detected=person.detected,
            keypoints_sd_px=_floats(person.keypoints_sd_px),
            flags=np.array(person.flags, dtype=np.uint8),
            view=person.view,
            yaw_deg=_float(person.yaw_deg),
            exercise=person.exercise,
            phase=person.phase,
            progress=_float(person.progress),
            n_repetitions=person.n_repetitions,
            last_repetition=None if last is None else Repetition.of(last),
            form=None if person.form is None else Form.of(person.form),
            form_now=None if person.form_now is None else FormNow.of(person.form_now),
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went between the service's receiving a frame and answering it."""

    queue_s: float
    decode_s: float
    infer_s: float
    postprocess_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The answer to one frame."""

    frame: int
    """0-based number of the picture among those the stream was sent."""
    captured_s: float
    """Time of the frame on the stream's clock, which starts at 0 with its first frame."""
    received_s: float
    """Seconds since the stream was started, by the service's clock."""
    answered_s: float
    width_px: int
    height_px: int
    people: tuple[Person, ...]
    timing: Timing
    dropped: Mapping[str, int]
    """Frames the service dropped since the answer before, by cause."""
    round_trip_s: float = NAN
    """From giving the frame to the socket to having its answer; NaN where it was not sent here."""
    image: Any = field(default=None, repr=False)
    """The caller's own image, where it was asked to be kept."""

    @classmethod
    def of(cls, told: wire.Result, names: Names, round_trip_s: float = NAN) -> "Result":
        """Put the service's answer into arrays."""
        timing = told.timing
        return cls(
            frame=told.frame,
            captured_s=told.captured_s,
            received_s=told.received_s,
            answered_s=told.answered_s,
            width_px=told.width_px,
            height_px=told.height_px,
            people=tuple(Person.of(person, names) for person in told.people),
            timing=Timing(timing.queue_s, timing.decode_s, timing.infer_s, timing.postprocess_s),
            dropped=told.dropped,
            round_trip_s=round_trip_s,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """The answer to one image."""

    detector: str
    """The model that was used."""
    device: str
    width_px: int
    height_px: int
    people: tuple[DetectedPerson, ...]
    """Best first."""

    @classmethod
    def of(cls, told: wire.Detection) -> "Detection":
        """Put the service's answer into arrays."""
        people = tuple(DetectedPerson.of_detection(person) for person in told.people)
        return cls(told.detector, told.device, told.width_px, told.height_px, people)


@dataclass(frozen=True, slots=True, eq=False)
class ResultPage:
    """Some recent answers of a stream, oldest first."""

    results: tuple[Result, ...]
    next: int
    """To be given as `since` for the answers after these."""


def _index(name: str, names: tuple[str, ...]) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise KeyError(f"{name!r} is none of {', '.join(names)}") from None


def _float(value: float | None) -> float:
    return NAN if value is None else value


def _floats(values: "wire.Numbers | tuple[wire.Number, ...]") -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)  # None becomes NaN


def _points(points: list[tuple[wire.Number, wire.Number]]) -> NDArray[np.float64]:
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _named(angles: list[wire.NamedAngle]) -> Angles:
    return Angles(
        tuple(angle.name for angle in angles),
        _floats([angle.value_deg for angle in angles]),
        _floats([angle.sd_deg for angle in angles]),
        np.array([angle.trusted for angle in angles], dtype=np.bool_),
    )
