"""Sessions of live streams: the same people wherever they run, whatever happens around them."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer import wire
from pose_analyzer.errors import BackendFailedError, UnknownNameError
from pose_analyzer.form_session import repetitions
from pose_analyzer.frame_rows import unpack_rows
from pose_analyzer.live_analysis import LocalAnalysis, ProcessAnalysis, messages, process_group
from pose_analyzer.session_records import read_repetitions
from pose_analyzer.stream_analyzer import AnalysisConfig, StreamAnalyzer
from pose_analyzer.stream_types import Encoding
from pose_analyzer.types import Pose

from .builders import landmarks_of, squat_exercise, squat_keypoints, squat_pose, squat_progress

FPS = 20.0
SQUAT = squat_exercise()
# Counted at the bottom, which tells the two apart.
SINK = squat_exercise(name="sink", first_phase="concentric")
EXERCISES = (SQUAT, SINK)
WAIT_S = 60.0

new_id = map("stream{}".format, itertools.count()).__next__


@pytest.fixture(scope="module")
def loop():
    """An event loop in a thread of its own, as the service's."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def thread_receives():
    analysis = ProcessAnalysis(EXERCISES, n_processes=2)
    yield analysis
    analysis.close()


@pytest.fixture(scope="module")
def loop_receives(loop):
    analysis = ProcessAnalysis(EXERCISES, n_processes=2)
    analysis.receive_in(loop)
    yield analysis
    analysis.close()


