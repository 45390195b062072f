import asyncio
import sys

import av
import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from pose_analyzer_client import (
    ConnectionInterrupted,
    ConnectionResumed,
    ServiceComplaint,
    StateChanged,
    StreamRestarted,
    UnreadableVideoError,
    cli,
    wire,
)
from pose_analyzer_client.demo import Attendance, DemoJob, app, play
from pose_analyzer_client.display import describe_event, describe_statistics
from pose_analyzer_client.results import Names, Result
from pose_analyzer_client.statistics import Tally
from pose_analyzer_client.video import at_own_pace, probe_video, video_frames

from .fake_service import ANGLE_NAMES, KEYPOINT_NAMES, person, result


@pytest.fixture
def video(tmp_path):
    """One and a half seconds, red above blue."""
    path = tmp_path / "clip.mp4"
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :, 2], image[24:, :, 0] = 255, 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(15):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())
    return path


def test_a_video_is_read_with_its_times(video):
    info = probe_video(video)
    assert (info.fps, info.duration_s) == (10.0, pytest.approx(1.5, abs=0.1))
    frames = list(video_frames(video))
    assert [time_s for time_s, _ in frames] == pytest.approx(np.arange(15) / 10)
    assert frames[0][1].shape == (48, 64, 3)
    assert frames[0][1][5, 5, 2] > 200


class Clock:
    """Stands still unless somebody sleeps or is slow."""

    def __init__(self):
        self.now_s = 50.0
        self.slept_s = []

    def sleep(self, seconds):
        self.slept_s.append(round(seconds, 6))
        self.now_s += seconds


def test_frames_come_when_they_are_due():
    clock, image = Clock(), np.zeros((2, 2, 3), np.uint8)
    frames = [(time_s, image) for time_s in (0.0, 0.1, 0.2, 0.8)]
    for time_s, _ in at_own_pace(frames, lambda: clock.now_s, clock.sleep):
        if time_s == 0.1:
            clock.now_s += 0.5
    assert clock.slept_s == [0.1, 0.2]


@pytest.mark.parametrize("content", [None, b"", b"no video"])
def test_what_is_no_video_is_said_in_one_line(tmp_path, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableVideoError, match=r"clip\.mp4: "):
        probe_video(path)
    ended = CliRunner().invoke(app, ["demo", str(path)])
    assert ended.exit_code == 2
    assert ended.stderr.startswith("Error: ")


async def test_a_video_is_played_and_summed_up(service, video):
    shown, told = [], []
    service.person = person(exercise="squat", n_repetitions=2)
    job = DemoJob(video, service.address, as_fast_as_possible=True)
    summary = await play(job, probe_video(video), lambda *seen: shown.append(seen), told.append)
    assert [result.frame for result, _ in shown] == list(range(15))
    assert summary.statistics.n_answered == 15
    assert [(p.exercise, p.n_repetitions) for p in summary.people] == [("squat", 2)]
    assert service.starts[0]["fps"] == 10.0
    assert told == []


def test_who_was_seen_before_the_service_forgot_the_stream_is_summed_up_too():
    names = Names(tuple(KEYPOINT_NAMES), tuple(ANGLE_NAMES))
    attendance = Attendance()
    for n_repetitions, n_frames in [(4, 20), (1, 15), (9, 5)]:
        seen = person(track_id=1, n_repetitions=n_repetitions)
        for frame in range(n_frames):
            told = result(frame, people=[seen])
            attendance.note(Result.of(msgspec.convert(told, wire.Result), names))
    assert [one.n_repetitions for one in attendance.stayed] == [4, 1]


async def test_the_command_shows_what_was_counted(service, video, monkeypatch):
    monkeypatch.setattr("pose_analyzer_client.display.KNEES", ANGLE_NAMES[2:4])
    service.person = person(exercise="squat", n_repetitions=2)
    call = ["demo", str(video), "--url", service.address, "--as-fast-as-possible"]
    ended = await asyncio.to_thread(CliRunner().invoke, app, call)
    assert ended.exit_code == 0, ended.output
    assert "person 1: squat, 2 repetitions" in ended.stdout
    assert "15 frames answered; dropped: none" in ended.stdout


def test_without_a_service_the_command_says_which_one_starts_it(video, unused_tcp_port):
    call = ["demo", str(video), "--url", f"ws://127.0.0.1:{unused_tcp_port}"]
    ended = CliRunner().invoke(app, call)
    assert ended.exit_code == 1
    assert "python -m pose_analyzer.api.main --port 8001" in ended.stderr


def test_without_the_extra_the_command_names_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "pose_analyzer_client.demo")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"pose-analyzer-client\[video\]"):
        cli.main()


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (StateChanged("shed", "GPU memory is full"), "stream shed: GPU memory is full"),
        (ConnectionInterrupted("1006"), "connection broke (1006), trying again"),
        (ConnectionResumed("s", 2), "connected again, 2 frames lost"),
        (StreamRestarted("s", "t", 1), "forgotten the stream; started anew, 1 frames lost"),
        (ServiceComplaint("overload", "Out of memory.", 3), "overload: Out of memory."),
    ],
)
def test_events_are_told_in_a_line(event, said):
    assert said in describe_event(event)


def test_statistics_name_every_kind_of_loss():
    tally = Tally(n_answered=5, n_skipped=1, n_lost=2, n_unanswered=3)
    assert describe_statistics(tally.snapshot()) == (
        "round trip p50 –, p95 –; 5 frames answered; dropped: 1 not sent, 2 lost, 3 unanswered"
    )
