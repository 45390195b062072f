"""From the source a client names to the reader of it, if the settings allow it."""

from functools import partial
from pathlib import Path

from pose_analyzer.errors import NotAVideoError, UnreadableSourceError
from pose_analyzer.ports import FrameReceiver, SourceReader
from pose_analyzer.settings import Settings
from pose_analyzer.sources.allow_list import AllowedSource, SourceKind, resolve_source
from pose_analyzer.sources.live_source import open_live_source
from pose_analyzer.sources.video_file import VideoFileSource
from pose_analyzer.stream_manager import Source


def open_stream_source(text: str, settings: Settings) -> tuple[str, Source]:
    """Find the source, and how it may be shown.

    Raises
    ------
    SourceNotAllowedError
        The settings do not allow it.
    SourceNotFoundError
        There is no such file.
    NotAVideoError
        There is, but it holds no readable video.
    """
    allowed = resolve_source(text, settings.allowed_sources)
    if allowed.kind is SourceKind.FILE:
        try:
            VideoFileSource(Path(allowed.location))
        except UnreadableSourceError as error:
            raise NotAVideoError(allowed.name, error.reason) from error
    return allowed.name, Source(partial(_open, allowed), allowed.kind is SourceKind.FILE)


def _open(allowed: AllowedSource, receiver: FrameReceiver, device: str) -> SourceReader:
    return open_live_source(allowed, receiver, device)
