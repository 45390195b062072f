"""Sequences of keypoints, and what a filter makes of them."""

import numpy as np
import pytest
from hypothesis import settings

from pose_analyzer.keypoint_filters import KalmanFilter, OneEuroFilter
from pose_analyzer.keypoint_repair import body_size_px
from pose_analyzer.skeletons import N_KEYPOINTS

from .builders import standing_keypoints

FILTERS = [KalmanFilter(), OneEuroFilter()]
every_filter = pytest.mark.parametrize("solver", FILTERS, ids=["kalman", "one-euro"])
few = settings(max_examples=15, deadline=None)
FPS = 30.0
LEGS = [11, 12, 13, 14, 15, 16]
CHAINS = [5, 6, 7, 8, 9, 10, *LEGS]
SURE = np.full(N_KEYPOINTS, 0.9)
STANDING = standing_keypoints()
SIZE_PX = body_size_px(STANDING, np.ones(N_KEYPOINTS, bool))


def run(solver, keypoints, confidences=SURE, times_s=None, state=None):
    """All filtered frames of a sequence, and the state after it."""
    times_s = np.arange(len(keypoints)) / FPS if times_s is None else times_s
    confidences = np.broadcast_to(confidences, (len(keypoints), N_KEYPOINTS))
    state = solver.initial_state() if state is None else state
    shown = []
    for time_s, points, sure in zip(times_s, keypoints, confidences, strict=True):
        state, filtered = solver.step(state, float(time_s), points, sure)
        shown.append(filtered)
    return state, shown


def positions(shown):
    return np.array([frame.keypoints_px for frame in shown])


def still(n_frames, keypoints=STANDING):
    return np.repeat(keypoints[None], n_frames, axis=0)


def moving(times_s, velocity_px_s=(150.0, -60.0)):
    return STANDING + np.asarray(times_s)[:, None, None] * np.array(velocity_px_s)


def noisy(keypoints, sd_px, seed=0):
    return keypoints + np.random.default_rng(seed).normal(0.0, sd_px, keypoints.shape)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))
