"""Chunks of video files: each worker decodes its own part, and sees what a whole reading sees."""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pose_analyzer.errors import UnreadableSourceError
from pose_analyzer.sources import get_video_duration, open_chunk, open_source, plan_video
from pose_analyzer.sources.video_chunks import PictureDecoder, VideoChunkSource
from pose_analyzer.sources.video_file import VideoFileSource
from pose_analyzer.types import Frame
from pose_analyzer.video_chunking import ChunkSpec, VideoPlan

from .video_files import at_rate, write_video

SAMPLE_FPS = 10.0
FIXED_B = "bframes=3:b-adapt=0:b-pyramid=none"


def irregular() -> list[int]:
    gaps_ms = [5, 17, 17, 33, 33, 33, 34, 34, 34, 50] * 30 + [700] * 5
    return np.cumsum(np.random.default_rng(0).permutation(gaps_ms)).tolist()


def remuxed(source: Path, target: Path, *, shift: int = 0, drop: int = 0, **options: str) -> Path:
    """Copy the packets but the first, their times shifted."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as written:
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        for number, packet in enumerate(read.demux(stream)):
            if packet.size and number >= drop:
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = copy
                written.mux(packet)
    return target


def b_frames(folder: Path, name: str = "clip.mp4", **options) -> Path:
    return write_video(folder / name, at_rate(30, 12), **options)


def x264(params: str = "b-adapt=1", gop: int = 30) -> dict[str, str]:
    """Key pictures at even distances, whatever the pictures show."""
    return {"crf": "10", "g": str(gop), "x264-params": f"scenecut=0:{params}"}


CUT = {
    "b-frames.mp4": b_frames,
    "b-frames.mkv": b_frames,
    "b-frames.ts": b_frames,
    "open-gop.mp4": lambda folder, name: b_frames(
        folder, name, codec_options=x264("open-gop=1:bframes=5:ref=5")
    ),
    "open-gop.ts": lambda folder, name: b_frames(folder, name, codec_options=x264("open-gop=1")),
    "intra-refresh.mp4": lambda folder, name: b_frames(
        folder,
        name,
        size=(320, 240),
        codec_options=x264("intra-refresh=1:bframes=0", gop=30),
    ),
    "irregular.mp4": lambda folder, name: write_video(folder / name, irregular()),
    "irregular.mkv": lambda folder, name: write_video(folder / name, irregular()),
    "late-start.mp4": lambda folder, name: write_video(
        folder / name, [t + 700 for t in at_rate(25, 12)]
    ),
    "upright.mp4": lambda folder, name: b_frames(folder, name, rotation=(90, True)),
    "wide-pixels.mp4": lambda folder, name: b_frames(folder, name, aspect=Fraction(4, 3)),
    "edit-list.mp4": lambda folder, name: remuxed(
        b_frames(folder), folder / name, shift=-16 * 700, avoid_negative_ts="disabled"
    ),
    "begins-between-key-pictures.mkv": lambda folder, name: remuxed(
        b_frames(folder), folder / name, drop=4
    ),
    "hevc.mp4": lambda folder, name: b_frames(
        folder,
        name,
        codec="libx265",
        codec_options={"x265-params": "keyint=30:open-gop=1:log-level=none"},
    ),
    "vp8.webm": lambda folder, name: b_frames(
        folder,
        name,
        codec="libvpx",
        codec_options={"g": "30", "deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1"},
    ),
    "vp9.webm": lambda folder, name: b_frames(
        folder,
        name,
        codec="libvpx-vp9",
        codec_options={"g": "30", "deadline": "realtime", "cpu-used": "8"},
    ),
    "mpeg4.mp4": lambda folder, name: b_frames(
        folder, name, codec="mpeg4", codec_options={"g": "30", "bf": "2"}
    ),
}


def read_chunks(path: Path, plan: VideoPlan, **options) -> list[Frame]:
    """Frames of all chunks without those a detector warms up with; the last chunk first."""
    parts = [own_frames(path, chunk, **options) for chunk in reversed(plan.chunks)]
    return [frame for part in reversed(parts) for frame in part]


def own_frames(path: Path, chunk: ChunkSpec, **options) -> list[Frame]:
    frames = list(open_chunk(path, chunk, **options).frames(SAMPLE_FPS))
    if chunk.pictures is None:
        return frames
    owned = chunk.pictures.frame_indices[chunk.pictures.n_warm_up :]
    return [frame for frame in frames if frame.index in owned]


def assert_same_frames(found: list[Frame], expected: list[Frame]) -> None:
    assert [frame.index for frame in found] == [frame.index for frame in expected]
    assert [frame.time_s for frame in found] == [frame.time_s for frame in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.image_bgr, other.image_bgr)


@pytest.mark.parametrize("name", CUT)
def test_chunks_hold_what_a_whole_reading_holds(tmp_path: Path, name: str) -> None:
    path = CUT[name](tmp_path, name)
    whole = list(open_source(path).frames(SAMPLE_FPS))
    for chunk_s in (2.0, 3.7):
        plan = plan_video(path, chunk_s, SAMPLE_FPS)

        assert plan.in_one_piece is None
        assert len(plan.chunks) >= 3
        assert_same_frames(read_chunks(path, plan), whole)


NOT_CUT = {
    "b-frames.avi": (
        lambda folder, name: write_video(folder / name, range(300), time_base=Fraction(1, 25)),
        "AVI",
    ),
    "moving.gif": (
        lambda folder, name: write_video(
            folder / name, at_rate(10, 6), codec="gif", pixel_format="rgb8"
        ),
        "codec gif",
    ),
    "bare.h264": (
        lambda folder, name: remuxed(b_frames(folder), folder / name),
        "no presentation time",
    ),
    "appended.ts": (lambda folder, name: appended(folder / name), "damaged|start again|same time"),
    "damaged.ts": (lambda folder, name: damaged(folder / name), "damaged|no presentation|promise"),
    "one-key-picture.mp4": (
        lambda folder, name: b_frames(folder, name, codec_options=x264(gop=9999)),
        "key pictures",
    ),
}


def appended(path: Path) -> Path:
    once = write_video(path, at_rate(25, 6)).read_bytes()
    path.write_bytes(once + once)
    return path


def damaged(path: Path) -> Path:
    data = bytearray(write_video(path, at_rate(25, 12)).read_bytes())
    middle = len(data) // 2 // 188 * 188
    data[middle : middle + 188 * 20] = np.random.default_rng(0).bytes(188 * 20)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", NOT_CUT)
def test_what_cannot_be_cut_is_one_chunk_with_the_reason(tmp_path: Path, name: str) -> None:
    make, reason = NOT_CUT[name]
    path = make(tmp_path, name)
    source = open_source(path)
    whole = list(source.frames(SAMPLE_FPS))

    plan = plan_video(path, 2.0, SAMPLE_FPS)

    assert plan.in_one_piece is not None
    assert re.search(reason, plan.in_one_piece)
    (chunk,) = plan.chunks
    opened = open_chunk(path, chunk)
    assert_same_frames(list(opened.frames(SAMPLE_FPS)), whole)
    assert opened.problems == source.problems


def test_only_a_chunk_and_the_way_to_it_are_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", at_rate(30, 45), codec_options=x264(gop=60))
    *_, last = plan_video(path, 15.0, None).chunks
    source = open_chunk(path, last, n_threads=1)
    assert isinstance(source, VideoChunkSource)

    frames = list(source.frames())

    assert len(frames) == 450
    assert source.n_decoded <= 450 + 60


def test_pictures_nobody_needs_are_not_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", at_rate(30, 30), codec_options=x264(FIXED_B))
    *_, last = plan_video(path, 15.0, SAMPLE_FPS).chunks
    source = open_chunk(path, last, n_threads=1)
    assert isinstance(source, VideoChunkSource)

    assert len(list(source.frames())) == 150
    assert source.n_decoded < 400


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_threads_change_nothing(tmp_path: Path, n_threads: int) -> None:
    path = b_frames(tmp_path)
    whole = list(open_source(path).frames(SAMPLE_FPS))
    plan = plan_video(path, 3.0, SAMPLE_FPS)
    assert_same_frames(read_chunks(path, plan, n_threads=n_threads), whole)


@pytest.mark.parametrize("rotation", [(0, False), (90, False)])
def test_pictures_are_scaled_to_the_width_asked_for(tmp_path: Path, rotation) -> None:
    path = write_video(tmp_path / "clip.mp4", at_rate(30, 6), size=(320, 240), rotation=rotation)
    source = VideoFileSource(path, max_width_px=100)
    plan = plan_video(path, 2.0, SAMPLE_FPS)

    frames = read_chunks(path, plan, max_width_px=100)

    size = (133, 100) if rotation[0] else (75, 100)
    assert {frame.image_bgr.shape for frame in frames} == {(*size, 3)}
    assert_same_frames(frames, list(source.frames(SAMPLE_FPS)))
    assert (source.info.width_px, source.info.height_px) == (
        (240, 320) if rotation[0] else (320, 240)
    )
    unscaled = VideoFileSource(path, max_width_px=320)
    assert next(unscaled.frames()).image_bgr.shape[1] == source.info.width_px


def test_a_decoder_that_finds_in_slowly_begins_one_key_picture_earlier(tmp_path: Path) -> None:
    path = CUT["intra-refresh.mp4"](tmp_path, "clip.mp4")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    before, entry = [packet.pts for packet in packets if packet.is_keyframe][4:6]
    wanted = [packet.pts for packet in packets if packet.pts >= entry][:40]

    alone = PictureDecoder(path, wanted, [entry])
    with_help = PictureDecoder(path, wanted, [entry, before])

    assert 0 < len(list(alone.pictures())) < 40
    assert [place for place, _ in with_help.pictures()] == list(range(40))


def test_a_truncated_file_says_so_and_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = b_frames(tmp_path, options={"movflags": "+faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = open_source(path)
    whole = list(source.frames(SAMPLE_FPS))

    plan = plan_video(path, 2.0, SAMPLE_FPS)

    assert_same_frames(read_chunks(path, plan), whole)
    assert any("announced" in problem for problem in source.problems)


def test_pictures_that_cannot_be_decoded_are_left_out(tmp_path: Path) -> None:
    path = b_frames(tmp_path, codec_options=x264())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        spoilt = [p for p in packets if 4.0 < p.pts * p.time_base < 5.0]
    data = bytearray(path.read_bytes())
    for packet in spoilt:
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    plan = plan_video(path, 3.0, SAMPLE_FPS)

    frames = read_chunks(path, plan)

    assert len(plan.chunks) == 4
    assert [frame.time_s for frame in frames if not 3.9 < frame.time_s < 5.4] == [
        time_s
        for chunk in plan.chunks
        for time_s in chunk.pictures.times_s[chunk.pictures.n_warm_up :]
        if not 3.9 < time_s < 5.4
    ]
    assert len(frames) < 120
    for chunk_s in (1.3, 4.5, 12.0):
        assert_same_frames(read_chunks(path, plan_video(path, chunk_s, SAMPLE_FPS)), frames)


def test_another_file_than_the_planned_one_is_an_error(tmp_path: Path) -> None:
    plan = plan_video(b_frames(tmp_path), 3.0, SAMPLE_FPS)
    other = write_video(tmp_path / "other.mp4", [t * 7 + 3 for t in range(40)])
    with pytest.raises(UnreadableSourceError, match="planned"):
        list(open_chunk(other, plan.chunks[-1]).frames())


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi", "clip.h264"])
def test_duration(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, range(150), time_base=Fraction(1, 25))
    plan = plan_video(path, 2.0, SAMPLE_FPS)
    assert plan.duration_s == pytest.approx(6.0, abs=0.1)
    assert get_video_duration(path) == pytest.approx(6.0, abs=0.1)
    assert plan.chunks[-1].end_s == plan.duration_s


def test_the_duration_is_that_of_the_pictures(tmp_path: Path) -> None:
    both = appended(tmp_path / "both.ts")
    assert get_video_duration(both) == pytest.approx(12.0, abs=0.1)
    cut = b_frames(tmp_path, options={"movflags": "+faststart"})
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    assert get_video_duration(cut) < 8.0
