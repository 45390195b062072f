"""Recorded videos made on the spot: what is read, what is refused, what is reported."""

import gc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.errors import UnreadableSourceError
from pose_analyzer.sampling import sampling_slot
from pose_analyzer.sources import VideoFileSource, open_source

from .video_files import HEIGHT, WIDTH, at_rate, corners, write_video


def write_sound(path: Path, seconds: float = 1.0) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for start in range(0, int(seconds * 16_000), 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_all_frames_with_their_times(tmp_path: Path, suffix: str) -> None:
    source = open_source(write_video(tmp_path / f"clip{suffix}", at_rate(25, 2)))

    frames = list(source.frames())

    assert [frame.index for frame in frames] == list(range(50))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(50) / 25, atol=2e-3)
    assert frames[0].time_s == 0.0
    assert {frame.image_bgr.shape for frame in frames} == {(HEIGHT, WIDTH, 3)}
    assert corners(frames[20].image_bgr) == "rg-b"
    assert source.problems == ()
    assert (source.info.width_px, source.info.height_px) == (WIDTH, HEIGHT)


def test_pictures_stored_out_of_order_without_presentation_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", range(50), time_base=Fraction(1, 25))
    source = open_source(path)

    frames = list(source.frames())

    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(50) / 25, atol=0.05)
    assert source.problems == ()


def test_irregular_times_are_kept(tmp_path: Path) -> None:
    times_ms = [0, 33, 66, 400, 433, 1000, 1900]
    source = open_source(write_video(tmp_path / "clip.mp4", [t + 700 for t in times_ms]))

    times_s = [frame.time_s for frame in source.frames()]

    np.testing.assert_allclose(times_s, np.array(times_ms) / 1000, atol=1e-6)


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        ((0, False), "rg-b"),
        ((90, False), "g-br"),  # counter-clockwise, as FFmpeg counts
        ((180, False), "-brg"),
        ((-90, False), "brg-"),
        ((0, True), "grb-"),
        ((90, True), "-grb"),
    ],
)
def test_pictures_are_upright(tmp_path: Path, rotation: tuple[float, bool], expected: str) -> None:
    source = open_source(write_video(tmp_path / "clip.mp4", at_rate(10, 1), rotation=rotation))

    image = next(iter(source.frames())).image_bgr

    assert image.shape == (source.info.height_px, source.info.width_px, 3)
    assert image.flags.c_contiguous
    assert (image.shape[0] > image.shape[1]) == (abs(rotation[0]) == 90)
    assert corners(image) == expected


@pytest.mark.parametrize(
    ("codec", "pixel_format", "suffix"),
    [
        ("libx264", "yuv420p10le", ".mp4"),
        ("libx264", "yuv444p", ".mp4"),
        ("mjpeg", "yuvj420p", ".avi"),
        ("ffv1", "bgra", ".mkv"),
        ("gif", "rgb8", ".gif"),
    ],
)
def test_pixel_formats(tmp_path: Path, codec: str, pixel_format: str, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    write_video(path, at_rate(10, 1), codec=codec, pixel_format=pixel_format)

    frames = list(open_source(path).frames())

    assert len(frames) == 10
    assert corners(frames[5].image_bgr) == "rg-b"


def test_odd_sizes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", at_rate(10, 1), codec="ffv1", size=(97, 63))
    source = open_source(path)

    frames = list(source.frames())

    assert frames[3].image_bgr.shape == (63, 97, 3)
    assert corners(frames[3].image_bgr) == "rg-b"


def test_pixels_become_square(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", at_rate(10, 1), aspect=Fraction(4, 3))
    source = open_source(path)

    assert (source.info.width_px, source.info.height_px) == (128, 64)
    assert next(iter(source.frames())).image_bgr.shape == (64, 128, 3)


@pytest.mark.parametrize("fps", [60.0, 59.94, 50.0, 29.97, 24.0, 23.976])
@pytest.mark.parametrize("sample_fps", [5.0, 10.0, 12.5])
def test_sampling_follows_the_grid_without_drift(fps: float, sample_fps: float) -> None:
    times_s = np.arange(round(fps * 300)) / fps
    slots = [sampling_slot(time_s, sample_fps, fps) for time_s in times_s]

    taken_s = times_s[np.flatnonzero(np.diff(slots, prepend=-1))]

    on_grid_s = np.arange(len(taken_s)) / sample_fps
    assert len(taken_s) == pytest.approx(300 * sample_fps, abs=1)
    assert np.abs(taken_s - on_grid_s).max() < 1 / fps


@given(
    fps=st.sampled_from([24.0, 25.0, 29.97, 30.0, 50.0, 60.0]),
    jitter=st.lists(st.floats(-0.12, 0.12), min_size=50, max_size=50),
    faster=st.floats(1.0, 4.0),
)
def test_sampling_at_the_sources_own_rate_or_above_takes_all(
    fps: float, jitter: list[float], faster: float
) -> None:
    even_s = np.arange(50) / fps
    uneven_s = even_s + np.array([0.0, *jitter[1:]]) / fps

    assert len({sampling_slot(time_s, fps, fps) for time_s in uneven_s}) == 50
    assert len({sampling_slot(time_s, fps * faster, fps) for time_s in even_s}) == 50


def test_frames_are_freed_at_once(tmp_path: Path) -> None:
    """Pictures in reference cycles wait for the garbage collector, hundreds of them."""
    source = open_source(write_video(tmp_path / "clip.mp4", at_rate(30, 4), rotation=(90, False)))
    gc.collect()
    gc.disable()
    try:
        assert sum(1 for _ in source.frames()) == 120
        assert gc.collect() < 60
    finally:
        gc.enable()


def test_sampled_frames_are_the_same_pictures(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "clip.mp4", at_rate(30, 2)))
    everything = {frame.index: frame for frame in source.frames()}

    sampled = list(source.frames(sample_fps=10.0))

    assert [frame.index for frame in sampled] == list(range(0, 60, 3))
    for frame in sampled:
        assert frame.time_s == everything[frame.index].time_s
        assert np.array_equal(frame.image_bgr, everything[frame.index].image_bgr)


def test_sampling_rate_must_be_positive(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "clip.mp4", at_rate(10, 1)))
    with pytest.raises(ValueError, match="positive"):
        source.frames(sample_fps=0.0)


