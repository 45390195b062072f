"""Poses of a chunk, and the plan of a video's chunks, as JSON.

Numbers are written with as many digits as it takes to read the same float64 again; NaN is null.
Nothing depends on when or how fast a chunk was analysed: the same poses give the same bytes.
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from jaxtyping import Float, Float64

from pose_analyzer.chunk_aggregation import (
    ChunkFrame,
    ChunkPoses,
    ChunkSpan,
    DetectionSettings,
)
from pose_analyzer.errors import InvalidChunkFileError
from pose_analyzer.skeletons import N_KEYPOINTS, N_LANDMARKS
from pose_analyzer.types import BlazePoseLandmarks, Pose, SourceInfo
from pose_analyzer.video_chunking import VideoPlan

FORMAT: Final = "pose-analyzer/chunk"
PLAN_FORMAT: Final = "pose-analyzer/chunk-plan"
VERSION: Final = 1


Box = Annotated[list[float | None], msgspec.Meta(min_length=4, max_length=4)]
Keypoints = Annotated[list[float | None], msgspec.Meta(min_length=34, max_length=34)]
OfKeypoints = Annotated[list[float | None], msgspec.Meta(min_length=17, max_length=17)]
Landmarks = Annotated[list[float | None], msgspec.Meta(min_length=99, max_length=99)]
OfLandmarks = Annotated[list[float | None], msgspec.Meta(min_length=33, max_length=33)]


class _Landmarks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    image_px: Landmarks
    world_m: Landmarks
    visibility: OfLandmarks
    presence: OfLandmarks


class _Person(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arrays row after row: x and y of the first keypoint, x and y of the second and so on."""

    score: float | None
    box_px: Box
    keypoints_px: Keypoints
    confidences: OfKeypoints
    landmarks: _Landmarks | None = None


class _Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    frame_index: int
    time_s: float
    chunk: int
    people: list[_Person]


class _Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    width_px: int
    height_px: int
    fps: float | None
    duration_s: float | None
    n_frames: int | None


class _ChunkFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["pose-analyzer/chunk"]
    version: Literal[1]
    source: _Source
    settings: DetectionSettings
    spans: tuple[ChunkSpan, ...]
    frames: list[_Frame]


class _PlanFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["pose-analyzer/chunk-plan"]
    version: Literal[1]
    plan: VideoPlan


_encoder: Final = msgspec.json.Encoder()
_chunk_decoder: Final = msgspec.json.Decoder(_ChunkFile)
_plan_decoder: Final = msgspec.json.Decoder(_PlanFile)


def encode_chunk(chunk: ChunkPoses) -> bytes:
    """Write poses as JSON; `decode_chunk` gives exactly these again.

    Raises
    ------
    ValueError
        A number is infinite, which JSON cannot tell from NaN.
    """
    source = chunk.source
    file = _ChunkFile(
        format=FORMAT,
        version=VERSION,
        source=_Source(
            name=source.name,
            width_px=source.width_px,
            height_px=source.height_px,
            fps=_finite_or_none(source.fps),
            duration_s=_finite_or_none(source.duration_s),
            n_frames=source.n_frames,
        ),
        settings=chunk.settings,
        spans=chunk.spans,
        frames=[
            _Frame(frame.frame_index, frame.time_s, frame.chunk, [_person(p) for p in frame.poses])
            for frame in chunk.frames
        ],
    )
    return _encoder.encode(file)


def decode_chunk(data: bytes) -> ChunkPoses:
    """Read what `encode_chunk` wrote.

    Raises
    ------
    InvalidChunkFileError
        It is something else, of another version, or damaged.
    """
    try:
        file = _chunk_decoder.decode(data)
    except msgspec.DecodeError as error:
        raise InvalidChunkFileError(str(error)) from error
    source = file.source
    return ChunkPoses(
        source=SourceInfo(
            name=source.name,
            width_px=source.width_px,
            height_px=source.height_px,
            fps=_or_nan(source.fps),
            duration_s=_or_nan(source.duration_s),
            n_frames=source.n_frames,
        ),
        settings=file.settings,
        spans=file.spans,
        frames=tuple(
            ChunkFrame(f.frame_index, f.time_s, tuple(_pose(p) for p in f.people), f.chunk)
            for f in file.frames
        ),
    )


def encode_plan(plan: VideoPlan) -> bytes:
    """Write a plan as JSON, for workers that need not make it again."""
    return _encoder.encode(_PlanFile(PLAN_FORMAT, VERSION, plan))


def decode_plan(data: bytes) -> VideoPlan:
    """Read what `encode_plan` wrote.

    Raises
    ------
    InvalidChunkFileError
        It is something else, of another version, or damaged.
    """
    try:
        return _plan_decoder.decode(data).plan
    except msgspec.DecodeError as error:
        raise InvalidChunkFileError(str(error)) from error


def _person(pose: Pose) -> _Person:
    marks = pose.landmarks
    return _Person(
        score=_finite_or_none(pose.score),
        box_px=_list(pose.box_px),
        keypoints_px=_list(pose.keypoints_px),
        confidences=_list(pose.confidences),
        landmarks=None
        if marks is None
        else _Landmarks(
            image_px=_list(marks.image_px),
            world_m=_list(marks.world_m),
            visibility=_list(marks.visibility),
            presence=_list(marks.presence),
        ),
    )


def _pose(person: _Person) -> Pose:
    marks = person.landmarks
    return Pose(
        keypoints_px=_array(person.keypoints_px).reshape(N_KEYPOINTS, 2),
        confidences=_array(person.confidences),
        box_px=_array(person.box_px),
        score=_or_nan(person.score),
        landmarks=None
        if marks is None
        else BlazePoseLandmarks(
            image_px=_array(marks.image_px).reshape(N_LANDMARKS, 3),
            world_m=_array(marks.world_m).reshape(N_LANDMARKS, 3),
            visibility=_array(marks.visibility),
            presence=_array(marks.presence),
        ),
    )


def _list(values: Float[np.ndarray, "*shape"]) -> list[float | None]:
    if np.isinf(values).any():
        raise ValueError("an infinite number cannot be written")
    # The encoder writes NaN as null.
    numbers: list[float | None] = values.ravel().tolist()
    return numbers


def _array(values: Sequence[float | None]) -> Float64[np.ndarray, "n"]:
    return np.array(values, dtype=np.float64)  # None becomes NaN


def _finite_or_none(value: float) -> float | None:
    if np.isinf(value):
        raise ValueError("an infinite number cannot be written")
    return None if np.isnan(value) else float(value)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
