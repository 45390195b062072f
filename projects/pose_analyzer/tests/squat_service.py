"""A service whose detector sees somebody who squats three times."""

import numpy as np

from pose_analyzer.backends.cpu_pipeline import CpuFramePipeline
from pose_analyzer.settings import Settings
from pose_analyzer.types import Pose

from .builders import FakeDetector, squat_pose, squat_progress
from .live_server import png

PICTURE = png(np.zeros((400, 640, 3), np.uint8))
MAX_FRAME_BYTES = 100_000


def squatter(time_s: float) -> list[Pose]:
    """What the detector of these tests sees: somebody who squats three times."""
    return [squat_pose(squat_progress(time_s, n_repetitions=3))]


def pipeline(model: str, settings: Settings) -> CpuFramePipeline:
    return CpuFramePipeline(
        lambda: FakeDetector(squatter), per_stream=False, n_workers=2, max_pixels=1_000_000
    )


def settings(**changes: object) -> Settings:
    defaults = {
        "detector": "yolo11n-pose",
        "stream_max_frame_bytes": MAX_FRAME_BYTES,
        "analysis_processes": 0,
        "min_stream_fps": 0.001,
    }
    return Settings(**(defaults | changes))
