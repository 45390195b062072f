"""Smooth keypoints in time: a Kalman or One-Euro filter, short gaps bridged, left/right swaps undone.

Both filters are frozen solvers with `initial_state` and `step`; all state is in the state object,
so a stream may be cut anywhere and continued from the state it had there. Both are causal: the
estimate at a frame uses that frame and earlier ones only, and live and recorded video agree.

Lengths are scaled by the person's size in the image (`body_size_px`), so that one set of
constants serves a face-filling and a far-away person.
"""

from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from jaxtyping import Bool, Float, UInt8

from pose_analyzer.skeletons import N_KEYPOINTS, Coco
from pose_analyzer.types import KeypointFlag

# Limb chains whose sides detectors confuse; each row is (left, right).
_LEG: Final = np.array(
    [
        (Coco.LEFT_HIP, Coco.RIGHT_HIP),
        (Coco.LEFT_KNEE, Coco.RIGHT_KNEE),
        (Coco.LEFT_ANKLE, Coco.RIGHT_ANKLE),
    ]
)
_ARM: Final = np.array(
    [
        (Coco.LEFT_SHOULDER, Coco.RIGHT_SHOULDER),
        (Coco.LEFT_ELBOW, Coco.RIGHT_ELBOW),
        (Coco.LEFT_WRIST, Coco.RIGHT_WRIST),
    ]
)
_CHAIN_PAIRS: Final = np.stack([_LEG, _ARM])  # (chains, pairs, side)
_CHAIN_JOINTS: Final = _CHAIN_PAIRS.reshape(2, 6)
_CHAIN_MIRRORED: Final = _CHAIN_PAIRS[:, :, ::-1].reshape(2, 6)


@dataclass(frozen=True, slots=True, eq=False)
class FilteredKeypoints:
    """One person's keypoints after filtering."""

    keypoints_px: Float[np.ndarray, "17 2"]
    """NaN where a keypoint was never seen or is lost for longer than the bridge."""
    velocities_px_s: Float[np.ndarray, "17 2"]
    sd_px: Float[np.ndarray, "17"]
    """Standard deviation of each coordinate; NaN where the keypoint is."""
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
    """Standard deviation of a measured keypoint: `(floor + slope * (1 - confidence)) * body size`.

    Both constants are fractions of `body_size_px`, fitted to the residuals of four calibrated
    cameras (`benchmarks/multiview_angles.py`).
    """

    floor_ratio: float = 0.012
    slope_ratio: float = 0.08

    def sd_px(
        self, confidences: Float[np.ndarray, "17"], body_size_px: float
    ) -> Float[np.ndarray, "17"]:
        """Standard deviation of each coordinate of each keypoint."""
        return (self.floor_ratio + self.slope_ratio * (1.0 - confidences)) * body_size_px


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


def body_size_px(
    keypoints_px: Float[np.ndarray, "17 2"], usable: Bool[np.ndarray, "17"]
) -> float:
    """How large the person appears: the diagonal of the box around the usable keypoints.

    Returns
    -------
    float
        Pixels; NaN with fewer than two usable keypoints.
    """
    points = keypoints_px[usable]
    if len(points) < 2:
        return float("nan")
    span = points.max(axis=0) - points.min(axis=0)
    return float(np.hypot(span[0], span[1]))


@dataclass(frozen=True, slots=True)
class _Repair:
    """Measurement after swaps were undone."""

    keypoints_px: Float[np.ndarray, "17 2"]
    confidences: Float[np.ndarray, "17"]
    flags: UInt8[np.ndarray, "17"]
    swapped_since_s: Float[np.ndarray, "2"]


def undo_swaps(
    state: FilterState,
    predicted_px: Float[np.ndarray, "17 2"],
    time_s: float,
    keypoints_px: Float[np.ndarray, "17 2"],
    confidences: Float[np.ndarray, "17"],
    patience_s: float = 0.5,
) -> _Repair:
    """Exchange left and right of a limb chain where that continues the motion far better.

    A chain (hips-knees-ankles or shoulders-elbows-wrists) is exchanged when the exchanged
    measurement lies closer to the prediction by a factor of three (in squared distance) and the
    sides are far enough apart to tell. A detector that keeps the exchanged labels for longer than
    `patience_s` is believed: the person has turned.
    """
    direct = keypoints_px[_CHAIN_JOINTS]
    mirrored = keypoints_px[_CHAIN_MIRRORED]
    expected = predicted_px[_CHAIN_JOINTS]
    weight = np.minimum(confidences[_CHAIN_JOINTS], confidences[_CHAIN_MIRRORED])
    cost_direct = weight * np.square(direct - expected).sum(axis=-1)
    cost_mirrored = weight * np.square(mirrored - expected).sum(axis=-1)
    known = np.isfinite(cost_direct) & np.isfinite(cost_mirrored)
    cost_direct = np.where(known, cost_direct, 0.0).sum(axis=1)
    cost_mirrored = np.where(known, cost_mirrored, 0.0).sum(axis=1)
    # Apart by 8% of the body size (RMS over the chain) or the two sides cannot be told apart.
    separation = (0.08 * state.body_size_px) ** 2 * np.where(known, weight, 0.0).sum(axis=1)
    swapped = (3.0 * cost_mirrored < cost_direct) & (cost_direct > separation)
    if not swapped.any():
        return _Repair(
            keypoints_px,
            confidences,
            np.zeros(N_KEYPOINTS, dtype=np.uint8),
            np.full(2, np.inf),
        )
    since = np.where(swapped, np.minimum(state.swapped_since_s, time_s), np.inf)
    put_back = swapped & (time_s - since < patience_s)
    order = np.arange(N_KEYPOINTS)
    flags = np.zeros(N_KEYPOINTS, dtype=np.uint8)
    for chain in np.flatnonzero(put_back):
        order[_CHAIN_JOINTS[chain]] = _CHAIN_MIRRORED[chain]
        flags[_CHAIN_JOINTS[chain]] = KeypointFlag.SWAPPED
    return _Repair(keypoints_px[order], confidences[order], flags, since)


