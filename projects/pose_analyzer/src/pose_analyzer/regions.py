"""The part of the picture that is looked at."""

from dataclasses import replace

import numpy as np

from pose_analyzer.types import BlazePoseLandmarks, Pose

RegionOfInterest = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of width and height."""


def roi_pixels(roi: RegionOfInterest, width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """The region in whole pixels, at least two wide and high."""
    x0 = min(int(roi[0] * width_px), width_px - 2)
    y0 = min(int(roi[1] * height_px), height_px - 2)
    x1, y1 = round(roi[2] * width_px), round(roi[3] * height_px)
    return x0, y0, min(max(x1, x0 + 2), width_px), min(max(y1, y0 + 2), height_px)


def shifted(pose: Pose, x0: int, y0: int) -> Pose:
    """The pose found in a region that begins at `x0`, `y0`, in coordinates of the whole image."""
    landmarks = pose.landmarks
    if landmarks is not None:
        landmarks = BlazePoseLandmarks(
            landmarks.image_px + np.array([x0, y0, 0.0]),
            landmarks.world_m,
            landmarks.visibility,
            landmarks.presence,
        )
    return replace(
        pose,
        keypoints_px=pose.keypoints_px + np.array([x0, y0]),
        box_px=pose.box_px + np.array([x0, y0, x0, y0]),
        landmarks=landmarks,
    )


def scaled(pose: Pose, x_ratio: float, y_ratio: float) -> Pose:
    """The pose found in a scaled picture, in coordinates `x_ratio` and `y_ratio` times as large."""
    ratios = np.array([x_ratio, y_ratio])
    landmarks = pose.landmarks
    if landmarks is not None:
        # Depth is in the scale of x.
        landmarks = replace(
            landmarks, image_px=landmarks.image_px * np.array([x_ratio, y_ratio, x_ratio])
        )
    return replace(
        pose,
        keypoints_px=pose.keypoints_px * ratios,
        box_px=pose.box_px * np.tile(ratios, 2),
        landmarks=landmarks,
    )
