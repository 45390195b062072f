"""What rules about faults may name: a few numbers per frame of a repetition, with their reasons.

Keypoints count where they were seen surely, angles where they are trusted, and each measure only in
the views that show it. Lengths are the person's own: those of trunk, thigh and shank at their
longest in the repetition, so that neither stature nor distance matters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
from jaxtyping import Float

from pose_analyzer.form_types import RepetitionTrack, Side, Unit
from pose_analyzer.skeletons import ANGLE_INDEX, Coco
from pose_analyzer.types import View

_MIN_CONFIDENCE: Final = 0.4
# Lengths are taken from the nearly longest, angles at rest from the first part of the repetition.
_LONGEST: Final = 90.0
_AT_REST_RATIO: Final = 0.1
_AT_TURN_RATIO: Final = 0.1
# No picture reaches further, and nobody's limb is shorter.
_MAX_PX: Final = 1e6
_MIN_LIMB_PX: Final = 1.0
# Longer steps across the picture, in body lengths, are not along the line of sight.
_MAX_STEP_ASIDE: Final = 0.25
# A trunk that leans by less is upright.
_UPRIGHT_DEG: Final = 20.0
# Straight knees are off the line from hip to ankle by less: bent backwards, or seen wrongly.
_MIN_KNEE_OFFSET_RATIO: Final = 0.03
# Closer feet than this part of the hips' distance say nothing about knees between them.
_MIN_STANCE_RATIO: Final = 0.8

OneSide = Literal["left", "right"]
Values = Float[np.ndarray, "frames"]
Points = Float[np.ndarray, "frames 2"]


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """One measure of one side over a repetition."""

    side: Side
    values: Float[np.ndarray, "frames"]
    """NaN where it is not known."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One kind of number that a rule may bound."""

    courses: Callable[["Body"], tuple[Course, ...]]
    unit: Unit
    views: tuple[View, ...]
    """From where it can be seen."""


class Body:
    """A repetition's sure keypoints, and the lengths that measures are made of."""

    def __init__(self, track: RepetitionTrack) -> None:
        self.track = track
        sure = track.confidences >= _MIN_CONFIDENCE
        credible = np.abs(track.keypoints_px) <= _MAX_PX
        self.points: Float[np.ndarray, "frames 17 2"] = np.where(
            sure[..., None] & credible, track.keypoints_px, np.nan
        )
        at_rest_s = track.repetition.start_s + _AT_REST_RATIO * track.repetition.duration_s
        self.at_rest = track.times_s <= max(at_rest_s, float(track.times_s[1]))
        self.around_turn = np.abs(track.times_s - track.repetition.turn_s) <= (
            _AT_TURN_RATIO * track.repetition.duration_s
        )

    def point(self, name: str, side: Side) -> Points:
        """A keypoint of one side, or the middle of both."""
        if side == "both":
            middle: Points = 0.5 * (self.point(name, "left") + self.point(name, "right"))
            return middle
        joint: Points = self.points[:, Coco[f"{side}_{name}".upper()]]
        return joint

    def length_px(self, first: str, second: str, side: Side) -> float:
        """Nearly the longest distance of two keypoints; NaN if there is none."""
        apart = self.point(first, side) - self.point(second, side)
        longest_px = _longest(np.hypot(apart[:, 0], apart[:, 1]))
        return longest_px if longest_px >= _MIN_LIMB_PX else float("nan")

    def body_px(self, side: Side) -> float:
        """Trunk, thigh and shank together."""
        limbs = (("shoulder", "hip"), ("hip", "knee"), ("knee", "ankle"))
        return float(sum(self.length_px(first, second, side) for first, second in limbs))

    def forward(self) -> float:
        """1 if the person faces the right of the picture, -1 the left; NaN if unknown.

        Knees bend forward, wherever one looks; where they hardly bend the face tells.
        """
        bent = _median(np.concatenate([self._knee_offset(side) for side in _SIDES]))
        if abs(bent) > _MIN_KNEE_OFFSET_RATIO:
            return float(np.sign(bent))
        ears = self.points[:, [Coco.LEFT_EAR, Coco.RIGHT_EAR], 0]
        ahead = (self.points[:, Coco.NOSE, 0, None] - ears).ravel()
        known = ahead[np.isfinite(ahead)]
        return float(np.sign(np.median(known))) if known.size else float("nan")

    def _knee_offset(self, side: OneSide) -> Values:
        """How far right of the line from hip to ankle the knee is, in body lengths."""
        leg = self.point("ankle", side) - self.point("hip", side)
        knee = self.point("knee", side) - self.point("hip", side)
        length_px = np.hypot(leg[:, 0], leg[:, 1])
        with np.errstate(invalid="ignore", divide="ignore"):
            offset_px = (knee[:, 0] * leg[:, 1] - knee[:, 1] * leg[:, 0]) / length_px
        offset: Values = np.where(length_px >= _MIN_LIMB_PX, offset_px, np.nan) / self.body_px(side)
        return offset

    def front_leg(self) -> OneSide | None:
        """The leg that is in front in a lunge; None if that is not seen.

        Wherever the camera stands, its shank is the more upright one around the turning point.
        """
        upright_px = {}
        for side in _SIDES:
            shank = self.point("ankle", side) - self.point("knee", side)
            upright_px[side] = _median(shank[self.around_turn, 1])
        if not np.isfinite(list(upright_px.values())).all():
            return None
        return "left" if upright_px["left"] >= upright_px["right"] else "right"

    def less_rest(self, values: Values) -> Values:
        """How much more it is than in the position the repetition starts from."""
        return values - _median(values[self.at_rest])


