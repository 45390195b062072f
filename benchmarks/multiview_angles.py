"""Our detectors' angles against angles triangulated from four calibrated cameras.

One person balances on one leg and bends over; four cameras film the same moment (BSD-3 clips of the
package pose2sim). Keypoints of all cameras and both detectors give one triangulated body, the
reference. Residuals against it are the real error of the keypoints.

Run: ``python benchmarks/multiview_angles.py`` with ``SHARED_DATA`` naming the evaluation data.
Writes docs/reports/multiview_angles.md.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import defusedxml.ElementTree
import numpy as np

from pose_analyzer import biomechanics as bm
from pose_analyzer.backends import create_detector
from pose_analyzer.camera_view import initial_view_state
from pose_analyzer.keypoint_filters import KalmanFilter
from pose_analyzer.settings import Settings
from pose_analyzer.skeletons import ANGLE_INDEX, Coco
from pose_analyzer.sources import open_source
from pose_analyzer.types import Pose

Array = np.ndarray

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
VIDEOS = SHARED_DATA / "videos"
REPORT = REPOSITORY / "docs" / "reports" / "multiview_angles.md"
DETECTORS = ("yolo11n-pose", "mediapipe-full")
N_CAMERAS, SAMPLE_FPS = 4, 30.0
STATURE_PER_LEG = 1.0 / 0.491  # Winter 2009, fig. 4.1: thigh and shank
ANGLES = ("left_elbow", "right_elbow", "left_knee", "right_knee")
# A point further than this from its reprojection is an outlier in triangulation.
OUTLIER_PX = 20.0
MISTAKEN_PX = 60.0
BODY = slice(Coco.LEFT_SHOULDER, None)
"""Faces are blurred in these clips and covered by a cap: only the body is judged."""


# Qualisys cameras: right, up, backwards; here: right, down, forward.
_FROM_QUALISYS = np.array([1.0, -1.0, -1.0])
_BACKWARDS = np.array([0.0, 0.0, 1.0])
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Camera:
    """One camera of a Qualisys calibration; lengths mm, image pixels."""

    rotation: Array
    """World to camera; the camera's axes point right, up and backwards."""
    position_mm: Array
    focal_px: Array
    centre_px: Array
    radial: Array
    tangential: Array


def read_cameras(path: Path) -> list[Camera]:
    """Read a .qca.txt file, whose pixel quantities are in 64ths."""
    cameras = []
    for element in defusedxml.ElementTree.parse(path).getroot().iter("camera"):
        pose = {k: float(v) for k, v in element.find("transform").attrib.items()}
        lens = {k: float(v) for k, v in element.find("intrinsic").attrib.items()}
        cameras.append(
            Camera(
                rotation=np.array([[pose[f"r{i}{j}"] for j in (1, 2, 3)] for i in (1, 2, 3)]),
                position_mm=np.array([pose["x"], pose["y"], pose["z"]]),
                focal_px=np.array([lens["focalLengthU"], lens["focalLengthV"]]) / 64.0,
                centre_px=np.array([lens["centerPointU"], lens["centerPointV"]]) / 64.0,
                radial=np.array([lens[f"radialDistortion{i}"] for i in (1, 2, 3)]),
                tangential=np.array([lens[f"tangentalDistortion{i}"] for i in (1, 2)]),
            )
        )
    return cameras


def distort(camera: Camera, undistorted: Array) -> Array:
    """Brown-Conrady lens model on normalised image coordinates."""
    x, y = undistorted[..., 0], undistorted[..., 1]
    squared = x * x + y * y
    gain = 1.0 + sum(k * squared ** (i + 1) for i, k in enumerate(camera.radial))
    p1, p2 = camera.tangential
    distorted: Array = np.stack(
        [
            x * gain + 2 * p1 * x * y + p2 * (squared + 2 * x * x),
            y * gain + p1 * (squared + 2 * y * y) + 2 * p2 * x * y,
        ],
        axis=-1,
    )
    return distorted


def undistort(camera: Camera, pixels: Array) -> Array:
    """Normalised coordinates of the straight ray through each pixel."""
    seen = (pixels - camera.centre_px) / camera.focal_px
    straight = seen
    for _ in range(20):
        straight = straight + seen - distort(camera, straight)
    return straight


def in_camera(camera: Camera, points_mm: Array) -> Array:
    """Coordinates right, down, forward of the camera."""
    return (points_mm - camera.position_mm) @ camera.rotation.T * _FROM_QUALISYS


def project(camera: Camera, points_mm: Array) -> Array:
    seen = in_camera(camera, points_mm)
    pixels: Array = (
        camera.focal_px * distort(camera, seen[..., :2] / seen[..., 2:]) + camera.centre_px
    )
    return pixels


