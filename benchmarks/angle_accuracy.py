"""How close the image-plane angles come to the angles in space, and whether their error bars hold.

Projects the recorded people of UI-PRMD into a camera, measures angles as the product does, and
compares them with the angles of the recorded points. Constants of `biomechanics` that are fitted
here are judged on people they were not fitted on (leave one subject out).

Run: ``python benchmarks/angle_accuracy.py`` with ``SHARED_DATA`` naming the evaluation data.
Writes docs/reports/angle_accuracy.md and .png.
"""

import os
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares, minimize

from pose_analyzer import biomechanics as bm
from pose_analyzer.camera_view import initial_view_state, update_view
from pose_analyzer.skeletons import Coco

Array = np.ndarray

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
REPORT = REPOSITORY / "docs" / "reports" / "angle_accuracy.md"

UP = np.array([0.0, 0.0, 1.0])
DISTANCE_MM, CAMERA_HEIGHT_MM, FOCAL_PX = 3000.0, 1000.0, 1470.0
WIDTH_PX, HEIGHT_PX = 1920, 1080
FRAME_STEP, FRAME_S = 3, 0.06
YAWS_DEG = (0, 15, 30, 45, 60, 75, 90)
# Keypoint errors as fractions of stature: an offset that stays for a whole repetition (the model
# places the joint elsewhere) and what is left of frame-to-frame noise. See multiview_angles.md.
OFFSET_SD, NOISE_SD = 0.012, 0.008
STATURE_PX = FOCAL_PX * 1700.0 / DISTANCE_MM
KEYPOINT_SD_PX = STATURE_PX * np.hypot(OFFSET_SD, NOISE_SD)

KINDS = {
    "shoulder": (0, 1),
    "elbow": (2, 3),
    "hip": (4, 5),
    "knee": (6, 7),
    "trunk": (10,),
    "neck": (11,),
}
MIN_VARIANCE_DEG2 = 1e-3
# Few frames from 45 degrees look as if from the side, and there knees are worse than in the many
# from 60: in the fit a view's frames weigh by their number to this power, negative.
VIEW_POWERS = {"knee": 0.5}
FRONTAL_MOVEMENT = "side_lunge"


@dataclass(frozen=True)
class Sample:
    """Frames of all repetitions seen from all yaws, stacked."""

    subject: Array
    movement: Array
    yaw_deg: Array
    """Signed: the camera stands on the person's left where positive."""
    keypoints_px: Array
    noisy_px: Array
    true_deg: Array
    points_mm: Array
    stature_px: Array
    """Estimated from the noisy keypoints, as is the view."""
    view_deg: Array
    trusted: Array
    stated_sd_deg: Array


def project(points_mm: Array, yaw_deg: float) -> Array:
    """Pixels of the points in an upright camera that looks at the person from `yaw_deg`."""
    left = np.nanmedian(
        points_mm[:, Coco.LEFT_HIP]
        - points_mm[:, Coco.RIGHT_HIP]
        + points_mm[:, Coco.LEFT_SHOULDER]
        - points_mm[:, Coco.RIGHT_SHOULDER],
        axis=0,
    )
    left = np.array([left[0], left[1], 0.0]) / np.hypot(left[0], left[1])
    forward = np.cross(left, UP)
    yaw = np.radians(yaw_deg)
    towards_camera = np.cos(yaw) * forward + np.sin(yaw) * left
    pelvis = np.nanmedian(points_mm[:, [Coco.LEFT_HIP, Coco.RIGHT_HIP]], axis=(0, 1))
    camera = pelvis + DISTANCE_MM * towards_camera
    camera[2] = np.nanmin(points_mm[..., 2]) + CAMERA_HEIGHT_MM
    axes = np.stack([np.cross(-towards_camera, UP), -UP, -towards_camera])
    seen = (points_mm - camera) @ axes.T
    centre = np.array([WIDTH_PX / 2, HEIGHT_PX / 2])
    keypoints_px: Array = FOCAL_PX * seen[..., :2] / seen[..., 2:] + centre
    return keypoints_px


