"""Detectors by name: which network, run by what."""

from pose_analyzer.backends.factory import (
    DETECTOR_NAMES,
    check_detector,
    create_chunk_detector,
    create_detector,
    create_pipeline,
    resolve_model,
)
from pose_analyzer.backends.mediapipe import MediaPipePoseDetector
from pose_analyzer.backends.onnx import OnnxBackend, export_onnx
from pose_analyzer.ports import ChunkDetector

__all__ = [
    "DETECTOR_NAMES",
    "ChunkDetector",
    "MediaPipePoseDetector",
    "OnnxBackend",
    "check_detector",
    "create_chunk_detector",
    "create_detector",
    "create_pipeline",
    "export_onnx",
    "resolve_model",
]