@pytest.fixture(params=["thread_receives", "loop_receives"])
def processes(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def here():
    analysis = LocalAnalysis(EXERCISES)
    yield analysis
    analysis.close()


@pytest.fixture(params=["here", "thread_receives", "loop_receives"])
def analysis(request):
    return request.getfixturevalue(request.param)


def poses_at(time_s: float, x_px: float = 200.0) -> list[Pose]:
    """Somebody who squats, and from 2 s to 3 s somebody with landmarks who stands."""
    people = [squat_pose(squat_progress(time_s), (x_px, 340.0))]
    if 2.0 <= time_s < 3.0:
        stands = squat_pose(0.0, (x_px + 250.0, 340.0), score=0.8)
        people.append(replace(stands, landmarks=landmarks_of(stands.keypoints_px)))
    return people


def frames(duration_s: float = 5.0, x_px: float = 200.0):
    """Arguments of `analyse`; nobody is seen in the frames of a quarter of a second."""
    for index in range(round(duration_s * FPS)):
        time_s = index / FPS
        yield index, time_s, [] if 1.5 <= time_s < 1.75 else poses_at(time_s, x_px)


def recorded(script, exercises=EXERCISES, encoding=Encoding.JSON) -> list[bytes]:
    """What the analyzer of recordings says of the same poses."""
    analyzer = StreamAnalyzer(None, AnalysisConfig(exercises))
    answers = []
    for index, time_s, poses in script:
        people = []
        for person in analyzer.observe(poses, index, time_s):
            counted = repetitions(analyzer.session, analyzer.state(person.track_id))
            people.append(wire.Person.of(person, counted[-1] if counted else None))
        answers.append(wire.encode(people, encoding))
    return answers


def follow(analysis, stream_id, script, encoding=Encoding.JSON):
    futures = [analysis.analyse(stream_id, *frame, encoding) for frame in script]
    analysis.send()
    return [future.result(WAIT_S) for future in futures]


def test_a_backlog_is_told_until_it_is_answered(processes):
    analysis = processes
    stream_id = new_id()
    analysis.open(stream_id, "squat")
    assert analysis.has_room(stream_id)
    futures = [analysis.analyse(stream_id, *frame, Encoding.JSON) for frame in frames(5.0)]
    assert not analysis.has_room(stream_id)
    analysis.send()
    for future in futures:
        future.result(WAIT_S)
    assert analysis.has_room(stream_id)
    analysis.end(stream_id)


def test_rows_and_repetitions_come_beside_the_same_answers(analysis):
    plain, kept = new_id(), new_id()
    analysis.open(plain, "squat")
    analysis.open(kept, "squat", with_rows=True)
    without, answers = follow(analysis, plain, frames()), follow(analysis, kept, frames())
    assert [one.people for one in answers] == [one.people for one in without]
    assert {one.rows + one.repetitions for one in without} == {b""}
    assert analysis.end(plain) is None
    for answer in answers:
        rows = unpack_rows(answer.rows)
        people = people_in(answer)
        assert [one.track_id for one in people] == rows["track_id"].tolist()
        for row, person in zip(rows, people, strict=True):
            points = np.array(person.keypoints_px, dtype=np.float32)
            np.testing.assert_array_equal(row["keypoints"][:, :2], points)
            trusted = np.where(person.angles.trusted, person.angles.values_deg, np.nan)
            np.testing.assert_array_equal(row["angles"], trusted.astype(np.float32))
    told = [one for answer in answers for one in read_repetitions(answer.repetitions)]
    told += read_repetitions(analysis.end(kept).result(WAIT_S))
    assert [one.number for one in told] == [1, 2]
    last = people_in(answers[-1])[0].last_repetition
    assert (told[-1].number, told[-1].end_s) == (last.number, last.end_s)


def test_a_change_of_exercise_loses_no_repetition(analysis):
    stream_id = new_id()
    analysis.open(stream_id, "squat", with_rows=True)
    answers = []
    for frame in frames(6.0):
        if frame[0] in (round(2.6 * FPS), round(4.55 * FPS)):
            analysis.change_exercise(stream_id, "squat")
        answers += follow(analysis, stream_id, [frame])
    told = [one for answer in answers for one in read_repetitions(answer.repetitions)]
    told += read_repetitions(analysis.end(stream_id).result(WAIT_S))
    assert [(one.count, one.number) for one in told] == [(0, 1), (1, 1)]


def people_in(answer) -> list[wire.Person]:
    return msgspec.json.decode(answer.people, type=list[wire.Person])


def test_rehearsals_change_no_answer(analysis):
    def answers(*, rehearsed: bool) -> list[bytes]:
        stream_id = new_id()
        analysis.open(stream_id, "auto")
        people = []
        for frame in frames():
            if rehearsed:
                analysis.rehearse(stream_id)
            if frame[0] == 40:
                analysis.change_exercise(stream_id, "squat")
            future = analysis.analyse(stream_id, *frame, Encoding.JSON)
            analysis.send()
            people.append(future.result(WAIT_S).people)
        analysis.end(stream_id)
        return people

    assert answers(rehearsed=True) == answers(rehearsed=False)


@pytest.mark.parametrize("encoding", Encoding)
def test_live_equals_recorded(analysis, encoding):
    stream_id = new_id()
    analysis.open(stream_id, "auto")
    answers = follow(analysis, stream_id, frames(), encoding)
    analysis.end(stream_id)
    assert [answer.people for answer in answers] == recorded(frames(), encoding=encoding)
    assert {answer.n_people for answer in answers} == {1, 2}
    assert all(answer.analyse_s > 0 for answer in answers)


@pytest.mark.parametrize("gap_s", [2.0, 25.0, 1e10])
def test_time_without_frames_makes_nobody_another_person(analysis, gap_s):
    stream_id = new_id()
    script = [
        (index, time_s + (gap_s if time_s >= 3.0 else 0.0), poses_at(time_s))
        for index, time_s, _ in frames(7.0)
    ]
    analysis.open(stream_id, "squat")
    answers = follow(analysis, stream_id, script)
    analysis.end(stream_id)
    (person,) = people_in(answers[-1])
    assert (person.track_id, person.n_repetitions) == (1, 3)
    assert [answer.people for answer in answers] == recorded(script, (SQUAT,))


def test_who_is_gone_after_a_pause_is_forgotten_in_the_usual_time(analysis):
    stream_id = new_id()
    script = [*frames(1.0), *((30 + n, 60.0 + n / FPS, []) for n in range(round(4.0 * FPS)))]
    script += [(1000 + n, 70.0 + n / FPS, poses_at(n / FPS)) for n in range(10)]
    analysis.open(stream_id, "squat")
    answers = follow(analysis, stream_id, script)
    analysis.end(stream_id)
    assert people_in(answers[-1])[0].track_id == 2


def test_each_repetition_is_new_once(analysis):
    stream_id = new_id()
    analysis.open(stream_id, "squat")
    answers = follow(analysis, stream_id, frames(7.0))
    analysis.end(stream_id)
    (person,) = people_in(answers[-1])
    assert person.n_repetitions == 3
    assert person.last_repetition.number == 3
    assert [answer.n_new_repetitions for answer in answers].count(1) == 3
    assert sum(answer.n_new_repetitions for answer in answers) == 3


def test_streams_do_not_touch_each_other(analysis):
    places_px = (150.0, 200.0, 250.0)
    answers = []
    for order in (places_px, places_px[::-1]):
        homes = {x_px: new_id() for x_px in order}
        for x_px in order:
            analysis.open(homes[x_px], "squat")
        futures: dict[float, list[Future]] = {x_px: [] for x_px in order}
        for step in zip(*(frames(2.0, x_px) for x_px in order), strict=True):
            for x_px, frame in zip(order, step, strict=True):
                futures[x_px].append(analysis.analyse(homes[x_px], *frame, Encoding.JSON))
        analysis.send()
        answers.append({x: [f.result(WAIT_S).people for f in futures[x]] for x in places_px})
        for x_px in order:
            analysis.end(homes[x_px])
    assert answers[0] == answers[1]
    assert answers[0][200.0] == recorded(frames(2.0), (SQUAT,))


def test_another_exercise_counts_from_zero_and_keeps_the_people(analysis):
    stream_id, script = new_id(), list(frames(6.0))
    analysis.open(stream_id, "squat")
    before = follow(analysis, stream_id, script[:70])
    analysis.change_exercise(stream_id, "sink")
    after = follow(analysis, stream_id, script[70:])
    analysis.end(stream_id)
    unchanged = recorded(script, (SQUAT,))
    assert [answer.people for answer in before] == unchanged[:70]
    first = people_in(after[0])[0]
    assert people_in(before[-1])[0].n_repetitions == 1
    assert (first.exercise, first.n_repetitions, first.last_repetition) == ("sink", 0, None)
    assert people_in(after[-1])[0].n_repetitions == 1
    assert sum(answer.n_new_repetitions for answer in after) == 1
    for answer, same in zip(after, unchanged[70:], strict=True):
        for one, other in zip(
            people_in(answer), msgspec.json.decode(same, type=list[wire.Person]), strict=True
        ):
            assert (one.track_id, one.angles) == (other.track_id, other.angles)


def test_a_frame_that_is_not_newer_is_refused_and_leaves_no_trace(analysis):
    stream_id, script = new_id(), list(frames(1.0))
    analysis.open(stream_id, "squat")
    answers = follow(analysis, stream_id, script[:10])
    for time_s in (script[9][1], 0.0, float("nan")):
        with pytest.raises(BackendFailedError, match="not newer"):
            follow(analysis, stream_id, [(10, time_s, poses_at(0.0))])
    answers += follow(analysis, stream_id, script[10:])
    analysis.end(stream_id)
    assert [answer.people for answer in answers] == recorded(script, (SQUAT,))


def test_opening_again_begins_anew(analysis):
    stream_id = new_id()
    for _ in range(2):
        analysis.open(stream_id, "squat")
        answers = follow(analysis, stream_id, frames(1.0))
        assert [answer.people for answer in answers] == recorded(frames(1.0), (SQUAT,))
    analysis.end(stream_id)


def test_unknown_names(analysis):
    with pytest.raises(UnknownNameError, match="sink"):
        analysis.open(new_id(), "yodel")
    stream_id = new_id()
    analysis.open(stream_id, "auto")
    with pytest.raises(UnknownNameError):
        analysis.change_exercise(stream_id, "yodel")
    analysis.end(stream_id)
    analysis.end(stream_id)
    with pytest.raises(KeyError):
        analysis.analyse(stream_id, 0, 0.0, [], Encoding.JSON)
    with pytest.raises(KeyError):
        analysis.change_exercise(stream_id, "auto")


def test_more_than_the_sockets_hold(processes):
    # Nobody is followed whose score is so low.
    crowd = [replace(pose, score=0.1) for pose in poses_at(2.5)] * 150
    stream_id = new_id()
    processes.open(stream_id, "squat")
    answers = follow(processes, stream_id, [(i, i / FPS, crowd) for i in range(8)])
    processes.end(stream_id)
    assert [answer.people for answer in answers] == [b"[]"] * 8


def test_a_process_that_dies_is_replaced(processes):
    ids = [new_id(), new_id()]
    for stream_id in ids:
        processes.open(stream_id, "squat")
    script = list(frames(1.0))
    for stream_id in ids:
        follow(processes, stream_id, script[:10])
    victim = processes._homes[ids[0]]
    assert victim is not processes._homes[ids[1]]
    os.kill(victim.pid, signal.SIGSTOP)
    lost = [processes.analyse(ids[0], *frame, Encoding.JSON) for frame in script[10:]]
    processes.send()
    os.kill(victim.pid, signal.SIGKILL)
    for future in lost:
        with pytest.raises(BackendFailedError, match="ended with code -9"):
            future.result(WAIT_S)
    # The other stream goes on; this one begins anew.
    kept = follow(processes, ids[1], script[10:])
    assert [answer.people for answer in kept] == recorded(script, (SQUAT,))[10:]
    while victim.connection is None:
        time.sleep(0.01)
    again = follow(processes, ids[0], script)
    assert [answer.people for answer in again] == recorded(script, (SQUAT,))
    for stream_id in ids:
        processes.end(stream_id)


def test_processes_have_a_terminal_session_of_their_own(processes):
    """Ctrl+C reaches the parent only."""
    homes = processes._group.processes
    assert all(os.getsid(home.pid) == home.pid for home in homes)


_PARENT = """
import sys
import threading
from pose_analyzer.exercises import Exercise
from pose_analyzer.live_analysis import ProcessAnalysis
analysis = ProcessAnalysis((), 1)
assert not {"mediapipe", "torch", "onnxruntime", "av", "fastapi"} & set(sys.modules)
print(analysis._group.processes[0].pid, flush=True)
input()
"""


def test_processes_end_when_their_parent_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    give_up_s = time.monotonic() + WAIT_S
    while _runs(pid):
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether the process is there and no zombie that its new parent has not collected yet."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("receiver", ["thread", "loop"])
def test_what_was_asked_is_answered_before_closing(receiver, loop):
    analysis = ProcessAnalysis(EXERCISES, n_processes=1)
    if receiver == "loop":
        analysis.receive_in(loop)
    analysis.open("only", "squat")
    futures = [analysis.analyse("only", *frame, Encoding.JSON) for frame in frames(2.0)]
    analysis.close()
    assert [future.result(0).people for future in futures] == recorded(frames(2.0), (SQUAT,))
    with pytest.raises(BackendFailedError, match="not running"):
        analysis.analyse("only", 40, 2.0, [], Encoding.JSON).result(0)


def test_a_loop_that_waits_for_the_closing_cannot_prevent_it(monkeypatch):
    monkeypatch.setattr(process_group, "_CLOSE_S", 0.2)

    async def close_in_the_loop():
        analysis = ProcessAnalysis(EXERCISES, n_processes=1)
        analysis.receive_in(asyncio.get_running_loop())
        analysis.open("only", "squat")
        await asyncio.sleep(0.1)
        future = analysis.analyse("only", *next(frames()), Encoding.JSON)
        analysis.close()
        return future

    future = asyncio.run(close_in_the_loop())
    with pytest.raises(BackendFailedError, match="ended with code"):
        future.result(0)


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)


