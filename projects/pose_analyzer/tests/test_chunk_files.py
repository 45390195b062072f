"""Stored chunks and plans: exactly what was written is read, and nothing else is."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pose_analyzer.chunk_aggregation import ChunkFrame, ChunkPoses, ChunkSpan, DetectionSettings
from pose_analyzer.chunk_files import decode_chunk, decode_plan, encode_chunk, encode_plan
from pose_analyzer.errors import InvalidChunkFileError
from pose_analyzer.types import BlazePoseLandmarks, Pose, SourceInfo
from pose_analyzer.video_chunking import PictureTable, plan_chunks, plan_whole

numbers = st.floats(allow_infinity=False)
NAN = float("nan")


def chunk_of(values, texts, n_people, *, with_landmarks):
    """A chunk that holds these numbers, over and over."""
    endless = itertools.cycle(values)

    def array(*shape):
        return np.fromiter(endless, np.float64, math.prod(shape)).reshape(shape)

    def pose():
        marks = BlazePoseLandmarks(array(33, 3), array(33, 3), array(33), array(33))
        return Pose(
            array(17, 2), array(17), array(4), next(endless), marks if with_landmarks else None
        )

    return ChunkPoses(
        SourceInfo(texts[0], 640, 360, next(endless), next(endless), None),
        DetectionSettings(texts[-1], None, None, (0.25, 0.0, 0.75, 1.0)),
        (ChunkSpan(3, 90.0, 120.0, "cpu", 2, tuple(texts)),),
        tuple(
            ChunkFrame(900 + index, 90.0 + index / 29.97, tuple(pose() for _ in range(n)), 3)
            for index, n in enumerate(n_people)
        ),
    )


def bits(value):
    """A value in which numbers are told apart as bits, all NaN alike."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value.hex()
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, [bits(number) for number in value.ravel().tolist()]
    if isinstance(value, tuple):
        return [bits(item) for item in value]
    if hasattr(value, "__slots__"):
        return [bits(getattr(value, name)) for name in value.__slots__]
    return value


@given(
    values=st.lists(numbers, min_size=1, max_size=50),
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=3),
    n_people=st.lists(st.integers(0, 2), max_size=3),
    with_landmarks=st.booleans(),
)
@example(
    values=[NAN, -0.0, 5e-324, 1.7976931348623157e308, 0.1],
    texts=["clip"],
    n_people=[2, 0, 1],
    with_landmarks=True,
)
def test_poses_are_read_as_they_were_written(values, texts, n_people, with_landmarks):
    chunk = chunk_of(values, texts, n_people, with_landmarks=with_landmarks)
    data = encode_chunk(chunk)
    assert bits(decode_chunk(data)) == bits(chunk)
    assert encode_chunk(decode_chunk(data)) == data
    assert json.loads(data)["version"] == 1


def test_plans_are_read_as_they_were_written():
    stamps = np.arange(-7, 9000, dtype=np.int64) * 1001
    table = PictureTable(stamps, stamps[::250].copy(), Fraction(1, 30_000), 29.97)
    for plan in (plan_chunks(table, 7.0, 10.0), plan_whole(12.5, "it is damaged", ("so it is",))):
        assert decode_plan(encode_plan(plan)) == plan


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-5],
        lambda data: data.replace(b'"version":1', b'"version":2'),
        lambda data: data.replace(b"pose-analyzer/chunk", b"pose-analyzer/analysis"),
        lambda data: data.replace(b'"box_px":[1.0,', b'"box_px":['),
        lambda data: data.replace(b'"people"', b'"pets"'),
    ],
)
def test_what_is_no_chunk_is_one_clear_error(change):
    chunk = chunk_of([1.0], ["clip"], [1], with_landmarks=False)
    data = encode_chunk(chunk)
    assert change(data) != data
    with pytest.raises(InvalidChunkFileError, match="Analyse the video anew"):
        decode_chunk(change(data))
    with pytest.raises(InvalidChunkFileError):
        decode_plan(data)


def test_infinity_cannot_be_written():
    chunk = chunk_of([math.inf], ["clip"], [1], with_landmarks=False)
    with pytest.raises(ValueError, match="infinite"):
        encode_chunk(chunk)