@pytest.mark.parametrize(
    ("suffix", "options"), [(".mp4", {"movflags": "+faststart"}), (".mkv", None)]
)
def test_truncated_file_is_read_as_far_as_it_goes(
    tmp_path: Path, suffix: str, options: dict[str, str] | None
) -> None:
    path = write_video(tmp_path / f"clip{suffix}", at_rate(25, 8), options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = open_source(path)

    frames = list(source.frames())

    assert 50 < len(frames) < 150
    assert any("of 8.0 s announced" in problem for problem in source.problems)


def test_an_unfinished_reading_is_not_a_truncated_file(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "clip.mp4", at_rate(25, 4)))
    frames = source.frames()
    next(frames)
    frames.close()

    assert source.problems == ()


def test_damaged_middle_is_skipped_and_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.ts", at_rate(25, 8))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 188 * 188
    noise = np.random.default_rng(0).integers(0, 256, 188 * 20, dtype=np.uint8)
    data[middle : middle + len(noise)] = noise.tobytes()
    path.write_bytes(data)
    source = open_source(path)

    frames = list(source.frames())

    assert 120 < len(frames) < 200
    assert np.diff([frame.time_s for frame in frames]).min() > 0
    assert any("damaged" in problem for problem in source.problems)


def test_abandoned_damaged_files_do_not_block(tmp_path: Path) -> None:
    """PyAV's log callback would, see `opened`; torchvision turns it on when imported."""
    path = write_video(tmp_path / "clip.mp4", at_rate(25, 8), options={"movflags": "+faststart"})
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    data[len(data) // 8 :: 97] ^= 255
    path.write_bytes(data.tobytes())
    for n_frames in range(20):
        frames = open_source(path).frames()
        av.logging.set_level(av.logging.ERROR)
        for _ in zip(range(n_frames), frames, strict=False):
            av.logging.set_level(av.logging.ERROR)
        frames.close()
    av.logging.set_level(None)


def test_appended_recordings_are_joined(tmp_path: Path) -> None:
    first = write_video(tmp_path / "a.ts", at_rate(25, 4)).read_bytes()
    (tmp_path / "both.ts").write_bytes(first + first)
    source = open_source(tmp_path / "both.ts")

    times_s = [frame.time_s for frame in source.frames()]

    assert len(times_s) == 200
    np.testing.assert_allclose(np.diff(times_s), 0.04, atol=5e-3)
    assert any("joined" in problem for problem in source.problems)


def make_text(path: Path) -> None:
    path.write_text("These are words.\n" * 50)


def make_playlist(path: Path) -> None:
    write_video(path.with_name("real.mp4"), at_rate(10, 1))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.mp4\n#EXT-X-ENDLIST\n")


def make_headless(path: Path) -> None:
    write_video(path, at_rate(25, 4))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_frameless(path: Path) -> None:
    write_video(path, at_rate(25, 1), options={"movflags": "+faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("missing.mp4", lambda path: None, "no such file"),
        ("folder.mp4", Path.mkdir, "is a folder"),
        ("empty.mp4", Path.touch, "is empty"),
        ("words.txt", make_text, "not a video"),
        ("words.mp4", make_text, "not a video"),
        ("list.m3u8", make_playlist, "not a video"),
        ("headless.mp4", make_headless, "not a video"),
        ("frameless.mp4", make_frameless, "not one readable frame"),
        ("sound.m4a", write_sound, "no video track"),
    ],
)
def test_what_is_no_video_is_one_clear_error(tmp_path: Path, name: str, make, reason: str) -> None:
    make(tmp_path / name)
    with pytest.raises(UnreadableSourceError, match=reason) as caught:
        VideoFileSource(tmp_path / name)
    assert name in caught.value.source


@pytest.mark.shared_data
def test_real_clips_read_without_problems(shared_data: Path) -> None:
    clips = sorted((shared_data / "videos").glob("*_[12]*p*.mp4"), key=lambda p: p.stat().st_size)
    for clip in clips[:4]:
        source = open_source(clip)
        n_frames = sum(1 for _ in source.frames())
        assert n_frames == source.info.n_frames
        assert source.problems == ()
