"""Smooth keypoints in time: a Kalman or One-Euro filter, short gaps bridged, swaps undone.

Both filters are frozen solvers with `initial_state` and `step`; all state is in the state object,
so a stream may be cut anywhere and continued from the state it had there. Both are causal: the
estimate at a frame uses that frame and earlier ones only, and live and recorded video agree.

Lengths are scaled by the person's size in the image (`body_size_px`), so that one set of
constants serves a face-filling and a far-away person.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from pose_analyzer.keypoint_repair import (
    TORSO,
    Expectation,
    RepairedKeypoints,
    body_size_px,
    undo_swaps,
)
from pose_analyzer.skeletons import N_KEYPOINTS
from pose_analyzer.types import KeypointFlag


@dataclass(frozen=True, slots=True, eq=False)
class FilteredKeypoints:
    """One person's keypoints after filtering."""

    keypoints_px: Float[np.ndarray, "17 2"]
    """NaN where a keypoint was never seen or is lost for longer than the bridge."""
    velocities_px_s: Float[np.ndarray, "17 2"]
    sd_px: Float[np.ndarray, "17"]
    """Standard deviation of each coordinate, the detector's steady part included; NaN where the
    keypoint is."""
    confidences: Float[np.ndarray, "17"]
    """Of the measurement used, after swaps were undone; 0 where there was none."""
    flags: UInt8[np.ndarray, "17"]
    """Bits of `KeypointFlag`."""


@dataclass(frozen=True, slots=True, eq=False)
class FilterState:
    """What a filter remembers of one person between frames."""

    time_s: float
    """Of the latest step; NaN before the first one."""
    position_px: Float[np.ndarray, "17 2"]
    velocity_px_s: Float[np.ndarray, "17 2"]
    covariance: Float[np.ndarray, "3 17"]
    """var(position), cov(position, velocity), var(velocity); the same for x and y."""
    measured_s: Float[np.ndarray, "17"]
    """When each keypoint was last measured; -inf before."""
    body_size_px: float
    """Smoothed size of the person in the image; NaN before the first measurement."""
    swapped_since_s: Float[np.ndarray, "2"]
    """Since when the leg and the arm chain have been put back without a break; +inf if not."""
    rejections: UInt8[np.ndarray, "17"]
    """How many measurements in a row were ignored."""


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """How far measured keypoints are from the joints, as fractions of `body_size_px`.

    What changes from frame to frame, `floor + slope * (1 - confidence)`, is filtered; a detector
    also puts a joint steadily beside where it is, which no filter removes. Slope and bias are
    what four calibrated cameras show (`benchmarks/multiview_angles.py`); the floor is taken above
    the jitter seen there, for stillness at rest (`benchmarks/smoothing.py`).
    """

    floor_ratio: float = 0.015
    slope_ratio: float = 0.06
    bias_ratio: float = 0.012

    def sd_px(
        self, confidences: Float[np.ndarray, "17"], body_size_px: float
    ) -> Float[np.ndarray, "17"]:
        """Standard deviation of each coordinate from frame to frame."""
        return (self.floor_ratio + self.slope_ratio * (1.0 - confidences)) * body_size_px


@runtime_checkable
class KeypointFilter(Protocol):
    """A causal filter over one person's keypoints."""

    def initial_state(self) -> FilterState:
        """State before the first frame."""
        ...

    def step(
        self,
        state: FilterState,
        time_s: float,
        keypoints_px: Float[np.ndarray, "17 2"],
        confidences: Float[np.ndarray, "17"],
    ) -> tuple[FilterState, FilteredKeypoints]:
        """Advance to `time_s` with a measurement; confidence 0 or NaN marks a missing keypoint."""
        ...


def _empty_state() -> FilterState:
    return FilterState(
        time_s=np.nan,
        position_px=np.full((N_KEYPOINTS, 2), np.nan),
        velocity_px_s=np.zeros((N_KEYPOINTS, 2)),
        covariance=np.zeros((3, N_KEYPOINTS)),
        measured_s=np.full(N_KEYPOINTS, -np.inf),
        body_size_px=np.nan,
        swapped_since_s=np.full(2, np.inf),
        rejections=np.zeros(N_KEYPOINTS, dtype=np.uint8),
    )


