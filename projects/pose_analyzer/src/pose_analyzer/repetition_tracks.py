"""The frames of each counted repetition, cut from what is known of a person."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from jaxtyping import Float, Shaped

from pose_analyzer.form_types import RepetitionTrack
from pose_analyzer.types import PersonAnalysis, PersonFrame, Repetition, View

AROUND_S: Final = 0.1
"""So much before and after a repetition belongs to its track: counting cuts off the first and the
last tenth of the way. Not more: who is done with the last repetition gets up."""

# Midway between the yaws estimated of recorded people (UI-PRMD) whom the camera sees from 0, 45 and
# 90 degrees: medians 27, 50 and 82. Broad shoulders cannot look broader than from the front, narrow
# ones look turned, so that most people seen from the front seem turned a little.
_FRONT_BELOW_DEG: Final = 38.0
_SIDE_ABOVE_DEG: Final = 66.0


def first_s(repetition: Repetition, previous_end_s: float = float("-inf")) -> float:
    """When the track of a repetition begins: never within the one before."""
    return max(repetition.start_s - AROUND_S, min(previous_end_s, repetition.start_s))


def last_s(repetition: Repetition) -> float:
    """When the track of a repetition ends."""
    return repetition.end_s + AROUND_S


def tracks_of(person: PersonAnalysis) -> tuple[RepetitionTrack, ...]:
    """Every counted repetition of a recording."""
    previous_s = [float("-inf"), *(r.end_s for r in person.repetitions[:-1])]
    return tuple(
        _of_rows(person, repetition, after_s)
        for repetition, after_s in zip(person.repetitions, previous_s, strict=False)
    )


def track_of(
    frames: Sequence[PersonFrame],
    repetition: Repetition,
    previous_end_s: float = float("-inf"),
) -> RepetitionTrack | None:
    """One repetition from the frames of one person, in order; None if fewer than two are of it.

    The same frames give the same track as `tracks_of` of the whole recording.
    """
    start_s, stop_s = first_s(repetition, previous_end_s), last_s(repetition)
    inside = [frame for frame in frames if start_s <= frame.time_s <= stop_s]
    if len(inside) < 2:
        return None
    yaw_deg = median_yaw_deg(np.array([frame.view.yaw_deg for frame in inside]))
    return RepetitionTrack(
        track_id=inside[0].track_id,
        repetition=repetition,
        view=view_at(yaw_deg),
        yaw_deg=yaw_deg,
        times_s=np.array([frame.time_s for frame in inside]),
        keypoints_px=np.stack([frame.keypoints_px for frame in inside]),
        sd_px=np.stack([frame.keypoints_sd_px for frame in inside]),
        confidences=np.stack([frame.confidences for frame in inside]),
        angles_deg=np.stack([frame.angles.values_deg for frame in inside]),
        angles_sd_deg=np.stack([frame.angles.sd_deg for frame in inside]),
        angles_trusted=np.stack([frame.angles.trusted for frame in inside]),
        progress=np.array([frame.progress for frame in inside]),
        phases=tuple(frame.phase for frame in inside),
    )


def returns_only(repetition: Repetition) -> bool:
    """Whether the way out was not seen, as of a lift that begins on the floor."""
    one_way = min(repetition.eccentric_s, repetition.concentric_s) == 0.0
    return one_way and repetition.turn_s - repetition.start_s < repetition.duration_s / 2.0


def way_back(track: RepetitionTrack) -> RepetitionTrack | None:
    """The same repetition from its turning point on, as if its way out had not been seen.

    None if fewer than two frames are left.
    """
    rows = np.flatnonzero(track.times_s >= track.repetition.turn_s)
    if len(rows) < 2:
        return None
    alone = replace(track.repetition, start_s=track.repetition.turn_s, eccentric_s=0.0)
    return replace(
        track,
        repetition=alone,
        times_s=track.times_s[rows],
        keypoints_px=track.keypoints_px[rows],
        sd_px=track.sd_px[rows],
        confidences=track.confidences[rows],
        angles_deg=track.angles_deg[rows],
        angles_sd_deg=track.angles_sd_deg[rows],
        angles_trusted=track.angles_trusted[rows],
        progress=track.progress[rows],
        phases=tuple(track.phases[row] for row in rows),
    )


def view_at(yaw_deg: float) -> View:
    """What a view from this direction is called."""
    if np.isnan(yaw_deg):
        return View.UNKNOWN
    if yaw_deg > _SIDE_ABOVE_DEG:
        return View.SIDE
    return View.FRONT if yaw_deg < _FRONT_BELOW_DEG else View.THREE_QUARTER


def median_yaw_deg(yaw_deg: Float[np.ndarray, "frames"]) -> float:
    """Of the frames where it is known; NaN if it never is."""
    known = yaw_deg[np.isfinite(yaw_deg)]
    return float(np.median(known)) if known.size else float("nan")


def _of_rows(
    person: PersonAnalysis, repetition: Repetition, previous_end_s: float
) -> RepetitionTrack:
    start_s, stop_s = first_s(repetition, previous_end_s), last_s(repetition)
    rows: Shaped[np.ndarray, "frames"] = np.flatnonzero(
        (person.time_s >= start_s) & (person.time_s <= stop_s)
    )
    yaw_deg = median_yaw_deg(person.yaw_deg[rows])
    return RepetitionTrack(
        track_id=person.track_id,
        repetition=repetition,
        view=view_at(yaw_deg),
        yaw_deg=yaw_deg,
        times_s=person.time_s[rows],
        keypoints_px=person.keypoints_px[rows],
        sd_px=person.keypoints_sd_px[rows],
        confidences=person.confidences[rows],
        angles_deg=person.angles_deg[rows],
        angles_sd_deg=person.angles_sd_deg[rows],
        angles_trusted=person.angles_trusted[rows],
        progress=person.progress[rows],
        phases=tuple(person.phase[row] for row in rows),
    )
