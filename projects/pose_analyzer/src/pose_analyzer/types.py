"""The frozen vocabulary every layer speaks: frames, poses, angles, repetitions.

Image coordinates are pixels of the original image, x right and y down, origin at the top left.
Joint angles are degrees. A value that is not known is NaN; its mask or `trusted` flag is False.
"""

from dataclasses import dataclass
from enum import IntFlag, StrEnum

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What is known of a source before its frames are read."""

    name: str
    width_px: int
    height_px: int
    """Size as displayed, rotation applied."""
    fps: float
    """Average rate; NaN when the container does not say."""
    duration_s: float
    """NaN when the container does not say."""
    n_frames: int | None
    """None when the container does not say."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded picture of a source."""

    index: int
    """0-based number of the frame in its source."""
    time_s: float
    """Presentation time since the source's first frame."""
    image_bgr: UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True, slots=True, eq=False)
class BlazePoseLandmarks:
    """What MediaPipe gives beside the COCO keypoints."""

    image_px: Float[np.ndarray, "33 3"]
    """x, y in image pixels; z in pixels, towards the camera negative, origin at the hips."""
    world_m: Float[np.ndarray, "33 3"]
    """Metric coordinates, origin at the middle of the hips, y down, z away from the camera."""
    visibility: Float[np.ndarray, "33"]
    """Probability that the landmark is in the image and not hidden."""
    presence: Float[np.ndarray, "33"]
    """Probability that the landmark is in the image."""


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """One person in one image, as a detector saw them."""

    keypoints_px: Float[np.ndarray, "17 2"]
    """COCO-17 keypoints in original image pixels."""
    confidences: Float[np.ndarray, "17"]
    """0..1 for each keypoint."""
    box_px: Float[np.ndarray, "4"]
    """x0, y0, x1, y1 in original image pixels."""
    score: float
    """0..1 for the person."""
    landmarks: BlazePoseLandmarks | None = None


class View(StrEnum):
    """From where the camera sees the person."""

    FRONT = "front"
    THREE_QUARTER = "three_quarter"
    SIDE = "side"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class CameraView:
    """Estimated direction from which a person is seen."""

    label: View
    yaw_deg: float
    """0 = facing towards or away from the camera, 90 = seen from the side; NaN unknown."""
    yaw_sd_deg: float


@dataclass(frozen=True, slots=True, eq=False)
class JointAngles:
    """The 12 angles of `skeletons.ANGLE_NAMES` with their error bars."""

    values_deg: Float[np.ndarray, "12"]
    """NaN where the keypoints it needs are missing."""
    sd_deg: Float[np.ndarray, "12"]
    """Standard deviation of the angle; NaN where the value is."""
    trusted: Bool[np.ndarray, "12"]
    """False where this camera view or the keypoints' confidence cannot show the angle."""


class KeypointFlag(IntFlag):
    """What was done to a keypoint before it was used; 0 means nothing."""

    BRIDGED = 1
    """Not measured in this frame: predicted across a short gap."""
    SWAPPED = 2
    """Left and right were exchanged by the detector and put back."""
    REJECTED = 4
    """Measured far from where it can be: the measurement was ignored and bridged."""


class Phase(StrEnum):
    """Where in a repetition the person is; `top` is the start and end position."""

    TOP = "top"
    ECCENTRIC = "eccentric"
    BOTTOM = "bottom"
    CONCENTRIC = "concentric"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RangeOfMotion:
    """Extremes of one joint angle within a repetition."""

    angle: str
    min_deg: float
    max_deg: float
    trusted: bool

    @property
    def range_deg(self) -> float:
        """Difference of the extremes in degrees."""
        return self.max_deg - self.min_deg