def _fresh_body_size(
    state: FilterState,
    dt_s: float,
    keypoints_px: Float[np.ndarray, "17 2"],
    usable: Bool[np.ndarray, "17"],
) -> float:
    """Low-passed body size; 2 s time constant, since it only scales the noise."""
    measured = body_size_px(keypoints_px, usable)
    if not np.isfinite(state.body_size_px):
        return measured
    if not np.isfinite(measured):
        return state.body_size_px
    gain = 1.0 - np.exp(-dt_s / 2.0)
    return float(state.body_size_px + gain * (measured - state.body_size_px))


@dataclass(frozen=True, slots=True, eq=False)
class _Measurement:
    """One frame, ready to be filtered."""

    time_s: float
    dt_s: float
    predicted_px: Float[np.ndarray, "17 2"]
    repaired: RepairedKeypoints
    usable: Bool[np.ndarray, "17"]
    body_size_px: float
    """NaN while the person has not been seen."""

    @property
    def usable_confidences(self) -> Float[np.ndarray, "17"]:
        """0 where a keypoint is missing."""
        return np.where(self.usable, self.repaired.confidences, 0.0)


def _prepare(
    state: FilterState,
    time_s: float,
    keypoints_px: Float[np.ndarray, "17 2"],
    confidences: Float[np.ndarray, "17"],
    min_confidence: float,
    max_gap_s: float,
) -> _Measurement:
    dt_s = time_s - state.time_s if np.isfinite(state.time_s) else 0.0
    if dt_s < 0:
        raise ValueError(f"time runs backwards: {state.time_s} s, then {time_s} s")
    predicted_px = state.position_px + dt_s * state.velocity_px_s
    # What was seen too long ago says nothing about sides.
    recent = time_s - state.measured_s <= max_gap_s
    expectation = Expectation(
        np.where(recent[:, None], predicted_px, np.nan),
        state.body_size_px,
        state.swapped_since_s,
        torso_missing_s=float(state.time_s - state.measured_s[TORSO].max()),
        step_s=dt_s,
    )
    repaired = undo_swaps(expectation, time_s, keypoints_px, confidences)
    # A NaN confidence compares False, as a missing keypoint should.
    usable = (repaired.confidences >= min_confidence) & np.isfinite(
        repaired.keypoints_px.sum(axis=1)
    )
    size_px = _fresh_body_size(state, dt_s, repaired.keypoints_px, usable)
    return _Measurement(time_s, dt_s, predicted_px, repaired, usable, size_px)


def _unseen(state: FilterState, measurement: _Measurement) -> tuple[FilterState, FilteredKeypoints]:
    """The answer while the person has not been seen at all."""
    nothing = np.full((N_KEYPOINTS, 2), np.nan)
    shown = FilteredKeypoints(
        nothing,
        nothing.copy(),
        np.full(N_KEYPOINTS, np.nan),
        np.zeros(N_KEYPOINTS),
        measurement.repaired.flags,
    )
    return replace(state, time_s=measurement.time_s), shown


@dataclass(frozen=True, slots=True, eq=False)
class _Estimate:
    """What a filter makes of one frame."""

    position_px: Float[np.ndarray, "17 2"]
    velocity_px_s: Float[np.ndarray, "17 2"]
    covariance: Float[np.ndarray, "3 17"]
    measured: Bool[np.ndarray, "17"]
    alive: Bool[np.ndarray, "17"]
    """Measured recently enough to be predicted."""
    rejections: UInt8[np.ndarray, "17"]


def _finish(
    state: FilterState, measurement: _Measurement, estimate: _Estimate, noise: NoiseModel
) -> tuple[FilterState, FilteredKeypoints]:
    """State and answer of a step; what is known for too long from predictions only is left out."""
    repaired, measured = measurement.repaired, estimate.measured
    known = measured | estimate.alive
    flags = repaired.flags.copy()
    flags[known & ~measured] |= np.uint8(KeypointFlag.BRIDGED)
    flags[estimate.rejections > state.rejections] |= np.uint8(KeypointFlag.REJECTED)
    bias_var = (noise.bias_ratio * measurement.body_size_px) ** 2
    new_state = FilterState(
        time_s=measurement.time_s,
        position_px=estimate.position_px,
        velocity_px_s=estimate.velocity_px_s,
        covariance=estimate.covariance,
        measured_s=np.where(measured, measurement.time_s, state.measured_s),
        body_size_px=measurement.body_size_px,
        swapped_since_s=repaired.swapped_since_s,
        rejections=estimate.rejections,
    )
    return new_state, FilteredKeypoints(
        keypoints_px=np.where(known[:, None], estimate.position_px, np.nan),
        velocities_px_s=np.where(known[:, None], estimate.velocity_px_s, np.nan),
        sd_px=np.where(known, np.sqrt(estimate.covariance[0] + bias_var), np.nan),
        confidences=np.where(measured, repaired.confidences, 0.0),
        flags=flags,
    )