def follow(noisy_px: Array) -> list[Array]:
    """Stature, view, trust and stated sd of one repetition, frame by frame as the product does."""
    sd_px, confidences = np.full(17, KEYPOINT_SD_PX), np.full(17, 0.9)
    state = initial_view_state()
    rows = []
    for index, keypoints_px in enumerate(noisy_px):
        state, angles, view = bm.measure_angles(
            state, keypoints_px, sd_px, confidences, index * FRAME_S
        )
        rows.append((state.stature_px, view.yaw_deg, angles.trusted, angles.sd_deg))
    return [np.array(column) for column in zip(*rows, strict=True)]


def sample(repetitions: dict[str, Array]) -> Sample:
    rng = np.random.default_rng(7)
    columns = []
    for number, (key, points) in enumerate(repetitions.items()):
        movement, subject, *_ = key.split("/")
        points_mm = points[::FRAME_STEP].astype(np.float64)
        true_deg = bm.joint_angles_3d(points_mm, up=UP)
        for view_number, yaw in enumerate(YAWS_DEG):
            signed_yaw = yaw if (number + view_number) % 2 else -yaw
            clean = project(points_mm, signed_yaw)
            offset = rng.normal(0.0, OFFSET_SD * STATURE_PX, (1, 17, 2))
            noisy = clean + offset + rng.normal(0.0, NOISE_SD * STATURE_PX, clean.shape)
            n = len(clean)
            labels = [np.full(n, subject), np.full(n, movement), np.full(n, signed_yaw)]
            columns.append([*labels, clean, noisy, true_deg, points_mm, *follow(noisy)])
    return Sample(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def fit_lateral_offsets(data: Sample, chosen: Array) -> Array:
    """Least-squares depth of shoulders, knees and ankles from noise-free side views."""
    rows = np.flatnonzero(chosen & (np.abs(data.yaw_deg) == 90))[::5]

    def residuals(offsets: Array) -> Array:
        estimate = bm.anatomical_angles_2d(
            data.keypoints_px[rows], data.stature_px[rows], data.view_deg[rows], tuple(offsets)
        )
        errors: Array = (estimate - data.true_deg[rows])[:, 4:8].ravel()
        return errors

    start = np.zeros(5)
    offsets: Array = least_squares(residuals, start, loss="soft_l1", f_scale=25.0).x
    return offsets


def projection_features(data: Sample, kind: str, value_deg: Array) -> Array:
    """Stack what the stated variance is linear in beside the keypoints' part."""
    columns = list(KINDS[kind])
    extension = bm.limb_extension(data.noisy_px, data.stature_px)[:, columns]
    frontal = np.broadcast_to(np.cos(np.radians(data.view_deg))[:, None], extension.shape)
    hidden = 1.0 - np.minimum(extension, 1.0)
    out_of_plane = hidden * np.cos(np.radians(value_deg[:, columns])) ** 2
    parts = [np.ones_like(hidden), frontal**2, out_of_plane]
    if kind == "elbow":
        parts.append(np.maximum(bm.SHARPEST_ELBOW_DEG - value_deg[:, columns], 0.0) ** 2)
    features: Array = np.stack(parts, axis=-1)
    return features


def fit_projection_sd(
    data: Sample, clean_deg: Array, noisy_deg: Array, use: Array, kind: str
) -> Array:
    """Fit variances by maximum likelihood, then widen them until 95% lie within two sd.

    The normal likelihood weighs small variances as it should; the errors have heavier tails.
    A view's frames weigh by a power of how few they are, see `VIEW_POWERS`.
    """
    columns = list(KINDS[kind])
    error_deg = (clean_deg - data.true_deg)[:, columns]
    use = use[:, columns] & np.isfinite(error_deg)
    features = projection_features(data, kind, noisy_deg)[use][::10]
    squared = error_deg[use][::10] ** 2
    yaw_deg = np.broadcast_to(np.abs(data.yaw_deg)[:, None], use.shape)[use][::10]
    _, view, n_frames = np.unique(yaw_deg, return_inverse=True, return_counts=True)
    weight = n_frames[view] ** -VIEW_POWERS.get(kind, 0.0)
    weight /= weight.sum()

    def cost(log_variances: Array) -> tuple[float, Array]:
        parts = features * np.exp(log_variances)
        variance = parts.sum(axis=1) + MIN_VARIANCE_DEG2
        slope = weight * (1.0 / variance - squared / variance**2)
        return float(weight @ (np.log(variance) + squared / variance)), slope @ parts

    n_parts = features.shape[1]
    start = np.log([100.0, 100.0, 100.0, 1.0][:n_parts])
    variances = np.exp(minimize(cost, start, jac=True, bounds=[(-3.0, 10.0)] * n_parts).x)
    standardised = np.sqrt(squared / (features @ variances + MIN_VARIANCE_DEG2))
    order = np.argsort(standardised)
    quantile = np.interp(0.95, np.cumsum(weight[order]), standardised[order])
    sds: Array = np.sqrt(variances) * max(1.0, quantile / 2.0)
    return sds


def is_candidate(data: Sample) -> Array:
    """Frames that could be trusted or nearly so: the sd has to hold there."""
    extension = bm.limb_extension(data.noisy_px, data.stature_px)
    near_view = np.ones(extension.shape, dtype=bool)
    near_view[:, :4] = extension[:, :4] > 0.65
    near_view[:, 4:] = (data.view_deg > 55.0)[:, None]
    return near_view


@dataclass(frozen=True)
class Judged:
    """Each subject measured with constants fitted on the others."""

    clean_deg: Array
    """From keypoints without error."""
    noisy_deg: np.ndarray
    projection_variance: Array


def leave_one_subject_out(data: Sample) -> Judged:
    judged = Judged(*(np.full_like(data.true_deg, np.nan) for _ in range(3)))
    candidate = is_candidate(data)
    for subject in np.unique(data.subject):
        test = data.subject == subject
        offsets, sds = fit(data, candidate, ~test)
        judged.clean_deg[test] = estimates(data, data.keypoints_px, offsets)[test]
        judged.noisy_deg[test] = estimates(data, data.noisy_px, offsets)[test]
        for kind, columns in KINDS.items():
            features = projection_features(data, kind, judged.noisy_deg)[test]
            judged.projection_variance[np.ix_(test, columns)] = features @ sds[kind] ** 2
    return judged


def estimates(data: Sample, keypoints_px: Array, offsets: Array) -> Array:
    return bm.anatomical_angles_2d(keypoints_px, data.stature_px, data.view_deg, tuple(offsets))


def fit(data: Sample, candidate: Array, chosen: Array) -> tuple[Array, dict[str, Array]]:
    """All fitted constants from the chosen frames: lateral offsets, and three sds per kind."""
    offsets = fit_lateral_offsets(data, chosen & (data.movement != FRONTAL_MOVEMENT))
    clean_deg = estimates(data, data.keypoints_px, offsets)
    noisy_deg = estimates(data, data.noisy_px, offsets)
    use = candidate & chosen[:, None]
    return offsets, {k: fit_projection_sd(data, clean_deg, noisy_deg, use, k) for k in KINDS}


def rms(values: Array) -> float:
    return float(np.sqrt(np.nanmean(np.square(values)))) if np.isfinite(values).any() else np.nan


def independent_angles(points_mm: Array) -> Array:
    """Compute the joint angles by arccos of normalised dot products, the inclinations by arctan."""
    c = Coco
    triplets = (
        (c.LEFT_ELBOW, c.LEFT_SHOULDER, c.LEFT_HIP),
        (c.RIGHT_ELBOW, c.RIGHT_SHOULDER, c.RIGHT_HIP),
        (c.LEFT_SHOULDER, c.LEFT_ELBOW, c.LEFT_WRIST),
        (c.RIGHT_SHOULDER, c.RIGHT_ELBOW, c.RIGHT_WRIST),
        (c.LEFT_SHOULDER, c.LEFT_HIP, c.LEFT_KNEE),
        (c.RIGHT_SHOULDER, c.RIGHT_HIP, c.RIGHT_KNEE),
        (c.LEFT_HIP, c.LEFT_KNEE, c.LEFT_ANKLE),
        (c.RIGHT_HIP, c.RIGHT_KNEE, c.RIGHT_ANKLE),
    )
    out = np.full((len(points_mm), 12), np.nan)
    for column, (a, b, d) in enumerate(triplets):
        first, second = points_mm[:, a] - points_mm[:, b], points_mm[:, d] - points_mm[:, b]
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        second /= np.linalg.norm(second, axis=1, keepdims=True)
        out[:, column] = np.degrees(np.arccos(np.clip((first * second).sum(axis=1), -1.0, 1.0)))
    hips = points_mm[:, [c.LEFT_HIP, c.RIGHT_HIP]].mean(axis=1)
    shoulders = points_mm[:, [c.LEFT_SHOULDER, c.RIGHT_SHOULDER]].mean(axis=1)
    ears = points_mm[:, [c.LEFT_EAR, c.RIGHT_EAR]].mean(axis=1)
    for column, segment in ((10, shoulders - hips), (11, ears - shoulders)):
        across = np.hypot(segment[:, 0], segment[:, 1])
        out[:, column] = np.degrees(np.arctan2(across, segment[:, 2]))
    return out


def is_trusted(data: Sample, sd_deg: Array) -> Array:
    """Apply the product's rule, with the stated sd of the held-out fit."""
    extension = bm.limb_extension(data.noisy_px, data.stature_px)
    trusted = (sd_deg <= bm.MAX_TRUSTED_SD_DEG) & (extension >= bm.MIN_EXTENSION)
    trusted[:, 4:] &= (data.view_deg >= bm.MIN_SAGITTAL_YAW_DEG)[:, None]
    return trusted


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def side_view_table(data: Sample, judged: Judged) -> str:
    planar = bm.joint_angles_2d(data.keypoints_px) - data.true_deg
    anatomical = judged.clean_deg - data.true_deg
    side = np.abs(data.yaw_deg) == 90
    near_left = data.yaw_deg > 0
    rows = []
    movements = [*sorted(set(data.movement)), "all but side_lunge"]
    for movement in movements:
        is_movement = data.movement == movement
        if movement == movements[-1]:
            is_movement = data.movement != FRONTAL_MOVEMENT
        chosen = side & is_movement
        row = [movement]
        for kind in ("hip", "knee"):
            left, right = KINDS[kind]
            for error in (planar, anatomical):
                near = np.where(near_left, error[:, left], error[:, right])
                both = error[:, [left, right]]
                row.append(f"{rms(near[chosen]):.1f} / {rms(both[chosen]):.1f}")
        rows.append(row)
    header = [
        "movement",
        "hip, image plane",
        "hip, anatomical",
        "knee, image plane",
        "knee, anatomical",
    ]
    return table(header, rows)


def outside_list(data: Sample, judged: Judged, trusted: Array, sd_deg: Array) -> str:
    """Name the rows of `view_table` that are not within 90% to 99%, with noise and without."""
    inside = np.abs(judged.noisy_deg - data.true_deg) <= 2 * sd_deg
    clean_error = np.abs(judged.clean_deg - data.true_deg)
    clean_inside = clean_error <= 2 * np.sqrt(judged.projection_variance)
    sentences = []
    for title, hits in (("Within 2 sd", inside), ("Noise-free", clean_inside)):
        found = []
        for kind, columns in KINDS.items():
            for yaw in YAWS_DEG:
                seen = np.abs(data.yaw_deg) == yaw
                use = (trusted & np.isfinite(clean_error))[seen][:, columns]
                share = 100 * hits[seen][:, columns][use].mean() if use.sum() >= 200 else 95.0
                if not 90.0 <= share <= 99.0:
                    found.append(f"{kind} {yaw} ({share:.1f}%)")
        sentences.append(f"{title}, outside 90% to 99%: {', '.join(found) or 'no row'}.")
    return "\n".join(sentences)


def view_table(data: Sample, judged: Judged, trusted: Array, sd_deg: Array) -> str:
    error = judged.noisy_deg - data.true_deg
    clean, projection_sd = judged.clean_deg - data.true_deg, np.sqrt(judged.projection_variance)
    rows = []
    for kind, columns in KINDS.items():
        cols = list(columns)
        for yaw in (*YAWS_DEG, "all"):
            seen = np.ones(len(data.yaw_deg), bool) if yaw == "all" else abs(data.yaw_deg) == yaw
            e, s, t = error[seen][:, cols], sd_deg[seen][:, cols], trusted[seen][:, cols]
            known = np.isfinite(e)
            t = t & known
            row = [kind, yaw, f"{100 * t.sum() / known.sum():.1f}%"]
            if t.sum() < 200:
                rows.append([*row, "", "", "", ""])
                continue
            covered = 100 * np.mean(np.abs(e[t]) <= 2 * s[t])
            alone = np.abs(clean[seen][:, cols][t]) <= 2 * projection_sd[seen][:, cols][t]
            figures = f"{rms(e[t]):.1f}", f"{np.median(s[t]):.1f}", f"{covered:.1f}%"
            rows.append([*row, *figures, f"{100 * alone.mean():.1f}%"])
    return table(
        ["angle", "yaw", "trusted", "RMSE", "median stated sd", "within 2 sd", "noise-free"], rows
    )


def subject_table(data: Sample, judged: Judged, trusted: Array, sd_deg: Array) -> str:
    inside = np.abs(judged.noisy_deg - data.true_deg) <= 2 * sd_deg
    rows = []
    for subject in np.unique(data.subject):
        row = [subject]
        for columns in KINDS.values():
            use = trusted[:, columns] & (data.subject == subject)[:, None]
            row.append(f"{100 * inside[:, columns][use].mean():.1f}%" if use.sum() > 200 else "")
        rows.append(row)
    return table(["held out", *KINDS], rows)


def yaw_table(data: Sample) -> str:
    rows = []
    for yaw in YAWS_DEG:
        estimate = data.view_deg[np.abs(data.yaw_deg) == yaw]
        low, middle, high = np.nanpercentile(estimate, [5, 50, 95])
        rows.append([yaw, f"{middle:.0f}", f"{low:.0f} to {high:.0f}"])
    return table(["true yaw", "estimated, median", "5% to 95%"], rows)


def microseconds(function: Callable[[], object], n: int = 2000) -> float:
    return min(timeit.repeat(function, number=n, repeat=3)) / n * 1e6


def cost_table(data: Sample) -> str:
    keypoints, sd, confidences = data.noisy_px[0], np.full(17, 8.0), np.full(17, 0.9)
    state, _, view = bm.measure_angles(initial_view_state(), keypoints, sd, confidences, 0.0)
    values, spread = bm.joint_angles_2d(keypoints), bm.angle_sd_2d(keypoints, sd)
    extension = bm.limb_extension(keypoints, state.stature_px)
    calls = {
        "joint_angles_2d": lambda: bm.joint_angles_2d(keypoints),
        "angle_sd_2d": lambda: bm.angle_sd_2d(keypoints, sd),
        "update_view": lambda: update_view(state, keypoints, sd, confidences, 0.1),
        "assess_angles": lambda: bm.assess_angles(values, spread, confidences, extension, view),
        "measure_angles (all of them)": lambda: bm.measure_angles(
            state, keypoints, sd, confidences, 0.1
        ),
    }
    return table(
        ["one person-frame", "microseconds"],
        [[name, f"{microseconds(call):.0f}"] for name, call in calls.items()],
    )


def plot(data: Sample, judged: Judged, trusted: Array, sd_deg: Array, path: Path) -> None:
    import matplotlib.pyplot as plt  # noqa: PLC0415 - the figures of the report do without it

    error = judged.noisy_deg - data.true_deg
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), sharex=True)
    for axis, (kind, columns) in zip(axes.flat, KINDS.items(), strict=True):
        cols = list(columns)
        at = [np.abs(data.yaw_deg) == yaw for yaw in YAWS_DEG]
        axis.plot(YAWS_DEG, [rms(error[seen][:, cols]) for seen in at], "o-", label="RMSE, all")
        axis.plot(
            YAWS_DEG,
            [np.sqrt(np.nanmean(sd_deg[seen][:, cols] ** 2)) for seen in at],
            "s--",
            label="stated sd, all",
        )
        share = axis.twinx()
        share.bar(
            YAWS_DEG, [100 * trusted[s][:, cols].mean() for s in at], width=6, alpha=0.2, color="k"
        )
        share.set_ylim(0, 100)
        axis.set_title(f"{kind} (bars: % trusted)", fontsize=9)
        axis.set_ylim(0, 60)
    axes[0, 0].legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("yaw of the camera, degrees (0 front, 90 side)", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def constants_table(offsets: Array, sds: dict[str, Array]) -> str:
    rows = [
        ["lateral offsets, all subjects", ", ".join(f"{v:.3f}" for v in offsets)],
        ["in the code", ", ".join(f"{v:.3f}" for v in bm.LATERAL_OFFSETS)],
    ]
    for kind, (first, *_) in KINDS.items():
        in_code = [v[first] for v in (bm.PLANE_SD_DEG, bm.FRONTAL_SD_DEG, bm.HIDDEN_SD_DEG)]
        label = "plane, frontal, hidden"
        if kind == "elbow":
            label += f", per degree beyond {bm.SHARPEST_ELBOW_DEG:.0f}"
            in_code.append(bm.BEYOND_SD_PER_DEG)
        rows.append([f"{kind}: {label}", ", ".join(f"{v:.1f}" for v in sds[kind])])
        rows.append(["in the code", ", ".join(f"{v:.1f}" for v in in_code)])
    return table(["constant", "value"], rows)


def main() -> None:
    with np.load(SHARED_DATA / "datasets" / "ui_prmd" / "coco17_3d_50hz.npz") as archive:
        repetitions = dict(archive)
    points = np.concatenate(list(repetitions.values())).astype(np.float64)
    difference = np.nanmax(np.abs(bm.joint_angles_3d(points, up=UP) - independent_angles(points)))
    data = sample(repetitions)
    judged = leave_one_subject_out(data)
    keypoint_sd = bm.angle_sd_2d(data.noisy_px, np.full(data.noisy_px.shape[:2], KEYPOINT_SD_PX))
    sd_deg = np.sqrt(judged.projection_variance + keypoint_sd**2)
    trusted = is_trusted(data, sd_deg)
    front = np.abs(data.yaw_deg) == 0
    front_trusted = 100 * data.trusted[front][:, 4:8].mean()
    all_frames = np.ones(len(data.subject), bool)
    report = TEMPLATE.format(
        n_frames=len(points),
        difference=difference,
        side=side_view_table(data, judged),
        front_trusted=front_trusted,
        n_front=front.sum(),
        views=view_table(data, judged, trusted, sd_deg),
        outside=outside_list(data, judged, trusted, sd_deg),
        subjects=subject_table(data, judged, trusted, sd_deg),
        yaws=yaw_table(data),
        costs=cost_table(data),
        constants=constants_table(*fit(data, is_candidate(data), all_frames)),
        offset=100 * OFFSET_SD,
        noise=100 * NOISE_SD,
        sd_px=KEYPOINT_SD_PX,
    )
    REPORT.write_text(report)
    plot(data, judged, trusted, sd_deg, REPORT.with_suffix(".png"))
    print(report)


TEMPLATE = """# Accuracy of the joint angles

Reproduce: `python benchmarks/angle_accuracy.py` (needs the evaluation data, `SHARED_DATA`).

Data: UI-PRMD, 700 repetitions of seven people, Vicon, 50 Hz. The recorded points are projected
into an upright perspective camera (1920 x 1080, focal length 1470 px, 3 m from the pelvis, 1 m
above the floor); the angles measured in the image are compared with the angles of the recorded
points. Lateral offsets and standard deviations are fitted on six people and judged on the seventh,
in turn. Not held out: the form of the depth correction, the form of the error model (least squares,
the same widened, and likelihood were compared) and the limits of trust (yaw, extension, largest sd)
were chosen with these tables in view, on the same seven people. The figures for held-out people are
therefore somewhat optimistic. Size of the keypoint errors: assumed, see below, not fitted.

## 3D angles against an independent formula

Largest difference from arccos of normalised dot products (arctan for the inclinations) over
{n_frames} frames and all angles: {difference:.1e} degrees.

## Side view, noise-free keypoints, against 3D

RMSE in degrees, near leg / both legs. *Image plane* is the bare projection (`joint_angles_2d`);
*anatomical* is what the product reports (`anatomical_angles_2d`): it adds the average depth of
shoulders, knees and ankles that a side view hides.

{side}

A side lunge leaves the sagittal plane: no side view can show its hip, and the stated standard
deviation has to say so (below, it is part of every row).

## Which angles each view is trusted with, and whether the error bars hold

Keypoints with realistic errors (per repetition and keypoint a fixed offset of sd {offset:.1f}% of
stature, per frame {noise:.1f}%, {sd_px:.1f} px in all; why so much: multiview_angles.md). Over all
movements, side lunge included. Yaw 0 is the front, 90 the side, half of the frames from the
person's left, half from the right. Error bars are those of the held-out fit. Rows with fewer than
200 trusted values are left blank. *Noise-free*: keypoints without error against the projection part
of the error bars alone.

The product's own flag, with the constants in the code: {front_trusted:.2f}% of hip and knee angles
are trusted in the front view ({n_front} frames).

{views}

Elbows seen from 75 and 90 degrees used to fail (77% and 76% within two sd): arms that come out of
the plane look bent more sharply than elbows bend (143 degrees, Boone & Azen 1979; 150, AAOS): at 0
to 40 degrees where 45 to 100 are true. What lacks to the sharpest possible elbow is now part of the
stated sd, so those frames are no longer trusted and elbows that a side view does show are trusted
as before. Knees from 45 degrees used to fail too (87%): the few that look as if from the side. The
fit now gives these frames more weight (inverse root of their number), which raises the knee's sd
where the estimated yaw is 65 to 70 degrees. Both remedies were chosen with this table in view.

{outside}

Few elbows are trusted from the side at all: most arms of this recording point forwards, and
UI-PRMD's arms are shorter (upper arm 0.155 of stature) than anthropometry says and detectors see
(0.186).

![RMSE and stated sd by yaw](angle_accuracy.png)

### Within 2 sd, by person held out

{subjects}

## Estimated yaw

Shoulders come closer when arms are raised, as in these squats; then a front view looks turned.

{yaws}

## Cost

{costs}

## Constants

{constants}
"""


if __name__ == "__main__":
    main()