def triangulate(cameras: Sequence[Camera], pixels: Array, weights: Array) -> Array:
    """Direct linear transform, re-weighted against outliers; pixels (cameras, ..., 2)."""
    rows = []
    for camera, seen in zip(cameras, pixels, strict=True):
        turn = _FROM_QUALISYS[:, None] * camera.rotation
        matrix = np.c_[turn, -turn @ camera.position_mm]
        ray = undistort(camera, seen)
        rows.append(np.stack([ray[..., i, None] * matrix[2] - matrix[i] for i in (0, 1)], axis=-2))
    equations = np.stack(rows)
    current = weights
    for _ in range(10):
        weighted = np.moveaxis(equations * current[..., None, None], 0, -3)
        flat = weighted.reshape(*weighted.shape[:-3], -1, 4)
        solution = np.linalg.svd(flat)[2][..., -1, :]
        points_mm: Array = solution[..., :3] / solution[..., 3:]
        errors = np.stack([project(c, points_mm) - p for c, p in zip(cameras, pixels, strict=True)])
        distance = np.linalg.norm(errors, axis=-1)
        current = weights / np.sqrt(1.0 + (distance / OUTLIER_PX) ** 2)
    return points_mm


@dataclass(frozen=True)
class Seen:
    """What one detector saw of the person, by camera and frame."""

    keypoints_px: Array
    confidences: Array
    planar_deg: Array
    planar_sd_deg: Array
    planar_trusted: Array
    yaw_deg: Array
    world_deg: Array
    world_sd_deg: Array
    world_trusted: Array


def largest(people: list[Pose]) -> Pose:
    """Choose the person on the treadmill; others stand behind."""
    return max(people, key=lambda p: (p.box_px[2] - p.box_px[0]) * (p.box_px[3] - p.box_px[1]))


def watch(name: str, camera_number: int) -> list[Array]:
    """Columns of `Seen` for one camera: raw keypoints, and angles of the smoothed ones."""
    settings = Settings(model_path=(SHARED_DATA / "models",))
    detector = create_detector(name, settings, n_people=2)
    source = open_source(VIDEOS / f"balance_calib_cam0{camera_number}_1920p60.mp4")
    smoother = KalmanFilter()
    memory, view = smoother.initial_state(), initial_view_state()
    rows = []
    for frame in source.frames(SAMPLE_FPS):
        pose = largest(detector.detect([frame.image_bgr], [frame.time_s])[0])
        memory, smooth = smoother.step(memory, frame.time_s, pose.keypoints_px, pose.confidences)
        view, planar, seen_from = bm.measure_angles(
            view, smooth.keypoints_px, smooth.sd_px, smooth.confidences, frame.time_s
        )
        world = None if pose.landmarks is None else bm.angles_from_world(pose.landmarks)
        nothing = np.full(12, np.nan)
        rows.append(
            (
                pose.keypoints_px,
                pose.confidences,
                planar.values_deg,
                planar.sd_deg,
                planar.trusted,
                seen_from.yaw_deg,
                nothing if world is None else world.values_deg,
                nothing if world is None else world.sd_deg,
                nothing == 0.0 if world is None else world.trusted,
            )
        )
    detector.close()
    return [np.array(column) for column in zip(*rows, strict=True)]


def watch_all(name: str) -> Seen:
    columns = [watch(name, number) for number in range(1, N_CAMERAS + 1)]
    return Seen(*(np.stack(column) for column in zip(*columns, strict=True)))


def rms(values: Array) -> float:
    return float(np.sqrt(np.nanmean(np.square(values))))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def stature_mm(points_mm: Array) -> float:
    def length(a: int, b: int) -> float:
        return float(np.median(np.linalg.norm(points_mm[:, a] - points_mm[:, b], axis=-1)))

    left = length(Coco.LEFT_HIP, Coco.LEFT_KNEE) + length(Coco.LEFT_KNEE, Coco.LEFT_ANKLE)
    right = length(Coco.RIGHT_HIP, Coco.RIGHT_KNEE) + length(Coco.RIGHT_KNEE, Coco.RIGHT_ANKLE)
    return (left + right) / 2.0 * STATURE_PER_LEG


def residual_ratio(camera: Camera, points_mm: Array, keypoints_px: Array) -> Array:
    """Keypoints minus reprojections as fractions of the person's stature in pixels."""
    mm_per_px = in_camera(camera, points_mm)[..., 2:] / camera.focal_px
    errors_px = keypoints_px - project(camera, points_mm)
    ratios: Array = errors_px * mm_per_px / stature_mm(points_mm)
    return ratios