def _longest(values: Values) -> float:
    known = values[np.isfinite(values)]
    return float(np.percentile(known, _LONGEST)) if known.size else float("nan")


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _nearer_side(of_side: Callable[[Body, Side], Values], body: Body) -> tuple[Course, ...]:
    """Of the side that is seen more surely, as of both: of what is done with both at once."""
    confidence = {
        side: float(body.track.confidences[:, Coco[f"{side}_HIP".upper()]].mean())
        for side in ("left", "right")
    }
    side: Side = "left" if confidence["left"] >= confidence["right"] else "right"
    return (Course("both", of_side(body, side)),)


def _angle(name: str, body: Body) -> tuple[Course, ...]:
    return tuple(Course(side, _trusted(body.track, f"{side}_{name}")) for side in _SIDES)


def _trusted(track: RepetitionTrack, angle: str) -> Values:
    column = ANGLE_INDEX[angle]
    return np.where(track.angles_trusted[:, column], track.angles_deg[:, column], np.nan)


def _trunk_gain_deg(body: Body) -> tuple[Course, ...]:
    """How much further the trunk leans than at the turning point."""
    lean_deg = _trusted(body.track, "trunk_inclination")
    return (Course("both", lean_deg - _median(lean_deg[body.around_turn])),)


def _trunk_lean_deg(body: Body) -> tuple[Course, ...]:
    """How far the trunk leans, either way."""
    return (Course("both", _trusted(body.track, "trunk_inclination")),)


def _neck_gain_deg(body: Body) -> tuple[Course, ...]:
    """How much further the neck leans than the trunk; 0 while the trunk is upright.

    Ears are ahead of the shoulders of whoever stands, but in line with a straight back that leans.
    """
    neck_deg = _trusted(body.track, "neck_inclination")
    trunk_deg = _trusted(body.track, "trunk_inclination")
    gain_deg = np.where(trunk_deg < _UPRIGHT_DEG, 0.0, neck_deg - trunk_deg)
    return (Course("both", gain_deg),)


def _hip_over_knee(body: Body, side: Side) -> Values:
    """1 with the thigh upright, 0 with the hip as low as the knee."""
    height_px = body.point("knee", side)[:, 1] - body.point("hip", side)[:, 1]
    height: Values = height_px / body.length_px("hip", "knee", side)
    return height


def _knees_to_ankles(body: Body) -> tuple[Course, ...]:
    """Distance of the knees over that of the ankles."""
    knees, ankles, hips = (
        np.abs(body.point(name, "left")[:, 0] - body.point(name, "right")[:, 0])
        for name in ("knee", "ankle", "hip")
    )
    with np.errstate(invalid="ignore"):
        stands = ankles >= np.maximum(_MIN_STANCE_RATIO * hips, _MIN_LIMB_PX)
    return (
        Course("both", np.divide(knees, ankles, out=np.full(len(knees), np.nan), where=stands)),
    )


