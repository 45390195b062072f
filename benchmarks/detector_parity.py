"""Compare our detectors with the libraries' own calls on 50 real frames.

python benchmarks/detector_parity.py --data ../shared/data --write docs/reports/detector_parity.md
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision

from pose_analyzer.backends import MediaPipePoseDetector, OnnxBackend, export_onnx
from pose_analyzer.backends._ultralytics import load_pose_network
from pose_analyzer.backends.mediapipe import Mode
from pose_analyzer.backends.yolo_torch import TorchBackend
from pose_analyzer.pose_detector import YOLOPoseDetector
from pose_analyzer.sources import open_source
from pose_analyzer.types import Frame, Pose

CONFIDENCE, IOU = 0.5, 0.45
CLIPS = (
    "squat_barbell_front_926p60",
    "deadlift_34view_1080p60",
    "pushup_34view_reps_562p30",
    "ohp_dumbbell_side_720x408p30",
    "arnoldpress_front_1080p60",
    "jumpingjack_front_720p30",
    "walk_side_sports2d_994p30",
    "cricket_batting_side_848p30",
    "balance_calib_cam02_1920p60",
    "multi_balance_2people_cam02_1920p60",
)
FRAMES_PER_CLIP = 5
KEYPOINTS, CONFIDENCES = "keypoints (px)", "confidences"

Person = dict[str, np.ndarray]
"""Quantities of one person by name."""
Clips = Sequence[Sequence[Frame]]


@dataclass(frozen=True)
class Comparison:
    """One of our detectors against the library it is built on."""

    ours: str
    reference: str
    n_frames: int
    n_people: int
    n_frames_with_other_count: int
    """Frames in which the two do not find the same number of people."""
    deviations: dict[str, tuple[float, float]]
    """Largest and median absolute difference of each quantity."""


def sample_frames(videos: Path) -> Clips:
    """Evenly spaced frames of each clip, without the last few, which some containers lack."""
    return [_spread(videos / f"{clip}.mp4") for clip in CLIPS]


def _spread(path: Path) -> list[Frame]:
    source = open_source(path)
    last = (source.info.n_frames or 0) - 5
    wanted = set(np.linspace(0, last, FRAMES_PER_CLIP, dtype=int).tolist())
    return [frame for frame in source.frames() if frame.index in wanted]


def compare_yolo(
    detector: YOLOPoseDetector, label: str, weights: Path, config_dir: Path, clips: Clips
) -> Comparison:
    """Compare with `ultralytics.YOLO.predict`, frame by frame."""
    model = load_pose_network(weights, config_dir)
    found, expected = [], []
    for frame in (frame for clip in clips for frame in clip):
        result = model.predict(
            frame.image_bgr, conf=CONFIDENCE, iou=IOU, imgsz=640, device="cpu", verbose=False
        )[0]
        boxes, keypoints = result.boxes.data.numpy(), result.keypoints.data.numpy()
        expected.append(
            [
                _yolo_person(k[:, :2], k[:, 2], b[:4], b[4])
                for b, k in zip(boxes, keypoints, strict=True)
            ]
        )
        found.append(
            [
                _yolo_person(p.keypoints_px, p.confidences, p.box_px, p.score)
                for p in detector.detect([frame.image_bgr])[0]
            ]
        )
    return _compare(label, "ultralytics predict", found, expected)


def _yolo_person(
    keypoints: np.ndarray, confidences: np.ndarray, box: np.ndarray, score: float
) -> Person:
    return {
        KEYPOINTS: keypoints,
        CONFIDENCES: confidences,
        "box (px)": box,
        "score": np.array([score]),
    }


def compare_mediapipe(bundle: Path, mode: Mode, clips: Clips) -> Comparison:
    """Compare with `PoseLandmarker.detect` or `detect_for_video` called directly."""
    options = vision.PoseLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(bundle)),
        running_mode=vision.RunningMode[mode.upper()],
    )
    found, expected = [], []
    for clip in clips:
        ours = MediaPipePoseDetector(bundle, mode=mode)
        with vision.PoseLandmarker.create_from_options(options) as landmarker:
            for frame in clip:
                rgb = cv2.cvtColor(frame.image_bgr, cv2.COLOR_BGR2RGB)
                image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=rgb)
                if mode == "image":
                    result = landmarker.detect(image)
                else:
                    result = landmarker.detect_for_video(image, round(frame.time_s * 1000))
                expected.append(_direct_people(result, frame))
                poses = ours.detect([frame.image_bgr], [frame.time_s])[0]
                found.append([_mediapipe_person(pose) for pose in poses])
        ours.close()
    return _compare(f"{bundle.stem}, {mode} mode", "PoseLandmarker", found, expected)


def _direct_people(result: Any, frame: Frame) -> list[Person]:  # noqa: ANN401
    height, width = frame.image_bgr.shape[:2]
    return [
        {
            KEYPOINTS: np.array([(p.x * width, p.y * height) for p in landmarks]),
            CONFIDENCES: np.array([(p.visibility, p.presence) for p in landmarks]),
            "world (m)": np.array([(p.x, p.y, p.z) for p in world]),
        }
        for landmarks, world in zip(result.pose_landmarks, result.pose_world_landmarks, strict=True)
    ]


def _mediapipe_person(pose: Pose) -> Person:
    marks = pose.landmarks
    assert marks is not None
    return {
        KEYPOINTS: marks.image_px[:, :2],
        CONFIDENCES: np.stack([marks.visibility, marks.presence], axis=1),
        "world (m)": marks.world_m,
    }


def _compare(
    ours: str, reference: str, found: list[list[Person]], expected: list[list[Person]]
) -> Comparison:
    differences: dict[str, list[np.ndarray]] = {}
    n_people = 0
    for mine, theirs in zip(found, expected, strict=True):
        for person, same in zip(mine, theirs, strict=False):
            n_people += 1
            for what, values in person.items():
                differences.setdefault(what, []).append(np.abs(values - same[what]))
    return Comparison(
        ours,
        reference,
        n_frames=len(found),
        n_people=n_people,
        n_frames_with_other_count=sum(
            len(mine) != len(theirs) for mine, theirs in zip(found, expected, strict=True)
        ),
        deviations={
            what: (float(np.max(values)), float(np.median(values)))
            for what, values in differences.items()
        },
    )


def compare_all(data: Path, work: Path) -> list[Comparison]:
    """Every detector whose weights are in the data folder."""
    clips = sample_frames(data / "videos")
    weights, onnx = data / "models/yolo11n-pose.pt", work / "yolo11n-pose.onnx"
    export_onnx(weights, onnx, work)
    comparisons = [
        compare_yolo(
            YOLOPoseDetector(backend, confidence=CONFIDENCE, iou=IOU), label, weights, work, clips
        )
        for label, backend in (
            ("yolo11n-pose, ONNX Runtime", OnnxBackend(onnx)),
            ("yolo11n-pose, PyTorch", TorchBackend(weights, work)),
        )
    ]
    for variant in ("lite", "full"):
        bundle = data / f"models/pose_landmarker_{variant}.task"
        modes: tuple[Mode, ...] = ("image", "video")
        comparisons += [compare_mediapipe(bundle, mode, clips) for mode in modes]
    return comparisons


def report(comparisons: Sequence[Comparison]) -> str:
    """Markdown with one row per detector and quantity."""
    rows = [
        f"| {c.ours} | {c.reference} | {c.n_frames} / {c.n_people} | "
        f"{c.n_frames_with_other_count} | {what} | {largest:.2g} | {median:.2g} |"
        for c in comparisons
        for what, (largest, median) in c.deviations.items()
    ]
    packages = ("ultralytics", "torch", "onnxruntime", "mediapipe")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return "\n".join(
        [
            "# Our detectors against the libraries' own calls",
            "",
            f"{len(CLIPS)} clips of real people, {FRAMES_PER_CLIP} evenly spaced frames of each. "
            f"YOLO at confidence {CONFIDENCE} and IoU {IOU}, longer side 640 px. Required: "
            "keypoints within 1 px, confidences within 0.01; MediaPipe equal.",
            "",
            f"Machine: 2-core x86-64 CPU, no GPU. {versions}.",
            "",
            "Reproduce: `python benchmarks/detector_parity.py --data $SHARED_DATA "
            "--write docs/reports/detector_parity.md`",
            "",
            "| ours | reference | frames / people | frames with another count of people "
            "| quantity | largest difference | median difference |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with models and videos")
    parser.add_argument("--write", type=Path, help="report file; stdout without it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        text = report(compare_all(arguments.data, Path(work)))
    if arguments.write:
        arguments.write.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