def without_mistaken_frames(cameras: Sequence[Camera], points_mm: Array, seen: Seen) -> Seen:
    """Blank frames in which the detector followed a bystander or lost the body altogether."""
    errors = np.stack(
        [
            np.linalg.norm(project(c, points_mm) - k, axis=-1)
            for c, k in zip(cameras, seen.keypoints_px, strict=True)
        ]
    )
    mistaken = np.median(errors, axis=-1) > MISTAKEN_PX
    columns = {}
    for field in fields(Seen):
        values = getattr(seen, field.name).copy()
        values[mistaken] = False if values.dtype == bool else np.nan
        columns[field.name] = values
    return Seen(**columns)


def true_yaw_deg(camera: Camera, points_mm: Array) -> Array:
    """Angle between the image plane and the line through hips and shoulders."""
    across = points_mm[:, Coco.LEFT_HIP] - points_mm[:, Coco.RIGHT_HIP]
    across = across + points_mm[:, Coco.LEFT_SHOULDER] - points_mm[:, Coco.RIGHT_SHOULDER]
    middle = points_mm[:, Coco.LEFT_HIP : Coco.RIGHT_HIP + 1].mean(axis=1)
    sight = middle - camera.position_mm
    cosine = (across * sight).sum(-1) / np.linalg.norm(across, axis=-1)
    return np.degrees(np.arcsin(np.abs(cosine) / np.linalg.norm(sight, axis=-1)))


def jitter_ratio(keypoints_px: Array, stature_px: float) -> float:
    """Frame-to-frame noise from fourth differences, in which smooth motion cancels."""
    k = keypoints_px[:, BODY]
    fourth = k[4:] - 4 * k[3:-1] + 6 * k[2:-2] - 4 * k[1:-3] + k[:-4]
    return float(1.4826 * np.nanmedian(np.abs(fourth)) / np.sqrt(70.0) / stature_px)


CONFIDENCE_EDGES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.001)


def robust_sd(values: Array) -> float:
    return float(1.4826 * np.nanmedian(np.abs(values)))


def percent(ratio: float) -> str:
    return f"{100 * ratio:.1f}%"


def noise_rows(name: str, ratios: Array, seen: Seen) -> list[list[str]]:
    ratios, confidences = ratios[:, :, BODY], seen.confidences[:, :, BODY]
    rows = []
    for low, high in pairwise(CONFIDENCE_EDGES):
        chosen = ratios[(confidences >= low) & (confidences < high)]
        if len(chosen) < 30:
            continue
        span = f"{low:.2f} to {min(high, 1.0):.2f}"
        rows.append(
            [name, span, str(len(chosen)), percent(robust_sd(chosen)), percent(rms(chosen))]
        )
    return rows


def joint_row(name: str, ratios: Array) -> list[str]:
    firsts = range(Coco.LEFT_SHOULDER, Coco.LEFT_ANKLE + 1, 2)
    return [name, *(percent(robust_sd(ratios[:, :, first : first + 2])) for first in firsts)]


def compare(estimate: Array, reference: Array) -> str:
    error = estimate - reference
    return f"{np.nanmean(error):+.0f} ± {np.nanstd(error):.0f}"


def angle_rows(seen: dict[str, Seen], truths: dict[str, Array], truth: Array) -> list[list[str]]:
    yolo, mediapipe = (seen[name] for name in DETECTORS)
    rows = []
    for angle in ANGLES:
        i = ANGLE_INDEX[angle]
        span = f"{np.nanmin(truth[:, i]):.0f} to {np.nanmax(truth[:, i]):.0f}"
        agreement = compare(*(truths[name][:, i] for name in DETECTORS))
        for camera in range(N_CAMERAS):
            views = (mediapipe.world_deg, mediapipe.planar_deg, yolo.planar_deg)
            errors = [compare(view[camera, :, i], truth[:, i]) for view in views]
            trusted = percent(np.mean(yolo.planar_trusted[camera, :, i]))
            rows.append([angle, f"cam{camera + 1}", span, agreement, *errors, trusted])
    return rows


def coverage_rows(seen: dict[str, Seen], truth: Array) -> list[list[str]]:
    columns = [ANGLE_INDEX[name] for name in (*ANGLES, "left_hip", "right_hip")]
    rows = []
    for name, what in ((DETECTORS[0], "planar"), (DETECTORS[1], "planar"), (DETECTORS[1], "world")):
        value = getattr(seen[name], f"{what}_deg")[..., columns]
        stated = getattr(seen[name], f"{what}_sd_deg")[..., columns]
        trusted = getattr(seen[name], f"{what}_trusted")[..., columns] & np.isfinite(value)
        error = (value - truth[:, columns])[trusted]
        inside = percent(float(np.mean(np.abs(error) <= 2 * stated[trusted])))
        share = percent(trusted.mean())
        sizes = f"{rms(error):.0f}", f"{np.median(stated[trusted]):.0f}"
        rows.append([name, what, share, *sizes, inside])
    return rows