def _lean_deg(body: Body, upwards: Points) -> Values:
    """How far a limb that points up leans the way the person faces."""
    lean_deg: Values = np.degrees(np.arctan2(body.forward() * upwards[:, 0], -upwards[:, 1]))
    return lean_deg


def _shank_lean_deg(body: Body, side: Side) -> Values:
    """How far the knee leads the ankle; 0 with an upright shank."""
    shank = body.point("knee", side) - body.point("ankle", side)
    return _lean_deg(body, shank)


def _of_front_leg(
    of_legs: Callable[[Body, OneSide, OneSide], Values], body: Body
) -> tuple[Course, ...]:
    """Of the leg in front and the other one, as of the one in front."""
    front = body.front_leg()
    return () if front is None else (Course(front, of_legs(body, front, _OTHER[front])),)


def _front_shank_lean_deg(body: Body, front: OneSide, rear: OneSide) -> Values:
    """How far the front knee leads its ankle, away from the rear foot."""
    shank = body.point("knee", front) - body.point("ankle", front)
    step_px = body.point("ankle", front)[:, 0] - body.point("ankle", rear)[:, 0]
    ahead = np.sign(_median(step_px[body.around_turn]))
    lean_deg: Values = np.degrees(np.arctan2(ahead * shank[:, 0], -shank[:, 1]))
    return lean_deg


def _front_shank_inward_deg(body: Body, front: OneSide, rear: OneSide) -> Values:
    """How far the front shank leans towards the middle of the body.

    Only of steps along the line of sight: seen from aside a knee ahead of the foot looks off it.
    """
    shank = body.point("knee", front) - body.point("ankle", front)
    inward = np.sign(_median(body.point("hip", rear)[:, 0] - body.point("hip", front)[:, 0]))
    lean_deg = np.degrees(np.arctan2(inward * shank[:, 0], -shank[:, 1]))
    with np.errstate(invalid="ignore"):
        along_sight = _step_length(body, front, rear) <= _MAX_STEP_ASIDE
    return np.where(along_sight, lean_deg, np.nan)


def _rear_knee_height(body: Body, front: OneSide, rear: OneSide) -> Values:
    """How high the rear knee is over the front ankle, in lengths of the front shank."""
    height_px = body.point("ankle", front)[:, 1] - body.point("knee", rear)[:, 1]
    height: Values = height_px / body.length_px("knee", "ankle", front)
    return height


def _step_length(body: Body, front: OneSide, rear: OneSide) -> Values:
    """Distance of the ankles along the ground."""
    apart_px = np.abs(body.point("ankle", front)[:, 0] - body.point("ankle", rear)[:, 0])
    length: Values = apart_px / body.body_px(front)
    return length


def _ankle_rise(body: Body, side: Side) -> Values:
    """How high the ankle has risen from where it stood: with the heel on the ground it cannot."""
    height_px = -body.point("ankle", side)[:, 1]
    return body.less_rest(height_px) / body.body_px(side)


def _trunk_shortening(body: Body, side: Side) -> Values:
    """By what part shoulder and hip are closer than at their furthest."""
    trunk = body.point("shoulder", side) - body.point("hip", side)
    length: Values = np.hypot(trunk[:, 0], trunk[:, 1]) / body.length_px("shoulder", "hip", side)
    return 1.0 - length


def _backward_lean_deg(body: Body, side: Side) -> Values:
    """How far the shoulders are behind the hips; negative when they lead."""
    trunk = body.point("shoulder", side) - body.point("hip", side)
    return -_lean_deg(body, trunk)


def _hips_over_line_deg(body: Body, side: Side) -> Values:
    """How far the body is from straight between shoulder and ankle; positive with hips above."""
    to_shoulder = body.point("shoulder", side) - body.point("hip", side)
    to_ankle = body.point("ankle", side) - body.point("hip", side)
    cross = to_shoulder[:, 0] * to_ankle[:, 1] - to_shoulder[:, 1] * to_ankle[:, 0]
    dot = (to_shoulder * to_ankle).sum(axis=1)
    enclosed_deg = np.degrees(np.arctan2(np.abs(cross), dot))
    # Both ends lie below hips that are pushed up.
    below = np.sign(to_shoulder[:, 1] + to_ankle[:, 1])
    trusted = np.isfinite(_trusted(body.track, f"{side}_hip"))
    return np.where(trusted, below * (180.0 - enclosed_deg), np.nan)