def _fresh_body_size(
    state: FilterState, dt_s: float, keypoints_px: Float[np.ndarray, "17 2"], usable: Bool[np.ndarray, "17"]
) -> float:
    """Low-passed body size; 2 s time constant, since it only scales the noise."""
    measured = body_size_px(keypoints_px, usable)
    if not np.isfinite(state.body_size_px):
        return measured
    if not np.isfinite(measured):
        return state.body_size_px
    gain = 1.0 - np.exp(-dt_s / 2.0)
    return float(state.body_size_px + gain * (measured - state.body_size_px))


def _missing(confidences: Float[np.ndarray, "17"], flags: UInt8[np.ndarray, "17"]) -> FilteredKeypoints:
    nothing = np.full((N_KEYPOINTS, 2), np.nan)
    return FilteredKeypoints(
        nothing, nothing.copy(), np.full(N_KEYPOINTS, np.nan), np.zeros_like(confidences), flags
    )


@dataclass(frozen=True, slots=True)
class KalmanFilter:
    """Constant-velocity Kalman filter of every keypoint, all keypoints at once.

    White-noise acceleration model (Bar-Shalom, Li & Kirubarajan 2001, "Estimation with
    Applications to Tracking and Navigation", section 6.2.2). x and y share one covariance, since
    noise and dynamics are isotropic.
    """

    noise: NoiseModel = NoiseModel()
    acceleration: float = 12.0
    """Root spectral density of the acceleration, body sizes per s^1.5."""
    min_confidence: float = 0.1
    """Keypoints below it count as missing."""
    max_gap_s: float = 0.4
    """Longest time a missing keypoint is predicted."""
    gate: float = 6.0
    """Measurements further than this many standard deviations from the prediction are ignored."""
    max_rejections: int = 2
    """After so many ignored measurements in a row the next one is believed."""

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
        dt_s = time_s - state.time_s if np.isfinite(state.time_s) else 0.0
        if dt_s < 0:
            raise ValueError(f"time runs backwards: {state.time_s} s, then {time_s} s")
        predicted_px = state.position_px + dt_s * state.velocity_px_s
        repair = undo_swaps(state, predicted_px, time_s, keypoints_px, confidences)
        # A NaN confidence compares False, as a missing keypoint should.
        usable = (repair.confidences >= self.min_confidence) & np.isfinite(repair.keypoints_px[:, 0])
        size_px = _fresh_body_size(state, dt_s, repair.keypoints_px, usable)
        if not np.isfinite(size_px):
            return replace(state, time_s=time_s), _missing(repair.confidences, repair.flags)
        return self._update(state, time_s, dt_s, predicted_px, repair, usable, size_px)

    def _update(
        self,
        state: FilterState,
        time_s: float,
        dt_s: float,
        predicted_px: Float[np.ndarray, "17 2"],
        repair: _Repair,
        usable: Bool[np.ndarray, "17"],
        size_px: float,
    ) -> tuple[FilterState, FilteredKeypoints]:
        alive = time_s - state.measured_s <= self.max_gap_s
        p00, p01, p11 = state.covariance
        q = (self.acceleration * size_px) ** 2
        a00 = p00 + dt_s * (2.0 * p01 + dt_s * p11) + q * dt_s**3 / 3.0
        a01 = p01 + dt_s * p11 + q * dt_s**2 / 2.0
        a11 = p11 + q * dt_s

        noise_var = np.square(self.noise.sd_px(np.where(usable, repair.confidences, 0.0), size_px))
        innovation = repair.keypoints_px - predicted_px
        total_var = a00 + noise_var
        far = np.square(innovation).sum(axis=1) > self.gate**2 * 2.0 * total_var
        rejected = usable & alive & far & (state.rejections < self.max_rejections)
        restarted = usable & (~alive | (far & ~rejected))
        corrected = usable & alive & ~far

        gain0 = np.where(corrected, a00 / total_var, 0.0)
        gain1 = np.where(corrected, a01 / total_var, 0.0)
        step_px = np.where(corrected[:, None], innovation, 0.0)
        position = predicted_px + gain0[:, None] * step_px
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

        measured = corrected | restarted
        known = measured | alive
        flags = repair.flags | np.where(known & ~measured, KeypointFlag.BRIDGED, 0).astype(np.uint8)
        flags |= np.where(rejected, KeypointFlag.REJECTED, 0).astype(np.uint8)
        new_state = FilterState(
            time_s=time_s,
            position_px=position,
            velocity_px_s=velocity,
            covariance=np.stack([c00, c01, c11]),
            measured_s=np.where(measured, time_s, state.measured_s),
            body_size_px=size_px,
            swapped_since_s=repair.swapped_since_s,
            rejections=np.where(rejected, state.rejections + 1, 0).astype(np.uint8),
        )
        unknown = ~known
        shown = FilteredKeypoints(
            keypoints_px=np.where(unknown[:, None], np.nan, position),
            velocities_px_s=np.where(unknown[:, None], np.nan, velocity),
            sd_px=np.where(unknown, np.nan, np.sqrt(c00)),
            confidences=np.where(measured, repair.confidences, 0.0),
            flags=flags,
        )
        return new_state, shown