@st.composite
def any_pose(draw):
    values = np.array(draw(st.lists(numbers, min_size=8, max_size=8)))
    keypoints = squat_keypoints() * values[0] + values[1]
    pose = Pose(keypoints, np.resize(values, 17), np.resize(values[2:], 4), float(values[7]))
    return replace(pose, landmarks=landmarks_of(keypoints)) if draw(st.booleans()) else pose


@given(st.lists(any_pose(), max_size=4), st.integers(1, 5000))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinity times zero
def test_poses_travel_exactly_whatever_pieces_they_come_in(poses, n_bytes):
    question = messages.question("a", 7, 0.1, poses, Encoding.MSGPACK)
    sent = messages.write(question) + messages.write(messages.End("a"))
    reader = messages.Reader()
    received = [
        message
        for begin in range(0, len(sent), n_bytes)
        for message in reader.requests(sent[begin : begin + n_bytes])
    ]
    assert received == [question, messages.End("a")]
    for one, other in zip(poses, messages.poses_of(received[0]), strict=True):
        assert np.array_equal(one.score, other.score, equal_nan=True)
        for name in ("keypoints_px", "confidences", "box_px"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert (one.landmarks is None) == (other.landmarks is None)
        for name in ("image_px", "world_m", "visibility", "presence") if one.landmarks else ():
            np.testing.assert_array_equal(
                getattr(one.landmarks, name), getattr(other.landmarks, name)
            )
