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
from pose_analyzer.sources.video_file import VideoFileSource


def open_source(path: str | Path) -> FrameSource:
    """Open a recorded video; see `VideoFileSource` for what may go wrong."""
    return VideoFileSource(Path(path))


__all__ = [
    "AllowedSource",
    "CameraConfig",
    "LiveSource",
    "SourceKind",
    "VideoFileSource",
    "nvdec_available",
    "open_live_source",
    "open_source",
    "resolve_source",
]