@dataclass(frozen=True, slots=True)
class _CausalFilter(ABC):
    """What both filters do before they differ."""

    noise: NoiseModel = NoiseModel()
    min_confidence: float = 0.1
    """Keypoints below it count as missing."""
    max_gap_s: float = 0.4
    """Longest time a missing keypoint is predicted."""

    def initial_state(self) -> FilterState:
        """State before the first frame."""
        return _empty_state()

    def step(
        self,
        state: FilterState,
        time_s: float,
        keypoints_px: Float[np.ndarray, "17 2"],
        confidences: Float[np.ndarray, "17"],
    ) -> tuple[FilterState, FilteredKeypoints]:
        """Advance to `time_s`, which must not lie before the previous step.

        Parameters
        ----------
        keypoints_px
            Measured positions; NaN where missing.
        confidences
            0..1; below `min_confidence` or NaN counts as missing.

        Raises
        ------
        ValueError
            If time runs backwards.
        """
        measurement = _prepare(
            state, time_s, keypoints_px, confidences, self.min_confidence, self.max_gap_s
        )
        if not np.isfinite(measurement.body_size_px):
            return _unseen(state, measurement)
        return self._update(state, measurement)

    @abstractmethod
    def _update(
        self, state: FilterState, measurement: _Measurement
    ) -> tuple[FilterState, FilteredKeypoints]:
        """Filter one frame of somebody who has been seen."""


@dataclass(frozen=True, slots=True)
class KalmanFilter(_CausalFilter):
    """Constant-velocity Kalman filter of every keypoint, all keypoints at once.

    White-noise acceleration model (Bar-Shalom, Li & Kirubarajan 2001, "Estimation with
    Applications to Tracking and Navigation", section 6.2.2). x and y share one covariance, since
    noise and dynamics are isotropic.
    """

    acceleration: float = 0.04
    """Root spectral density of the acceleration at rest, body sizes per s^1.5."""
    acceleration_per_speed: float = 3.5
    """How much it grows with the keypoint's speed, per body size per second: what moves also
    changes its speed, what rests stays at rest (the idea of the One-Euro filter)."""
    gate: float = 6.0
    """Measurements further than this many standard deviations from the prediction are ignored."""
    max_rejections: int = 2
    """After so many ignored measurements in a row the next one is believed."""

    def _predicted_covariance(
        self, state: FilterState, dt_s: float, size_px: float
    ) -> Float[np.ndarray, "3 17"]:
        p00, p01, p11 = state.covariance
        speed_px_s = np.hypot(state.velocity_px_s[:, 0], state.velocity_px_s[:, 1])
        q = np.square(self.acceleration * size_px + self.acceleration_per_speed * speed_px_s)
        return np.stack(
            [
                p00 + dt_s * (2.0 * p01 + dt_s * p11) + q * (dt_s**3 / 3.0),
                p01 + dt_s * p11 + q * (dt_s**2 / 2.0),
                p11 + q * dt_s,
            ]
        )

    def _update(
        self, state: FilterState, measurement: _Measurement
    ) -> tuple[FilterState, FilteredKeypoints]:
        time_s, size_px = measurement.time_s, measurement.body_size_px
        usable, repair = measurement.usable, measurement.repaired
        alive = time_s - state.measured_s <= self.max_gap_s
        a00, a01, a11 = self._predicted_covariance(state, measurement.dt_s, size_px)
        noise_var = np.square(self.noise.sd_px(measurement.usable_confidences, size_px))
        innovation = repair.keypoints_px - measurement.predicted_px
        total_var = a00 + noise_var
        far = np.square(innovation).sum(axis=1) > self.gate**2 * 2.0 * total_var
        rejected = usable & alive & far & (state.rejections < self.max_rejections)
        restarted = usable & (~alive | (far & ~rejected))
        corrected = usable & alive & ~far

        gain0 = np.where(corrected, a00 / total_var, 0.0)
        gain1 = np.where(corrected, a01 / total_var, 0.0)
        step_px = np.where(corrected[:, None], innovation, 0.0)
        position = measurement.predicted_px + gain0[:, None] * step_px
        velocity = state.velocity_px_s + gain1[:, None] * step_px
        c00 = a00 - gain0 * a00
        c01 = a01 - gain0 * a01
        c11 = a11 - gain1 * a01
        if restarted.any():
            position = np.where(restarted[:, None], repair.keypoints_px, position)
            velocity = np.where(restarted[:, None], 0.0, velocity)
            c00 = np.where(restarted, noise_var, c00)
            c01 = np.where(restarted, 0.0, c01)
            # One body size per second: fast for a person, slow for noise.
            c11 = np.where(restarted, size_px**2, c11)

        estimate = _Estimate(
            position,
            velocity,
            np.stack([c00, c01, c11]),
            corrected | restarted,
            alive,
            np.where(rejected, state.rejections + 1, 0).astype(np.uint8),
        )
        return _finish(state, measurement, estimate, self.noise)


