"""Recorded people of UI-PRMD as our cameras and detectors would show them.

Movements in space become keypoints in the image of an upright camera, with errors that behave as
keypoint_noise.md found: most of an error stays, or comes back with the pose, in every repetition.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from angle_accuracy import STATURE_PX, project

from pose_analyzer.keypoint_filters import KalmanFilter
from pose_analyzer.repetition_features import (
    RepetitionFeatures,
    measure_repetition,
    mirror,
)
from pose_analyzer.skeletons import Coco

Array = np.ndarray

# Of the greatest speed, of a recording's first and last moment; of the greatest displacement, of
# its last pose. Where more, the recording begins or ends within the movement.
MAX_START_SPEED, MAX_END_SPEED, MAX_OPEN = 0.4, 0.6, 0.6
# Over which share of the recording speed is measured, and how many frames make its last pose.
SPEED_RATIO, N_LAST = 0.06, 3
VIEWS = {"front": 0.0, "three_quarter": 45.0, "side": 90.0}
FRAME_STEP, FRAME_S = 2, 0.04
WARM_UP_FRAMES = 12
CONFIDENCE = 0.9
N_WAVES = 48


@dataclass(frozen=True)
class KeypointNoise:
    """Sizes of a keypoint's errors per coordinate, fractions of stature."""

    constant: float
    """Stays as long as a person is seen from one place."""
    pose: float
    """A smooth function of the pose, the same whenever the pose comes back."""
    pose_length: float
    """How far apart poses are whose errors are unlike: distance of the body's keypoints."""
    repetition: float
    """Drawn anew for every repetition."""
    wander: float
    """Wanders within a repetition, whatever the pose."""
    wander_s: float
    frame: float
    joint_spread: float = 0.6
    """Sd of the logarithm of a joint's sizes: some joints of a person are seen far worse."""
    tail_df: float = 8.0
    """Degrees of freedom of Student's t, scaled to the sizes above, of the random parts."""


MEASURED = KeypointNoise(
    constant=0.010, pose=0.016, pose_length=0.25, repetition=0.002, wander=0.007, wander_s=0.08,
    frame=0.005,
)  # fmt: skip
"""So chosen that two made-up detectors differ as two real ones do (keypoint_noise.md)."""


@dataclass(frozen=True)
class Session:
    """What a detector gets wrong of one person from one place, always alike."""

    constant: Array
    """(1, 17, 2), fractions of stature."""
    waves: Array
    """(24, n): directions in the space of poses."""
    phases: Array
    weights: Array
    """(n, 34)."""
    scale: Array
    """(1, 17, 1): how much worse than others each joint is seen; mean square 1."""


def start_session(noise: KeypointNoise, rng: np.random.Generator) -> Session:
    """Random Fourier features of a Gaussian process over poses (Rahimi & Recht 2007).

    Its covariance is Matern's of order 3/2, whose spectrum is Student's t of three degrees of
    freedom (Rasmussen & Williams 2006, section 4.2.1).
    """
    scale = np.exp(rng.normal(-(noise.joint_spread**2), noise.joint_spread, (1, 17, 1)))
    stretch = np.sqrt(3.0 / rng.chisquare(3.0, N_WAVES))
    return Session(
        constant=noise.constant * rng.normal(size=(1, 17, 2)),
        waves=rng.normal(size=(24, N_WAVES)) * stretch / noise.pose_length,
        phases=rng.uniform(0.0, 2.0 * np.pi, N_WAVES),
        weights=noise.pose * np.sqrt(2.0 / N_WAVES) * rng.normal(size=(N_WAVES, 34)),
        scale=scale,
    )


def place_of(keypoints_px: Array) -> Array:
    """(frames, 24): keypoints of the body from the middle of the hips, fractions of stature."""
    body = keypoints_px[:, Coco.LEFT_SHOULDER :]
    hips = keypoints_px[:, [Coco.LEFT_HIP, Coco.RIGHT_HIP]].mean(axis=1, keepdims=True)
    placed: Array = ((body - hips) / STATURE_PX).reshape(len(keypoints_px), -1)
    return placed


def heavy(rng: np.random.Generator, df: float, shape: tuple[int, ...]) -> Array:
    """Student's t of unit variance."""
    drawn: Array = rng.standard_t(df, shape) * np.sqrt((df - 2.0) / df)
    return drawn


def wandering(rng: np.random.Generator, noise: KeypointNoise, n_frames: int) -> Array:
    """First-order autoregressive, started in its stationary state."""
    keep = np.exp(-FRAME_S / noise.wander_s)
    steps = heavy(rng, noise.tail_df, (n_frames, 17, 2)) * noise.wander
    steps[1:] *= np.sqrt(1.0 - keep**2)
    for index in range(1, n_frames):
        steps[index] += keep * steps[index - 1]
    return steps


def errors_px(
    clean_px: Array, session: Session, noise: KeypointNoise, rng: np.random.Generator
) -> Array:
    """What the detector adds to the keypoints of one repetition."""
    n = len(clean_px)
    waves = np.cos(place_of(clean_px) @ session.waves + session.phases)
    with_pose = (waves @ session.weights).reshape(n, 17, 2)
    repetition = noise.repetition * heavy(rng, noise.tail_df, (1, 17, 2))
    frame = noise.frame * heavy(rng, noise.tail_df, (n, 17, 2))
    changing = with_pose + repetition + wandering(rng, noise, n) + frame
    total: Array = STATURE_PX * (session.constant + session.scale * changing)
    return total


