"""From the source a client names to the reader of it, if the settings allow it."""

from functools import partial

from pose_analyzer.ports import FrameReceiver, SourceReader
from pose_analyzer.settings import Settings
from pose_analyzer.sources.allow_list import AllowedSource, SourceKind, resolve_source
from pose_analyzer.sources.live_source import open_live_source
from pose_analyzer.stream_manager import Source


def open_stream_source(text: str, settings: Settings) -> tuple[str, Source]:
    """Find the source, and how it may be shown.

    Raises
    ------
    SourceNotAllowedError
        The settings do not allow it.
    UnreadableSourceError
        There is no such file.
    """
    allowed = resolve_source(text, settings.allowed_sources)
    return allowed.name, Source(partial(_open, allowed), allowed.kind is SourceKind.FILE)


def _open(allowed: AllowedSource, receiver: FrameReceiver, device: str) -> SourceReader:
    return open_live_source(allowed, receiver, device)