def camera_rows(
    cameras: Sequence[Camera], points_mm: Array, seen: dict[str, Seen]
) -> list[list[str]]:
    rows = []
    for number, camera in enumerate(cameras):
        down = np.degrees(np.arcsin(-camera.rotation.T[2] @ -_BACKWARDS))
        depth_mm = np.median(in_camera(camera, points_mm)[..., 2])
        stature_px = camera.focal_px[0] * stature_mm(points_mm) / depth_mm
        row = [f"cam{number + 1}", f"{stature_px:.0f}", f"{down:.0f}"]
        row.append(f"{np.median(true_yaw_deg(camera, points_mm)):.0f}")
        for one in seen.values():
            keypoints_px = one.keypoints_px[number]
            errors_px = np.linalg.norm(project(camera, points_mm) - keypoints_px, axis=-1)
            row.append(f"{np.nanmedian(one.yaw_deg[number]):.0f}")
            row.append(f"{np.nanmedian(errors_px[:, BODY]):.0f}")
            row.append(percent(jitter_ratio(keypoints_px, stature_px)))
        rows.append(row)
    return rows


def proportion_rows(points_mm: Array) -> list[list[str]]:
    segments = {
        "upper arm": (Coco.LEFT_SHOULDER, Coco.LEFT_ELBOW),
        "forearm": (Coco.LEFT_ELBOW, Coco.LEFT_WRIST),
        "shoulder to hip": (Coco.LEFT_SHOULDER, Coco.LEFT_HIP),
        "thigh": (Coco.LEFT_HIP, Coco.LEFT_KNEE),
        "shank": (Coco.LEFT_KNEE, Coco.LEFT_ANKLE),
    }
    stature = stature_mm(points_mm)
    rows = []
    for name, (a, b) in segments.items():
        left = np.median(np.linalg.norm(points_mm[:, a] - points_mm[:, b], axis=-1))
        right = np.median(np.linalg.norm(points_mm[:, a + 1] - points_mm[:, b + 1], axis=-1))
        rows.append([name, f"{left / stature:.3f}", f"{right / stature:.3f}"])
    for name, a in (("shoulders", Coco.LEFT_SHOULDER), ("hips", Coco.LEFT_HIP)):
        width = np.median(np.linalg.norm(points_mm[:, a] - points_mm[:, a + 1], axis=-1))
        rows.append([name, f"{width / stature:.3f}", ""])
    return rows


def shuffled_error_px(cameras: Sequence[Camera], seen: Seen) -> float:
    """Median reprojection error with transposed rotations: what a misread file would give."""
    wrong = [replace(camera, rotation=camera.rotation.T) for camera in cameras]
    points_mm = triangulate(wrong, seen.keypoints_px, seen.confidences)
    errors = [
        np.linalg.norm(project(c, points_mm) - k, axis=-1)
        for c, k in zip(wrong, seen.keypoints_px, strict=True)
    ]
    return float(np.median(errors))


