"""What smoothing costs, how still it holds a still joint, and how far it lags behind a moving one.

Still stretches: a joint whose half-second mean stays within 1% of the body's size for half a
second. Jitter there is the distance a joint moves from one frame to the next, scaled to a picture
of 1080 rows. Lag is the delay at which the smoothed track fits the measured one best, over
coordinates that move by more than 15% of the body's size. Only keypoints seen with confidence of
at least 0.5 count. CPU time is that of the fastest of seven passes over the clip: other work on the
machine makes the others slower.

Not held out: the accelerations of the Kalman filter were chosen with this table in view, and so
that the counts in repetition_counts.md stay; with neighbouring values a lunge cut off by the
picture or the small figures of the walking clip, both seen by MediaPipe lite, come and go.
"""

import argparse
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scipy.ndimage import uniform_filter1d

from pose_analyzer.backends import create_detector
from pose_analyzer.keypoint_filters import KalmanFilter, KeypointFilter, OneEuroFilter
from pose_analyzer.settings import Settings
from pose_analyzer.skeletons import Coco
from pose_analyzer.sources import open_source
from pose_analyzer.tracking import PersonTracker
from shared_utils.settings import read_settings

mpl.use("Agg")
import matplotlib.pyplot as plt

CLIPS = (
    "arnoldpress_front_1080p60.mp4",
    "deadlift_34view_1080p60.mp4",
    "squat_barbell_front_926p60.mp4",
)
N_PASSES = 7
FILTERS: dict[str, KeypointFilter] = {"Kalman": KalmanFilter(), "One-Euro": OneEuroFilter()}


@dataclass(frozen=True)
class Track:
    """Raw keypoints of the person who is in the picture longest."""

    time_s: np.ndarray
    keypoints_px: np.ndarray
    confidences: np.ndarray
    height_px: int


@dataclass(frozen=True)
class Smoothed:
    keypoints_px: np.ndarray
    body_size_px: float
    step_s: float


def read_track(path: Path, detector_name: str, settings: Settings) -> Track:
    detector = create_detector(detector_name, settings, mode="video")
    tracker = PersonTracker()
    source = open_source(path)
    rows: dict[int, list[tuple[float, np.ndarray, np.ndarray]]] = {}
    for frame in source.frames(30.0):
        poses = detector.detect([frame.image_bgr], [frame.time_s])[0]
        for track_id, pose in tracker.update(poses, frame.time_s).items():
            row = (frame.time_s, pose.keypoints_px.astype(float), pose.confidences.astype(float))
            rows.setdefault(track_id, []).append(row)
    detector.close()
    longest = max(rows.values(), key=len)
    times, keypoints, confidences = zip(*longest, strict=True)
    return Track(np.array(times), np.stack(keypoints), np.stack(confidences), source.info.height_px)


def smooth(track: Track, keypoint_filter: KeypointFilter) -> Smoothed:
    passes = [smooth_once(track, keypoint_filter) for _ in range(N_PASSES)]
    return min(passes, key=lambda one: one.step_s)


def smooth_once(track: Track, keypoint_filter: KeypointFilter) -> Smoothed:
    state = keypoint_filter.initial_state()
    shown = []
    began = time.thread_time()
    for i, time_s in enumerate(track.time_s.tolist()):
        state, result = keypoint_filter.step(
            state, time_s, track.keypoints_px[i], track.confidences[i]
        )
        shown.append(result.keypoints_px)
    step_s = (time.thread_time() - began) / len(shown)
    return Smoothed(np.stack(shown), state.body_size_px, step_s)


def jitter_px(track: Track, shown_px: np.ndarray, body_size_px: float) -> np.ndarray:
    """Frame-to-frame distances on still stretches, in pixels of a picture with 1080 rows."""
    window = round(0.5 / float(np.median(np.diff(track.time_s)))) | 1
    half = window // 2
    distances = []
    for joint in range(len(Coco)):
        mean = uniform_filter1d(track.keypoints_px[:, joint], window, axis=0)
        seen = track.confidences[:, joint] >= 0.5
        moved = np.linalg.norm(np.diff(shown_px[:, joint], axis=0), axis=1)
        for i in range(half, len(mean) - half):
            around = slice(i - half, i + half + 1)
            still = np.ptp(mean[around], axis=0).max() < 0.01 * body_size_px
            if still and seen[around].all():
                distances.append(moved[i - 1])
    return np.array(distances) * 1080.0 / track.height_px