@dataclass(frozen=True, slots=True)
class Repetition:
    """One counted repetition. Times are seconds of the source."""

    exercise: str
    number: int
    """1-based."""
    start_s: float
    turn_s: float
    """When the extreme position was reached."""
    end_s: float
    eccentric_s: float
    """Time from leaving the start position to arriving at the extreme position; 0 if unseen."""
    hold_s: float
    """Time in the extreme position."""
    concentric_s: float
    """Time from leaving the extreme position to counting."""
    depth: float
    """Largest progress from start (0) to full (1) position, may exceed 1."""
    ranges: tuple[RangeOfMotion, ...] = ()

    @property
    def duration_s(self) -> float:
        """Whole repetition in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, eq=False)
class PersonFrame:
    """Everything known about one person at one frame; the answer of one analysis step."""

    track_id: int
    """1-based, stable for as long as the person is followed."""
    frame_index: int
    time_s: float
    detected: bool
    """False: the person was not found in this frame and is bridged from earlier ones."""
    score: float
    """The detector's confidence in the person, 0..1."""
    box_px: Float[np.ndarray, "4"]
    keypoints_px: Float[np.ndarray, "17 2"]
    """Smoothed; NaN where unknown."""
    keypoints_sd_px: Float[np.ndarray, "17"]
    """Standard deviation of each coordinate after smoothing; NaN where unknown."""
    confidences: Float[np.ndarray, "17"]
    """As detected, after left/right repair; 0 where not measured."""
    flags: UInt8[np.ndarray, "17"]
    """Bits of `KeypointFlag`."""
    landmarks: BlazePoseLandmarks | None
    """As detected, unsmoothed; only MediaPipe gives them."""
    angles: JointAngles
    """In the image plane, from the smoothed keypoints."""
    angles_3d: JointAngles | None
    """From MediaPipe's world landmarks."""
    view: CameraView
    exercise: str | None
    """The exercise being counted, None while `auto` has not recognised one."""
    phase: Phase
    progress: float
    """0 at the start position, 1 at the full position of the exercise; NaN unknown."""
    n_repetitions: int
    """Repetitions of `exercise` completed so far."""


@dataclass(frozen=True, slots=True, eq=False)
class PersonAnalysis:
    """One person over a whole recording, as columns of `frames` rows."""

    track_id: int
    exercise: str | None
    """Requested or recognised; None when nothing was recognised."""
    repetitions: tuple[Repetition, ...]
    frame_index: Int64[np.ndarray, "frames"]
    time_s: Float[np.ndarray, "frames"]
    detected: Bool[np.ndarray, "frames"]
    box_px: Float[np.ndarray, "frames 4"]
    keypoints_px: Float[np.ndarray, "frames 17 2"]
    keypoints_sd_px: Float[np.ndarray, "frames 17"]
    confidences: Float[np.ndarray, "frames 17"]
    flags: UInt8[np.ndarray, "frames 17"]
    angles_deg: Float[np.ndarray, "frames 12"]
    angles_sd_deg: Float[np.ndarray, "frames 12"]
    angles_trusted: Bool[np.ndarray, "frames 12"]
    angles_3d_deg: Float[np.ndarray, "frames 12"] | None
    """From world landmarks; None when the detector gives none."""
    angles_3d_sd_deg: Float[np.ndarray, "frames 12"] | None
    angles_3d_trusted: Bool[np.ndarray, "frames 12"] | None
    yaw_deg: Float[np.ndarray, "frames"]
    view: View
    """The most frequent view."""
    phase: tuple[Phase, ...]
    progress: Float[np.ndarray, "frames"]
    n_repetitions: Int64[np.ndarray, "frames"]
    """Counted so far, at the moment of counting."""
    score: Float[np.ndarray, "frames"] | None = None
    """The detector's confidence in the person, 0..1; None if it was not kept."""


@dataclass(frozen=True, slots=True, eq=False)
class VideoAnalysis:
    """What one recording shows."""

    source: SourceInfo
    detector: str
    device: str
    exercise_requested: str
    """``auto`` or the name of an exercise."""
    sample_fps: float | None
    roi: tuple[float, float, float, float] | None
    """x0, y0, x1, y1 as fractions of the image, or None for all of it."""
    n_frames: int
    """Frames analysed."""
    people: tuple[PersonAnalysis, ...]
    """The person who was exercising, or else was largest for longest, comes first."""
    problems: tuple[str, ...]
    """What a reader of the results must know, such as a truncated file."""
    elapsed_s: float
    stage_s: dict[str, float]
    """Wall seconds of the analysing thread: detect, analyse, write, wait_for_frames."""