def main() -> None:
    cameras = read_cameras(VIDEOS / "balance_calib.qca.txt")
    raw = {name: watch_all(name) for name in DETECTORS}
    weights = {name: np.maximum(seen.confidences, 0.01) for name, seen in raw.items()}
    points_mm = triangulate(
        [*cameras] * len(raw),
        np.concatenate([seen.keypoints_px for seen in raw.values()]),
        np.concatenate(list(weights.values())),
    )
    single = {n: triangulate(cameras, s.keypoints_px, weights[n]) for n, s in raw.items()}
    truth = bm.joint_angles_3d(points_mm, up=UP)
    truths = {name: bm.joint_angles_3d(points, up=UP) for name, points in single.items()}
    seen = {name: without_mistaken_frames(cameras, points_mm, s) for name, s in raw.items()}
    ratios = {
        name: np.stack(
            [residual_ratio(c, points_mm, k) for c, k in zip(cameras, s.keypoints_px, strict=True)]
        )
        for name, s in seen.items()
    }
    apart = (single[DETECTORS[0]] - single[DETECTORS[1]])[:, BODY] / stature_mm(points_mm)
    noise_header = ["detector", "confidence", "keypoints", "robust sd", "RMS"]
    angle_header = [
        "angle",
        "camera",
        "range",
        "the two triangulations",
        "MediaPipe world",
        "MediaPipe 2D",
        "YOLO 2D",
        "YOLO 2D trusted",
    ]
    per_detector = ("yaw", "median error px", "jitter")
    camera_header = ["camera", "stature px", "looks down", "true yaw"]
    camera_header += [f"{name} {what}" for name in DETECTORS for what in per_detector]
    coverage_header = ["detector", "angles", "trusted", "RMSE", "median stated sd", "within 2 sd"]
    report = TEMPLATE.format(
        shuffled=shuffled_error_px(cameras, raw[DETECTORS[0]]),
        mistaken=", ".join(
            f"{np.isnan(s.yaw_deg).sum()} of {s.yaw_deg.size} frames ({n})" for n, s in seen.items()
        ),
        stature=stature_mm(points_mm),
        reference=100 * robust_sd(apart) / 2.0,
        cameras=table(camera_header, camera_rows(cameras, points_mm, seen)),
        noise=table(noise_header, [r for n in seen for r in noise_rows(n, ratios[n], seen[n])]),
        joints=table(
            ["detector", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"],
            [joint_row(n, ratios[n]) for n in seen],
        ),
        angles=table(angle_header, angle_rows(seen, truths, truth)),
        coverage=table(coverage_header, coverage_rows(seen, truth)),
        proportions=table(["segment", "left", "right"], proportion_rows(points_mm)),
    )
    REPORT.write_text(report)
    print(report)


TEMPLATE = """# Angles from one camera against four calibrated cameras

Reproduce: `python benchmarks/multiview_angles.py` (needs the evaluation data, `SHARED_DATA`).

Four calibrated cameras film one person who balances on one leg, bends over and lifts the other leg
(BSD-3 clips of pose2sim, 1.6 s, 50 frames at 30 per second). Keypoints of both detectors in all
cameras are triangulated together (direct linear transform, lens distortion removed, weighted by
confidence, outliers down-weighted); that body is the reference. It is a hard clip: two cameras see
the person from behind, all look down, one is rolled, faces are blurred, no camera stands at the
side, and the legs leave every image plane.

The calibration is read correctly: with rotations transposed the median reprojection error
would be {shuffled:.0f} px. Frames in which a detector followed a bystander are left out below:
{mistaken}.

{cameras}

Yaw: 0 front or back, 90 side; *true* from the triangulated hips and shoulders.

## How far keypoints are from where the joint is

Per coordinate, as a fraction of stature (here {stature:.0f} mm, from the legs). The reference is
itself uncertain by about {reference:.1f}% (half the distance between the bodies that each detector
gives alone), and was fitted to these keypoints, which makes the figures a tenth too low.
*Jitter* above is what changes from frame to frame (fourth differences); most of the
error does not: the network puts the joint elsewhere, and stays there.

{noise}

Robust sd by joint, all confidences:

{joints}

Constants that follow, as fractions of the person's size in the image:

- measurement noise for a filter, `0.006 + 0.06 (1 - confidence)`: the jitter, and the growth of the
  error with falling confidence;
- an error that no filter removes, 0.012, to be added in quadrature to a filtered keypoint's sd
  before angles are taken. This clip shows about 0.012 (MediaPipe full) to 0.020 (YOLO11n,
  here with dequantised weights) beyond the reference's own error, so 0.012 is too little for YOLO
  on a clip like this one; it is one person and 1.6 s. For a knee 0.012 means 6 to 7 degrees, as
  inertial sensors found for MediaPipe from the side (6.4 degrees, iris.uniecampus.it 11389/91575).

## Angles against the triangulated ones

Mean ± standard deviation of the difference, degrees. *The two triangulations*: YOLO's minus
MediaPipe's body, each from all four cameras, that is how well this reference knows the angle.

{angles}

MediaPipe's world angles come closest: within about 15 degrees but for a few views, which is as
well as the reference knows these angles. In the image plane the raised right arm and the lifted
right leg are wrong by tens of degrees, because they point towards or away from the camera: most
of those frames are marked untrusted. No camera is a side view, so no 2D knee is trusted at all;
side views are judged in angle_accuracy.md.

## Error bars

Elbows, knees and hips, trusted values only. The 2D standard deviations are the filter's as it
states them; few 2D values are trusted here (elbows), and where a network misplaces a whole arm with
full confidence no error bar of a single camera holds. World landmarks: the 0.035 m per coordinate
in the code were chosen on this one person, so this row is no independent check. What the reference
itself is uncertain by counts as error.

{coverage}

## Proportions

Segment lengths over stature, for `camera_view`.

{proportions}
"""


if __name__ == "__main__":
    main()