def lag_s(track: Track, shown_px: np.ndarray, body_size_px: float) -> float:
    delays = np.linspace(-0.02, 0.1, 121)
    best = []
    for joint in range(len(Coco)):
        seen = track.confidences[:, joint] >= 0.5
        for axis in range(2):
            raw, shown = track.keypoints_px[:, joint, axis], shown_px[:, joint, axis]
            ok = seen & np.isfinite(shown)
            if ok.sum() < 30 or np.ptp(np.percentile(raw[ok], [5, 95])) < 0.15 * body_size_px:
                continue
            time_s = track.time_s[ok]
            error = [
                np.median(np.abs(shown[ok] - np.interp(time_s - delay, time_s, raw[ok])))
                for delay in delays
            ]
            best.append(delays[int(np.argmin(error))])
    return float(np.median(best)) if best else float("nan")


def plot(track: Track, smoothed: dict[str, Smoothed], title: str, path: Path) -> None:
    figure, axes = plt.subplots(2, 1, figsize=(9, 6), sharex=True)
    joints = (Coco.LEFT_HIP, Coco.LEFT_WRIST)
    for axis, joint in zip(axes, joints, strict=True):
        axis.plot(track.time_s, track.keypoints_px[:, joint, 1], ".", color="0.6", label="measured")
        for name, result in smoothed.items():
            axis.plot(track.time_s, result.keypoints_px[:, joint, 1], lw=1.2, label=name)
        axis.set_ylabel(f"{joint.name.lower()} y, px")
        axis.invert_yaxis()
    axes[0].legend(ncols=3)
    axes[0].set_title(title)
    axes[1].set_xlabel("s")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with videos/")
    parser.add_argument(
        "--detectors", nargs="+", default=["yolo11n-pose", "mediapipe-full", "mediapipe-lite"]
    )
    parser.add_argument("--report", type=Path, default=Path("docs/reports/smoothing.md"))
    arguments = parser.parse_args()
    settings = read_settings(Settings)
    lines = [
        "# Smoothing",
        "",
        "Reproduce: `python benchmarks/smoothing.py --data $SHARED_DATA`.",
        "",
        " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
        "",
        f"Machine: {platform.machine()}, 2 CPU cores, Python {platform.python_version()}, NumPy "
        f"{np.__version__}. One frame at 30 frames/s is 33 ms.",
        "",
        "| clip | detector | filter | CPU per person-frame, ms | jitter p50 / p95, px (raw) "
        "| lag, ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for detector in arguments.detectors:
        for clip in CLIPS:
            track = read_track(arguments.data / "videos" / clip, detector, settings)
            smoothed = {name: smooth(track, one) for name, one in FILTERS.items()}
            for name, result in smoothed.items():
                raw = jitter_px(track, track.keypoints_px, result.body_size_px)
                after = jitter_px(track, result.keypoints_px, result.body_size_px)
                lag = lag_s(track, result.keypoints_px, result.body_size_px)
                lines.append(
                    f"| {clip} | {detector} | {name} | {result.step_s * 1e3:.3f} | "
                    f"{np.median(after):.1f} / {np.percentile(after, 95):.1f} "
                    f"({np.median(raw):.1f} / {np.percentile(raw, 95):.1f}) | {lag * 1e3:.0f} |"
                )
                print(lines[-1], flush=True)
            if detector == arguments.detectors[0] and clip == CLIPS[1]:
                picture = arguments.report.with_suffix(".png")
                plot(track, smoothed, f"{clip}, {detector}", picture)
    lines += ["", f"![Before and after]({arguments.report.with_suffix('.png').name})", ""]
    arguments.report.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
