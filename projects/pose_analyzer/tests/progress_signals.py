"""Signals whose repetitions are known, and what the counter makes of them."""

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import settings

from pose_analyzer.movement_features import FEATURE_INDEX, FEATURE_NAMES
from pose_analyzer.repetition_evidence import Observation
from pose_analyzer.skeletons import ANGLE_INDEX, N_ANGLES
from pose_analyzer.temporal_analyzer import CounterState, Movement, phase_of, step

# A power of two, so that shifted times and differences of times are exact.
DT_S = 1 / 32
SQUAT = Movement("squat", "hip_height", start=0.0, full=1.0, first_phase="eccentric")
CURL = replace(SQUAT, exercise="curl", first_phase="concentric")
few = settings(max_examples=8, deadline=None)
either = pytest.mark.parametrize("movement", [SQUAT, CURL], ids=["eccentric", "concentric"])


def observe(time_s, progress, *, trusted=True, **others):
    """One frame; the left knee goes from 180 (progress 0) to 80 degrees, its twin is unknown."""
    features = np.full(len(FEATURE_NAMES), np.nan)
    features[FEATURE_INDEX["hip_height"]] = progress
    for name, value in others.items():
        features[FEATURE_INDEX[name]] = value
    angles = np.full(N_ANGLES, np.nan)
    angles[ANGLE_INDEX["left_knee"]] = 180.0 - 100.0 * progress
    return Observation(float(time_s), features, angles, np.isfinite(angles) & trusted)


def observe_all(progress, begin_s=0.0, dt_s=DT_S, **others):
    return [observe(begin_s + i * dt_s, p, **others) for i, p in enumerate(progress)]


def run(movement, observations, state=None):
    """State after each frame."""
    states = []
    state = CounterState() if state is None else state
    for observation in observations:
        state = step(movement, state, observation)
        states.append(state)
    return states


def count(movement, progress, **others):
    return run(movement, observe_all(progress, **others))[-1].repetitions


def line(*corners):
    """Progress along straight lines between (seconds, progress) corners."""
    times_s, values = zip(*corners, strict=True)
    return np.interp(np.arange(times_s[0], times_s[-1] + DT_S / 2, DT_S), times_s, values)


def cycles(n, period_s=2.0, rest_s=0.5):
    """From rest at the start position through `n` cosine cycles to rest."""
    wave = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(0, n * period_s, DT_S) / period_s)
    rest = np.zeros(round(rest_s / DT_S))
    return np.concatenate([rest, wave, rest])


def phases(movement, observations):
    """Phases in order, repeats dropped."""
    shown = [phase_of(movement, state) for state in run(movement, observations)]
    return [phase for phase, _ in groupby(shown)]