def follow(keypoints_px: Array) -> RepetitionFeatures:
    """Smooth as the product does, frame by frame, and measure.

    The person was seen before the repetition: its first frames, reversed, stand for that time.
    """
    n_before = WARM_UP_FRAMES
    smoother = KalmanFilter()
    state = smoother.initial_state()
    confidences = np.full(17, CONFIDENCE)
    shown = []
    for index, seen in enumerate(keypoints_px):
        state, smooth = smoother.step(state, index * FRAME_S, seen, confidences)
        shown.append(smooth.keypoints_px)
    kept = np.array(shown[n_before:])
    times_s = np.arange(len(kept)) * FRAME_S
    return measure_repetition(times_s, kept, np.full(kept.shape[:2], CONFIDENCE))


def with_run_up(keypoints_px: Array) -> Array:
    before = keypoints_px[1 : WARM_UP_FRAMES + 1][::-1]
    missing = WARM_UP_FRAMES - len(before)
    return np.concatenate([np.repeat(before[:1], missing, axis=0), before, keypoints_px])


@dataclass(frozen=True)
class Repetitions:
    """All repetitions with one draw of keypoint errors; first axis: repetition in a view."""

    movement: Array
    subject: Array
    view: Array
    faulty: Array
    trajectory: Array
    """(n, 50, 39) as `repetition_features` gives it."""
    mirrored: Array
    summary: Array


def observe(
    recorded: Mapping[str, Array],
    noise: KeypointNoise,
    seed: int,
    *,
    turn_deg: float = 0.0,
    views: Mapping[str, float] = VIEWS,
) -> Repetitions:
    """Project and measure; the camera stands left of half of the people, right of the others.

    `turn_deg` is the sd by which a person is turned from where the camera should stand.
    """
    rng = np.random.default_rng(seed)
    subjects = sorted({key.split("/")[1] for key in recorded})
    sessions = {(s, v): start_session(noise, rng) for s in subjects for v in views}
    turns_deg = {key: turn_deg * rng.normal() for key in sessions}
    labels, found = [], []
    for key, points in recorded.items():
        movement, subject, _, form = key.split("/")
        points_mm = points[::FRAME_STEP].astype(np.float64)
        for view, yaw_deg in views.items():
            side = 1.0 if subjects.index(subject) % 2 else -1.0
            place = subject, view
            clean = with_run_up(project(points_mm, side * yaw_deg + turns_deg[place]))
            found.append(follow(clean + errors_px(clean, sessions[place], noise, rng)))
            labels.append((movement, subject, view, form == "incorrect"))
    movement, subject, view, faulty = (np.array(column) for column in zip(*labels, strict=True))
    other = [mirror(features) for features in found]
    return Repetitions(
        movement, subject, view, faulty,
        np.stack([f.trajectory for f in found]),
        np.stack([f.trajectory for f in other]),
        np.stack([f.summary for f in found]),
    )  # fmt: skip


def is_whole(points_mm: Array) -> bool:
    """Whether a recorded repetition (frames, 17, 3) begins and ends at rest, in about one pose.

    Said without its label, and without keypoint errors.
    """
    step = max(3, int(SPEED_RATIO * len(points_mm)))
    points_mm = points_mm.astype(np.float64)

    def apart(one: Array, other: Array) -> Array:
        distances: Array = np.sqrt(np.nanmean(((one - other) ** 2).sum(axis=2), axis=1))
        return distances

    speed = apart(points_mm[step:], points_mm[:-step])
    away = apart(points_mm, points_mm[:1])
    return bool(
        speed[0] <= MAX_START_SPEED * speed.max()
        and speed[-1] <= MAX_END_SPEED * speed.max()
        and away[-N_LAST:].mean() <= MAX_OPEN * away.max()
    )


Whole = Mapping[tuple[str, str], Array]
"""Which repetitions of a movement and person are whole, in their order."""


def whole_repetitions(recorded: Mapping[str, Array]) -> Whole:
    """See `is_whole`."""
    found: dict[tuple[str, str], list[bool]] = {}
    for key, points_mm in recorded.items():
        movement, subject, _, _ = key.split("/")
        found.setdefault((movement, subject), []).append(is_whole(points_mm))
    return {name: np.array(whole) for name, whole in found.items()}


@dataclass(frozen=True)
class Draw:
    """One way that all repetitions may have been seen."""

    name: str
    noise: KeypointNoise
    seed: int
    turn_deg: float = 0.0


def read_recorded(shared_data: Path) -> dict[str, Array]:
    with np.load(shared_data / "datasets" / "ui_prmd" / "coco17_3d_50hz.npz") as archive:
        return dict(archive)


def kept_draw(recorded: Mapping[str, Array], draw: Draw, cache: Path | None) -> Repetitions:
    """Observe, or read what an earlier run observed."""
    path = cache / f"{draw.name}.npz" if cache else None
    if path and path.exists():
        with np.load(path) as archive:
            return Repetitions(**{name: archive[name] for name in archive})
    data = observe(recorded, draw.noise, draw.seed, turn_deg=draw.turn_deg)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **vars(data))
    return data
