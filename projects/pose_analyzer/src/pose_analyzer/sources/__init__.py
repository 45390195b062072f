"""Where frames come from."""

from pathlib import Path

from pose_analyzer.ports import FrameSource
from pose_analyzer.sources.video_file import VideoFileSource


def open_source(path: str | Path) -> FrameSource:
    """Open a recorded video; see `VideoFileSource` for what may go wrong."""
    return VideoFileSource(Path(path))


__all__ = ["VideoFileSource", "open_source"]