@dataclass(frozen=True, slots=True)
class OneEuroFilter:
    """One-Euro filter of every keypoint: strong smoothing at rest, little lag in motion.

    Casiez, Roussel & Vogel 2012, "1 Euro Filter: A Simple Speed-based Low-pass Filter for Noisy
    Input in Interactive Systems". Speeds are taken in body sizes per second.
    """

    noise: NoiseModel = NoiseModel()
    min_cutoff_hz: float = 1.5
    beta: float = 6.0
    """Hz of cutoff per body size per second."""
    derivative_cutoff_hz: float = 2.0
    min_confidence: float = 0.1
    max_gap_s: float = 0.4

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
        """Advance to `time_s`; parameters as for `KalmanFilter.step`."""
        dt_s = time_s - state.time_s if np.isfinite(state.time_s) else 0.0
        if dt_s < 0:
            raise ValueError(f"time runs backwards: {state.time_s} s, then {time_s} s")
        predicted_px = state.position_px + dt_s * state.velocity_px_s
        repair = undo_swaps(state, predicted_px, time_s, keypoints_px, confidences)
        usable = (repair.confidences >= self.min_confidence) & np.isfinite(repair.keypoints_px[:, 0])
        size_px = _fresh_body_size(state, dt_s, repair.keypoints_px, usable)
        if not np.isfinite(size_px):
            return replace(state, time_s=time_s), _missing(repair.confidences, repair.flags)

        alive = time_s - state.measured_s <= self.max_gap_s
        corrected = usable & alive
        restarted = usable & ~alive
        measured = corrected | restarted
        known = measured | alive
        derivative_gain = _low_pass_gain(self.derivative_cutoff_hz, dt_s)
        moved = np.where(corrected[:, None], repair.keypoints_px - state.position_px, 0.0)
        raw_velocity = moved / dt_s if dt_s > 0 else np.zeros_like(moved)
        velocity = state.velocity_px_s + derivative_gain * (raw_velocity - state.velocity_px_s)
        velocity = np.where(restarted[:, None], 0.0, velocity)
        speed = np.hypot(velocity[:, 0], velocity[:, 1]) / size_px
        gain = _low_pass_gain(self.min_cutoff_hz + self.beta * speed, dt_s)
        position = np.where(known[:, None], state.position_px, np.nan) + gain[:, None] * moved
        position = np.where(restarted[:, None], repair.keypoints_px, position)
        noise_var = np.square(self.noise.sd_px(np.where(usable, repair.confidences, 0.0), size_px))
        # Variance of a first-order low-pass of white noise: gain / (2 - gain).
        variance = np.where(corrected, noise_var * gain / (2.0 - gain), noise_var)
        new_state = FilterState(
            time_s=time_s,
            position_px=position,
            velocity_px_s=velocity,
            covariance=np.stack([variance, np.zeros(N_KEYPOINTS), np.zeros(N_KEYPOINTS)]),
            measured_s=np.where(measured, time_s, state.measured_s),
            body_size_px=size_px,
            swapped_since_s=repair.swapped_since_s,
            rejections=state.rejections,
        )
        bridged = np.where(known & ~measured, KeypointFlag.BRIDGED, 0).astype(np.uint8)
        shown = FilteredKeypoints(
            keypoints_px=position,
            velocities_px_s=np.where(known[:, None], velocity, np.nan),
            sd_px=np.where(known, np.sqrt(variance), np.nan),
            confidences=np.where(measured, repair.confidences, 0.0),
            flags=repair.flags | bridged,
        )
        return new_state, shown


def _low_pass_gain(cutoff_hz: Float[np.ndarray, "*n"] | float, dt_s: float) -> Float[np.ndarray, "*n"]:
    """Smoothing factor of a first-order low-pass: `1 / (1 + tau / dt)`, `tau = 1 / (2 pi f)`."""
    omega_dt = 2.0 * np.pi * dt_s * np.asarray(cutoff_hz, dtype=np.float64)
    return omega_dt / (1.0 + omega_dt)
