"""Files and cameras read by the service itself; the cameras are played on this machine."""

import contextlib
import itertools
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.sources import (
    AllowedSource,
    CameraConfig,
    SourceKind,
    VideoFileSource,
    open_live_source,
)
from pose_analyzer.sources.picture_clock import PictureClock

from .rtsp_server import FPS, HEIGHT, WIDTH, RtspCamera, encoded_pictures

IMPATIENT = CameraConfig(
    open_timeout_s=1.0, read_timeout_s=0.5, first_retry_s=0.02, max_retry_s=0.1
)
PATIENCE_S = 8.0


class Recorder:
    """Receives frames and remembers what it was told."""

    def __init__(self, slots=None):
        self.times_s, self.images = [], []
        self.problems = []
        self.endings = []
        self.slots = slots
        self.rates_fps = []
        self._told = threading.Condition()

    def on_rate(self, fps):
        self.rates_fps.append(fps)

    def on_frame(self, time_s, content):
        if self.slots is not None:
            self.slots.acquire()
        with self._told:
            self.times_s.append(time_s)
            self.images.append(content)
            self._told.notify_all()

    def on_problem(self, problem):
        with self._told:
            self.problems.append(problem)
            self._told.notify_all()

    def on_end(self, problem):
        with self._told:
            self.endings.append(problem)
            self._told.notify_all()

    def wait_for(self, condition):
        with self._told:
            assert self._told.wait_for(condition, PATIENCE_S), (self.problems, self.endings)

    def wait_for_frames(self, n_frames):
        self.wait_for(lambda: len(self.times_s) >= n_frames)


@contextlib.contextmanager
def reading(source, recorder, **options):
    live = open_live_source(source, recorder, **options)
    live.start()
    try:
        yield live
    finally:
        live.close()


def file(path):
    return AllowedSource(SourceKind.FILE, path.name, str(path))


