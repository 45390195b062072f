"""Tracks of one generated squat, good or with a fault, for tests of what judges form."""

import numpy as np

from pose_analyzer.biomechanics import joint_angles_2d
from pose_analyzer.form_references import signals_for
from pose_analyzer.form_types import RepetitionTrack
from pose_analyzer.skeletons import Coco
from pose_analyzer.types import Phase, Repetition, View

from .builders import squat_keypoints

LEGS = signals_for(("knee", "hip", "trunk_inclination"))


def squat_track(fps=30.0, duration_s=2.0, depth=1.0, lean_px=0.0, *, number=1):
    """A squat seen from the left; `lean_px` moves shoulders and arms forward at the bottom."""
    times_s = np.arange(0.0, duration_s + 1e-9, 1.0 / fps)
    progress = 0.5 - 0.5 * np.cos(2.0 * np.pi * times_s / duration_s)
    keypoints = np.stack([squat_keypoints(depth * p) for p in progress])
    keypoints[:, : Coco.LEFT_HIP, 0] += lean_px * progress[:, None]
    # The left leg goes a little further, so that it is clear which one leads.
    keypoints[:, Coco.LEFT_KNEE, 0] += 15.0 * progress
    return track_with(times_s, keypoints, number=number)


def track_with(times_s, keypoints, confidences=None, *, number=1, trusted=True):
    """Any keypoints as a track whose angles are all trusted, or none."""
    n = len(times_s)
    angles = joint_angles_2d(keypoints)
    start_s, end_s = float(times_s[0]), float(times_s[-1])
    middle_s = (start_s + end_s) / 2.0
    return RepetitionTrack(
        track_id=1,
        repetition=Repetition("squat", number, start_s, middle_s, end_s, 0.9, 0.1, 0.9, 1.0),
        view=View.SIDE,
        yaw_deg=85.0,
        times_s=times_s,
        keypoints_px=keypoints,
        sd_px=np.full((n, 17), 2.0),
        confidences=np.full((n, 17), 0.9) if confidences is None else confidences,
        angles_deg=angles,
        angles_sd_deg=np.full(angles.shape, 3.0),
        angles_trusted=np.isfinite(angles) & trusted,
        progress=np.linspace(0.0, 1.0, n),
        phases=tuple(Phase.ECCENTRIC if t < middle_s else Phase.CONCENTRIC for t in times_s),
    )
