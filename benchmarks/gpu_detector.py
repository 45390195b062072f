"""The YOLO detector on a GPU: agreement with the CPU and frames per second.

Every picture of a folder goes through the whole detector (letterbox, network, decoding) in
PyTorch on the CPU, on the GPU in FP32 and on the GPU in FP16; differences are taken person by
person in the order of score. Speed is for the same call at several batch sizes, images in host
memory.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from pose_analyzer.backends.yolo_torch import TorchBackend
from pose_analyzer.pose_detector import YOLOPoseDetector
from pose_analyzer.types import Pose
from shared_utils.gpu import read_gpus


def differences(expected: list[list[Pose]], found: list[list[Pose]]) -> dict[str, float]:
    keypoints, confidences, other_count = [0.0], [0.0], 0
    for ours, theirs in zip(expected, found, strict=True):
        if len(ours) != len(theirs):
            other_count += 1
            continue
        for a, b in zip(ours, theirs, strict=True):
            keypoints.append(float(np.abs(a.keypoints_px - b.keypoints_px).max()))
            confidences.append(float(np.abs(a.confidences - b.confidences).max()))
    return {
        "frames_with_another_count": other_count,
        "keypoints_px_max": max(keypoints),
        "keypoints_px_median": statistics.median(keypoints),
        "confidence_max": max(confidences),
    }


def frames_per_s(detector: YOLOPoseDetector, images: list[np.ndarray], batch: int) -> float:
    picked = [images[i % len(images)] for i in range(batch)]
    for _ in range(5):
        detector.detect(picked)
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < 3.0:
        detector.detect(picked)
        n += batch
    return n / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=Path, required=True, help="folder of JPEG pictures")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    images = [cv2.imread(str(path)) for path in sorted(arguments.frames.glob("*.jpg"))]
    assert images
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder)
        cpu = YOLOPoseDetector(TorchBackend(arguments.weights, config))
        expected = [cpu.detect([image])[0] for image in images]
        result: dict[str, object] = {
            "device": torch.cuda.get_device_name(0),
            "torch": torch.__version__,
            "gpus": [str(gpu) for gpu in read_gpus()],
            "frames": len(images),
            "size": list(images[0].shape[:2]),
            "people": sum(len(people) for people in expected),
        }
        for label, half in (("fp32", False), ("fp16", True)):
            backend = TorchBackend(arguments.weights, config, device="cuda:0", half=half)
            detector = YOLOPoseDetector(backend)
            found = [detector.detect([image])[0] for image in images]
            result[label] = differences(expected, found) | {
                f"frames_per_s_batch_{batch}": round(frames_per_s(detector, images, batch), 1)
                for batch in (1, 4, 16)
            }
            detector.close()
        result["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
    arguments.out.write_text(json.dumps(result, indent=2), encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
