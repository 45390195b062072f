"""The client reads what the service writes."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest

from pose_analyzer import wire as service
from pose_analyzer.camera_view import CameraView
from pose_analyzer.form_types import (
    CannotJudge,
    Component,
    Cue,
    Fault,
    FormScore,
    FormUpdate,
    PointLoss,
    Reason,
    ReferenceUsed,
)
from pose_analyzer.live_form import LiveForm
from pose_analyzer.skeletons import ANGLE_NAMES, KEYPOINT_NAMES
from pose_analyzer.stream_types import Encoding, StreamState
from pose_analyzer.types import JointAngles, PersonFrame, Phase, Repetition, View
from pose_analyzer_client import wire
from pose_analyzer_client.options import ClientOptions, StreamOptions, StreamRequest
from pose_analyzer_client.results import Names, Result

NAMES = Names(KEYPOINT_NAMES, ANGLE_NAMES)


def angles(first_deg):
    values_deg = np.linspace(first_deg, 170.0, 12)
    values_deg[3] = math.nan
    known = np.isfinite(values_deg)
    return JointAngles(values_deg, np.where(known, 2.5, math.nan), known)


def person_frame(**changes):
    keypoints_px = np.arange(34, dtype=np.float64).reshape(17, 2) / 3
    keypoints_px[9] = math.nan
    known = np.isfinite(keypoints_px[:, 0])
    members = {
        "track_id": 7,
        "frame_index": 41,
        "time_s": 1.5,
        "detected": True,
        "score": 0.875,
        "box_px": np.array([1.0, 2.0, 30.5, 40.0]),
        "keypoints_px": keypoints_px,
        "keypoints_sd_px": np.where(known, 1.25, math.nan),
        "confidences": np.where(known, 0.9, 0.0),
        "flags": np.array([0, 1, 2, 4, 7] + [0] * 12, np.uint8),
        "landmarks": None,
        "angles": angles(10.0),
        "angles_3d": angles(20.0),
        "view": CameraView(View.THREE_QUARTER, 45.0, 5.0),
        "exercise": "squat",
        "phase": Phase.BOTTOM,
        "progress": 0.75,
        "n_repetitions": 3,
    }
    return PersonFrame(**(members | changes))


def repetition(**changes):
    members = {
        "exercise": "squat",
        "number": 3,
        "start_s": 0.1,
        "turn_s": 0.9,
        "end_s": 1.4,
        "eccentric_s": 0.7,
        "hold_s": 0.1,
        "concentric_s": 0.5,
        "depth": 1.1,
    }
    return Repetition(**(members | changes))


def written(message, encoding):
    data = service.encode(message, encoding)
    return data.decode() if encoding is Encoding.JSON else data


def result_of(people, encoding):
    told = service.WrittenResult(
        frame=41,
        captured_s=1.5,
        received_s=10.0,
        answered_s=10.25,
        width_px=640,
        height_px=480,
        people=msgspec.Raw(service.encode(people, encoding)),
        timing=service.Timing(queue_s=0.01, decode_s=0.02, infer_s=0.03, postprocess_s=0.04),
        dropped={"stale": 2},
    )
    return wire.decode(written(told, encoding))


@pytest.mark.parametrize("encoding", list(Encoding))
def test_people_arrive_to_the_last_digit(encoding):
    seen = person_frame()
    told = result_of([service.Person.of(seen, repetition())], encoding)
    result = Result.of(told, NAMES)
    person = result.people[0]
    for name in ("box_px", "keypoints_px", "keypoints_sd_px", "confidences", "flags"):
        np.testing.assert_array_equal(getattr(person, name), getattr(seen, name))
    for mine, theirs in ((person.angles, seen.angles), (person.angles_3d, seen.angles_3d)):
        np.testing.assert_array_equal(mine.values_deg, theirs.values_deg)
        np.testing.assert_array_equal(mine.sd_deg, theirs.sd_deg)
        np.testing.assert_array_equal(mine.trusted, theirs.trusted)
    knee = person.angle("left_knee")
    assert knee.value_deg == seen.angles.values_deg[ANGLE_NAMES.index("left_knee")]
    assert person.keypoint_px("left_hip") == tuple(seen.keypoints_px[11])
    same = ("track_id", "detected", "score", "exercise", "progress", "n_repetitions")
    assert [getattr(person, n) for n in same] == [getattr(seen, n) for n in same]
    assert (person.view, person.yaw_deg, person.phase) == ("three_quarter", 45.0, "bottom")
    last = person.last_repetition
    assert (last.number, last.end_s, last.depth) == (3, 1.4, 1.1)
    assert (result.frame, result.timing.infer_s, result.dropped) == (41, 0.03, {"stale": 2})


@pytest.mark.parametrize("encoding", list(Encoding))
def test_what_is_not_known_is_nan_or_none(encoding):
    unknown = JointAngles(np.full(12, math.nan), np.full(12, math.nan), np.zeros(12, bool))
    seen = person_frame(
        keypoints_px=np.full((17, 2), math.nan),
        score=math.nan,
        box_px=np.full(4, math.nan),
        angles=unknown,
        angles_3d=None,
        view=CameraView(View.UNKNOWN, math.nan, math.nan),
        exercise=None,
        phase=Phase.UNKNOWN,
        progress=math.nan,
    )
    last = repetition(turn_s=math.nan, depth=math.nan)
    people = [service.Person.of(seen, last), service.Person.of(seen, None)]
    first, second = Result.of(result_of(people, encoding), NAMES).people
    for person in (first, second):
        assert np.isnan(person.keypoints_px).all()
        assert np.isnan(person.box_px).all()
        assert np.isnan([person.score, person.yaw_deg, person.progress]).all()
        assert np.isnan(person.angle("right_elbow").value_deg)
        assert not person.angle("right_elbow").trusted
        assert (person.angles_3d, person.exercise) == (None, None)
    assert np.isnan([first.last_repetition.turn_s, first.last_repetition.depth]).all()
    assert second.last_repetition is None
    assert Result.of(result_of([], encoding), NAMES).people == ()


@pytest.mark.parametrize("encoding", list(Encoding))
def test_form_arrives(encoding):
    loss = PointLoss(
        Component.TEMPO, 2.5, 3, Phase.BOTTOM, "body", 0.8, "s", 1.0, 0.5, 1.5, "tempo.slower", 12
    )
    score = FormScore(
        97.5,
        {Component.TEMPO: 97.5, Component.SYMMETRY: None},
        (loss,),
        (CannotJudge("left_knee", Reason.VIEW),),
        ReferenceUsed("maria", "personal", View.SIDE),
    )
    fault = Fault("heels_lifting", 0.5, "ankle", None, Phase.BOTTOM, 3, 0.1, "body_ratio", 1.0)
    cue = Cue("correct.heels_lifting", "Heels down.", "correction", "heels_lifting", 3, 2.0)
    told = service.Form.of(FormUpdate(1, 3, score, (fault,), (), None, cue))
    people = [service.Person.of(person_frame(), repetition(), told)]
    form = Result.of(result_of(people, encoding), NAMES).people[0].form
    assert (form.repetition, form.score, form.reference, form.mode) == (
        3,
        97.5,
        "maria",
        "personal",
    )
    assert form.components["tempo"] == 97.5
    assert np.isnan(form.components["symmetry"])
    assert (form.losses[0].joint, form.losses[0].amount) == ("body", 0.8)
    assert (form.faults[0].name, form.faults[0].side) == ("heels_lifting", None)
    assert form.cannot_judge == {"left_knee": "view"}
    assert form.anomaly is None
    assert (form.cue.text, form.cue.time_s) == ("Heels down.", 2.0)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_form_within_a_repetition_arrives(encoding):
    now = LiveForm(0.25, 81.5, "left_knee_sideways", -0.06, "body_ratio", 2.5)
    people = [
        service.Person.of(person_frame(), repetition(), now=now),
        service.Person.of(person_frame(), repetition()),
    ]
    told, silent = Result.of(result_of(people, encoding), NAMES).people
    assert dataclasses.asdict(told.form_now) == dataclasses.asdict(now)
    assert silent.form_now is None


@pytest.mark.parametrize("encoding", list(Encoding))
def test_all_other_messages_are_understood(encoding):
    ready = service.Ready(
        stream_id="s",
        next_frame=5,
        resumed=True,
        exercise="auto",
        detector="d",
        device="cpu",
        state=StreamState.SHED,
    )
    assert wire.decode(written(ready, encoding)) == wire.Ready(
        "s", 5, True, "auto", "d", "cpu", "shed"
    )
    state = service.State(state=StreamState.PAUSED, reason="why")
    assert wire.decode(written(state, encoding)) == wire.State("paused", "why")
    error = service.Error(code="overload", detail="why", frame=3)
    assert wire.decode(written(error, encoding)) == wire.Error("overload", "why", 3)
    pong = service.Pong(data="x", time_s=2.5)
    assert wire.decode(written(pong, encoding)) == wire.Pong("x", 2.5)


@pytest.mark.parametrize(
    ("sent", "understood"),
    [
        ({"type": "frame", "captured_s": 1.25}, service.FrameHeader(captured_s=1.25)),
        ({"type": "pause"}, service.Pause()),
        ({"type": "resume"}, service.Resume()),
        ({"type": "exercise", "exercise": "squat"}, service.ChangeExercise(exercise="squat")),
        ({"type": "ping", "data": "7"}, service.Ping(data="7")),
    ],
)
def test_the_service_understands_the_client(sent, understood):
    assert service.decode_client_message(wire.encode(sent)) == understood


def test_both_know_the_same_subprotocols():
    assert wire.SUBPROTOCOLS["json"] == service.JSON_SUBPROTOCOL
    assert wire.SUBPROTOCOLS[ClientOptions().encoding] == service.MSGPACK_SUBPROTOCOL


def test_the_service_takes_what_a_stream_is_started_with():
    from pose_analyzer.api.stream_schemas import StreamStart

    options = StreamOptions(sample_fps=10.0, roi=(0.0, 0.1, 0.5, 1.0), priority=2)
    body = StreamStart.model_validate(StreamRequest("squat", "yolo", options).as_json())
    assert (body.exercise, body.detector, body.roi, body.priority) == (
        "squat",
        "yolo",
        (0.0, 0.1, 0.5, 1.0),
        2,
    )
    assert (body.fps, body.sample_fps) == (10.0, None)