def camera(port):
    location = f"rtsp://admin:s3cret@127.0.0.1:{port}/hall"
    return AllowedSource(SourceKind.CAMERA, f"rtsp://127.0.0.1:{port}/hall", location)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Two seconds with pictures stored out of order."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.options = {"g": "12", "bf": "2"}
        for index in range(60):
            image = np.full((64, 96, 3), 4 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def test_a_file_gives_the_frames_of_the_recorded_path(clip):
    recorder = Recorder()
    with reading(file(clip), recorder):
        recorder.wait_for(lambda: recorder.endings)

    expected = list(VideoFileSource(clip).frames())
    assert recorder.times_s == [frame.time_s for frame in expected]
    for image, frame in zip(recorder.images, expected, strict=True):
        np.testing.assert_array_equal(image, frame.image_bgr)
    assert recorder.endings == [None]
    assert recorder.problems == []
    assert recorder.rates_fps == [30.0]


def test_a_file_waits_for_its_receiver_and_can_be_closed_meanwhile(clip):
    recorder = Recorder(slots=threading.Semaphore(5))
    with reading(file(clip), recorder) as live:
        recorder.wait_for_frames(5)
        closing = threading.Thread(target=live.close)
        closing.start()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
        recorder.slots.release(100)

    assert len(recorder.times_s) in {5, 6}  # one may have been under way
    assert recorder.endings == []


@pytest.mark.parametrize("content", [None, b"", b"no video at all"])
def test_a_file_that_is_no_video_ends_with_a_problem(tmp_path, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    recorder = Recorder()
    with reading(file(path), recorder):
        recorder.wait_for(lambda: recorder.endings)

    assert recorder.times_s == []
    assert recorder.endings[0]
    assert str(tmp_path) not in recorder.endings[0]


def test_a_truncated_file_says_so(clip, tmp_path):
    whole = tmp_path / "whole.mkv"
    with av.open(str(clip)) as source, av.open(str(whole), "w") as target:
        track = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = track
                target.mux(packet)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    recorder = Recorder()
    with reading(file(cut), recorder):
        recorder.wait_for(lambda: recorder.endings)

    assert 0 < len(recorder.times_s) < 60
    assert "announced" in recorder.endings[0]


def test_a_file_is_read_without_nvdec_where_there_is_none(clip, monkeypatch):
    monkeypatch.setattr("pose_analyzer.sources.nvdec.nvdec_available", lambda: "not here.")
    recorder = Recorder()
    with structlog.testing.capture_logs() as logs, reading(file(clip), recorder, device="cuda:0"):
        recorder.wait_for(lambda: recorder.endings)

    assert len(recorder.times_s) == 60
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("nvdec_not_used", "not here.")
    ]


@pytest.fixture(scope="module")
def pictures():
    return encoded_pictures()


def test_a_camera_is_lost_and_comes_back(pictures):
    recorder = Recorder()
    with structlog.testing.capture_logs() as logs, contextlib.ExitStack() as stack:
        with RtspCamera(pictures) as first:
            stack.enter_context(reading(camera(first.port), recorder, config=IMPATIENT))
            recorder.wait_for_frames(20)
        recorder.wait_for(lambda: recorder.problems)
        n_before = len(recorder.times_s)
        stack.enter_context(RtspCamera(pictures, first.port))
        recorder.wait_for_frames(n_before + 20)

    assert recorder.images[0].shape == (HEIGHT, WIDTH, 3)
    assert recorder.times_s[0] == 0.0
    steps_s = np.diff(recorder.times_s)
    assert (steps_s > 0).all()
    np.testing.assert_allclose(np.median(steps_s), 1 / FPS, atol=1e-3)
    lost, back = recorder.problems[:2]
    assert "lost" in lost
    assert back is None
    assert recorder.endings == []
    assert [entry["event"] for entry in logs][:2] == ["camera_lost", "camera_back"]
    assert "s3cret" not in f"{logs} {recorder.problems}"


def test_a_camera_that_never_answers_is_a_problem_in_time(pictures):
    recorder = Recorder()
    with (
        RtspCamera(pictures, status=None) as silent,
        reading(camera(silent.port), recorder, config=IMPATIENT),
    ):
        recorder.wait_for(lambda: recorder.problems)

    assert "did not answer within 1 s" in recorder.problems[0]
    assert recorder.endings == []


def test_a_camera_that_goes_silent_is_lost(pictures):
    recorder = Recorder()
    with (
        RtspCamera(pictures) as playing,
        reading(camera(playing.port), recorder, config=IMPATIENT),
    ):
        recorder.wait_for_frames(5)
        playing.freeze()
        recorder.wait_for(lambda: recorder.problems)

    assert "did not answer within 0.5 s" in recorder.problems[0]


def test_a_camera_that_refuses_the_password_is_not_asked_again(pictures):
    recorder = Recorder()
    with RtspCamera(pictures, status="401 Unauthorized") as refusing:
        with reading(camera(refusing.port), recorder, config=IMPATIENT):
            recorder.wait_for(lambda: recorder.endings)
            time.sleep(0.2)
        described = [line for line in refusing.requests if line.startswith("DESCRIBE")]

    assert "refused" in recorder.endings[0]
    assert "s3cret" not in recorder.endings[0]
    assert len(described) == 1


def test_a_camera_nobody_hears_is_tried_until_closed():
    recorder = Recorder()
    with RtspCamera([]) as gone:
        port = gone.port
    with reading(camera(port), recorder, config=IMPATIENT):
        recorder.wait_for(lambda: recorder.problems)
        time.sleep(0.2)

    assert recorder.problems == ["the camera is lost and will be tried again: connection refused."]
    assert recorder.endings == []


STAMPS = st.lists(
    st.tuples(
        st.none() | st.integers(-9_000_000, 9_000_000),
        st.floats(0.0, 20.0),
        st.none() | st.fractions(Fraction(1, 90_000), 1, max_denominator=90_000),
    )
)


@given(STAMPS)
def test_picture_times_start_at_zero_and_increase(stamps):
    clock, now_s, times_s = PictureClock(10.0), 0.0, []
    for stamp, elapsed_s, new_time_base in stamps:
        now_s += elapsed_s
        if new_time_base is not None:
            clock.restart(new_time_base)
        times_s.append(clock.time_s(stamp, now_s))
    known = [time_s for time_s in times_s if time_s is not None]
    assert known[:1] == [0.0][: len(known)]
    assert all(later > earlier for earlier, later in itertools.pairwise(known))


@given(
    st.lists(st.integers(0, 2**40), min_size=1, unique=True).map(sorted),
    st.fractions(Fraction(1, 90_000), 1, max_denominator=90_000),
)
def test_times_of_one_recording_are_exact(stamps, time_base):
    clock = PictureClock()
    clock.restart(time_base)
    times_s = [clock.time_s(stamp, 0.0) for stamp in stamps]
    assert times_s == [float((stamp - stamps[0]) * time_base) for stamp in stamps]


def test_stamps_decide_within_a_connection_and_the_clock_between_them():
    clock = PictureClock(10.0)
    clock.restart(Fraction(1, 10))
    assert clock.time_s(70, 100.0) == 0.0
    assert clock.time_s(71, 100.9) == pytest.approx(0.1)
    assert clock.time_s(71, 101.0) is None
    clock.restart(Fraction(1, 100))
    assert clock.time_s(300, 104.9) == pytest.approx(4.1)
    assert clock.time_s(310, 104.9) == pytest.approx(4.2)
    assert clock.time_s(900_000, 105.0) == pytest.approx(4.3)  # set anew
    assert clock.time_s(500, 105.5) == pytest.approx(4.8)
    assert clock.time_s(None, 106.0) == pytest.approx(5.3)
