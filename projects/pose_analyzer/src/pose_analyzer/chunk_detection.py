"""The expensive part of a recorded video, one chunk at a time: frames -> poses."""

from collections.abc import Callable
from itertools import islice
from typing import Final

from pose_analyzer.chunk_aggregation import ChunkFrame, ChunkPoses, ChunkSpan, DetectionSettings
from pose_analyzer.ports import ChunkDetector, FrameSource
from pose_analyzer.prefetching import Prefetcher
from pose_analyzer.stream_analyzer import detect_people
from pose_analyzer.video_chunking import ChunkSpec

# Each a batch of its own: a GPU prepares the next picture while one is in the network. On a CPU
# they would be one batch, whose size may change the last bits.
_AT_ONCE_ON_GPU: Final = 8


def extract_pose_landmarks(
    source: FrameSource,
    detector: ChunkDetector,
    spec: ChunkSpec,
    settings: DetectionSettings,
    on_frames: Callable[[], None] | None = None,
) -> ChunkPoses:
    """Look for people in the frames of one chunk.

    The answer depends on the video, the chunk and the settings alone; so a chunk may be analysed
    again by any worker.

    Parameters
    ----------
    source
        The frames of this chunk, perhaps scaled: `sources.open_chunk`.
    detector
        From `backends.create_chunk_detector`; it may have seen anything before.
    spec
        The chunk.
    settings
        Sampling and region; scaling is the source's part and only noted here.
    on_frames
        Called after every few frames; an exception of it ends the work.

    Raises
    ------
    ValueError
        The detector is not the one of the settings.
    UnreadableSourceError
        The video is not the one that was planned.
    """
    if detector.name != settings.detector:
        raise ValueError(f"the job asks for {settings.detector}, not {detector.name}")
    detector.restart()
    size_px = source.info.width_px, source.info.height_px
    found: list[ChunkFrame] = []
    n_at_once = 1 if detector.device == "cpu" else _AT_ONCE_ON_GPU
    with Prefetcher(source.frames(settings.sample_fps), 4 * n_at_once) as frames:
        while group := list(islice(frames, n_at_once)):
            images, times_s = [one.image_bgr for one in group], [one.time_s for one in group]
            seen = detect_people(detector, images, times_s, settings.roi, size_px)
            found += [
                ChunkFrame(frame.index, frame.time_s, tuple(poses), spec.index)
                for frame, poses in zip(group, seen, strict=True)
            ]
            if on_frames is not None:
                on_frames()
    n_lost = 0
    if spec.pictures is not None:
        owned = frozenset(spec.pictures.frame_indices[spec.pictures.n_warm_up :])
        found = [frame for frame in found if frame.frame_index in owned]
        n_lost = len(owned) - len(found)
    span = ChunkSpan(
        index=spec.index,
        start_s=spec.start_s,
        end_s=spec.end_s,
        device=detector.device,
        n_lost=n_lost,
        problems=(*source.problems, *spec.problems),
    )
    return ChunkPoses(source.info, settings, (span,), tuple(found))