@dataclass(frozen=True, slots=True)
class OneEuroFilter(_CausalFilter):
    """One-Euro filter of every keypoint: strong smoothing at rest, little lag in motion.

    Casiez, Roussel & Vogel 2012, "1 Euro Filter: A Simple Speed-based Low-pass Filter for Noisy
    Input in Interactive Systems". Speeds are taken in body sizes per second.
    """

    min_cutoff_hz: float = 1.5
    beta: float = 6.0
    """Hz of cutoff per body size per second."""
    derivative_cutoff_hz: float = 2.0

    def _update(
        self, state: FilterState, measurement: _Measurement
    ) -> tuple[FilterState, FilteredKeypoints]:
        time_s = measurement.time_s
        dt_s, size_px = measurement.dt_s, measurement.body_size_px
        usable, repair = measurement.usable, measurement.repaired
        alive = time_s - state.measured_s <= self.max_gap_s
        corrected = usable & alive
        restarted = usable & ~alive
        derivative_gain = _low_pass_gain(self.derivative_cutoff_hz, dt_s)
        moved = np.where(corrected[:, None], repair.keypoints_px - state.position_px, 0.0)
        raw_velocity = moved / dt_s if dt_s > 0 else np.zeros_like(moved)
        velocity = state.velocity_px_s + derivative_gain * (raw_velocity - state.velocity_px_s)
        velocity = np.where(restarted[:, None], 0.0, velocity)
        speed = np.hypot(velocity[:, 0], velocity[:, 1]) / size_px
        gain = np.asarray(_low_pass_gain(self.min_cutoff_hz + self.beta * speed, dt_s))
        position = state.position_px + gain[:, None] * moved
        position = np.where(restarted[:, None], repair.keypoints_px, position)
        noise_var = np.square(self.noise.sd_px(measurement.usable_confidences, size_px))
        # Variance of a first-order low-pass of white noise: gain / (2 - gain).
        variance = np.where(corrected, noise_var * gain / (2.0 - gain), noise_var)
        unused = np.zeros(N_KEYPOINTS)
        estimate = _Estimate(
            position,
            velocity,
            np.stack([variance, unused, unused]),
            corrected | restarted,
            alive,
            state.rejections,
        )
        return _finish(state, measurement, estimate, self.noise)


FILTERS: Final[Mapping[str, KeypointFilter]] = MappingProxyType(
    {"kalman": KalmanFilter(), "one-euro": OneEuroFilter()}
)
"""Filters by the name a user gives."""


def _low_pass_gain(
    cutoff_hz: Float[np.ndarray, "17"] | float, dt_s: float
) -> Float[np.ndarray, "17"] | float:
    """Smoothing factor of a first-order low-pass: `1 / (1 + tau / dt)`, `tau = 1 / (2 pi f)`."""
    omega_dt = 2.0 * np.pi * dt_s * cutoff_hz
    return omega_dt / (1.0 + omega_dt)
