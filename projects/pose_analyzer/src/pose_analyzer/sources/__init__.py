"""Where frames come from."""

from pathlib import Path

from pose_analyzer.ports import FrameSource
from pose_analyzer.sources.allow_list import AllowedSource, SourceKind, resolve_source
from pose_analyzer.sources.live_source import (
    CameraConfig,
    LiveSource,
    open_live_source,
)
from pose_analyzer.sources.nvdec import nvdec_available
from pose_analyzer.sources.stills import StillAt, stills
from pose_analyzer.sources.video_chunks import open_chunk
from pose_analyzer.sources.video_file import VideoFileSource
from pose_analyzer.sources.video_plan import get_video_duration, plan_video


def open_source(path: str | Path) -> FrameSource:
    """Open a recorded video; see `VideoFileSource` for what may go wrong."""
    return VideoFileSource(Path(path))


__all__ = [
    "AllowedSource",
    "CameraConfig",
    "LiveSource",
    "SourceKind",
    "StillAt",
    "VideoFileSource",
    "get_video_duration",
    "nvdec_available",
    "open_chunk",
    "open_live_source",
    "open_source",
    "plan_video",
    "resolve_source",
    "stills",
]