def _hand_drift(body: Body, side: Side) -> Values:
    """How far the hand is from the upright line it mostly keeps to."""
    x_px = body.point("wrist", side)[:, 0]
    return np.abs(x_px - _median(x_px)) / body.body_px(side)


def _tilt_deg(name: str, body: Body) -> tuple[Course, ...]:
    """How much further a line across the body tilts than at rest, either way."""
    across = body.point(name, "left") - body.point(name, "right")
    tilt_deg = np.degrees(np.arctan2(across[:, 1], np.abs(across[:, 0])))
    return (Course("both", np.abs(body.less_rest(tilt_deg))),)


def _hands_apart(body: Body) -> tuple[Course, ...]:
    """Difference of the hands' heights."""
    left, right = body.point("wrist", "left"), body.point("wrist", "right")
    return (Course("both", np.abs(left[:, 1] - right[:, 1]) / body.body_px("both")),)


_SIDES: Final[tuple[OneSide, OneSide]] = ("left", "right")
_OTHER: Final[Mapping[OneSide, OneSide]] = {"left": "right", "right": "left"}
_SIDE_VIEW: Final = (View.SIDE,)
_FRONT_VIEW: Final = (View.FRONT,)
_ANY_VIEW: Final = (View.FRONT, View.THREE_QUARTER, View.SIDE)

MEASURES: Final[Mapping[str, Measure]] = {
    # Trust decides from where shoulders and elbows can be judged.
    "shoulder_deg": Measure(partial(_angle, "shoulder"), "deg", (*_ANY_VIEW, View.UNKNOWN)),
    "elbow_deg": Measure(partial(_angle, "elbow"), "deg", (*_ANY_VIEW, View.UNKNOWN)),
    "hip_deg": Measure(partial(_angle, "hip"), "deg", _SIDE_VIEW),
    "knee_deg": Measure(partial(_angle, "knee"), "deg", _SIDE_VIEW),
    "trunk_gain_deg": Measure(_trunk_gain_deg, "deg", _SIDE_VIEW),
    "trunk_lean_deg": Measure(_trunk_lean_deg, "deg", _SIDE_VIEW),
    "neck_gain_deg": Measure(_neck_gain_deg, "deg", _SIDE_VIEW),
    "hip_over_knee": Measure(partial(_nearer_side, _hip_over_knee), "ratio", _ANY_VIEW),
    "knees_to_ankles": Measure(_knees_to_ankles, "ratio", _FRONT_VIEW),
    "shank_lean_deg": Measure(partial(_nearer_side, _shank_lean_deg), "deg", _SIDE_VIEW),
    "front_shank_lean_deg": Measure(
        partial(_of_front_leg, _front_shank_lean_deg), "deg", _SIDE_VIEW
    ),
    "front_shank_inward_deg": Measure(
        partial(_of_front_leg, _front_shank_inward_deg), "deg", _FRONT_VIEW
    ),
    "rear_knee_height": Measure(partial(_of_front_leg, _rear_knee_height), "ratio", _SIDE_VIEW),
    "step_length": Measure(partial(_of_front_leg, _step_length), "body_ratio", _SIDE_VIEW),
    "ankle_rise": Measure(partial(_nearer_side, _ankle_rise), "body_ratio", _SIDE_VIEW),
    "trunk_shortening": Measure(partial(_nearer_side, _trunk_shortening), "ratio", _SIDE_VIEW),
    "backward_lean_deg": Measure(partial(_nearer_side, _backward_lean_deg), "deg", _SIDE_VIEW),
    "hips_over_line_deg": Measure(partial(_nearer_side, _hips_over_line_deg), "deg", _SIDE_VIEW),
    "hand_drift": Measure(partial(_nearer_side, _hand_drift), "body_ratio", _SIDE_VIEW),
    "shoulder_tilt_deg": Measure(partial(_tilt_deg, "shoulder"), "deg", _FRONT_VIEW),
    "hands_apart": Measure(_hands_apart, "body_ratio", _FRONT_VIEW),
}
"""What each one is stands in docs/FORM.md."""
