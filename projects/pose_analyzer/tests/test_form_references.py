"""References: made of repetitions, kept as files, followed live, learned by one person."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pose_analyzer.errors import InvalidReferenceError, UnknownNameError
from pose_analyzer.exercises import load_exercises
from pose_analyzer.form_baseline import (
    PersonalBaseline,
    accept,
    from_reference,
    is_acceptable,
)
from pose_analyzer.form_comparison import columns_of
from pose_analyzer.form_measures import IS_ANGLE, measure_form
from pose_analyzer.form_patterns import TeachingSpec, general_pattern, taught_reference
from pose_analyzer.form_references import FormReference
from pose_analyzer.form_scorer import score_repetition
from pose_analyzer.form_types import Component
from pose_analyzer.live_form import LiveFormState, _measured, follow_form
from pose_analyzer.reference_files import (
    check_name,
    delete_reference,
    format_reference,
    load_reference,
    load_references,
    parse_reference,
    save_reference,
    select_reference,
)
from pose_analyzer.repetition_features import SIGNAL_NAMES
from pose_analyzer.repetition_tracks import track_of, tracks_of, way_back
from pose_analyzer.settings import Settings
from pose_analyzer.types import CameraView, JointAngles, View

from .builders import person_analysis, person_frame
from .form_tracks_of_squats import LEGS, squat_track

SPEC = TeachingSpec("mine", "squat", LEGS, {"source": "a test"})
MAX_BUILT_IN_BYTES = 100_000


@pytest.fixture(scope="module")
def taught():
    return taught_reference(SPEC, [squat_track(), squat_track(duration_s=2.2)])


class TestTeaching:
    def test_modes_and_tolerances(self, taught):
        shared = taught_reference(replace(SPEC, for_everyone=True), [squat_track()])
        assert (taught.mode, shared.mode) == ("personal", "general")
        faulty = squat_track(depth=0.85)
        strict, lenient = (score_repetition(faulty, r).total for r in (taught, shared))
        assert strict < lenient

    def test_whose_repetitions_differ_is_given_room(self):
        alike = taught_reference(SPEC, [squat_track()] * 3).patterns[0].scatter
        apart = taught_reference(SPEC, [squat_track(depth=depth) for depth in (0.7, 1.0, 1.2)])
        scatter = apart.patterns[0].scatter
        assert (scatter.courses >= alike.courses).all()
        knee = SIGNAL_NAMES.index("left_knee_deg")
        assert scatter.offsets[knee] > 2.0 * alike.offsets[knee]

    def test_an_odd_repetition_of_ones_own_keeps_some_points(self):
        own = taught_reference(SPEC, [squat_track(), squat_track(duration_s=2.2), squat_track()])
        odd = score_repetition(squat_track(depth=0.7), own)
        assert odd.reference.mode == "personal"
        assert 10.0 < odd.total < 70.0

    def test_more_repetitions_are_trusted_more(self):
        few, many = (
            taught_reference(SPEC, [squat_track()] * n).patterns[0].scatter.courses for n in (1, 4)
        )
        assert np.all(few > many)

    def test_a_lift_from_the_floor_is_compared_with_ways_back(self, taught):
        lift = way_back(squat_track())
        assert lift is not None
        score = score_repetition(lift, taught)
        assert score.total == pytest.approx(100.0, abs=1.0)

    def test_nothing_seen(self):
        with pytest.raises(ValueError, match="no repetition"):
            taught_reference(SPEC, [replace(squat_track(), view=View.UNKNOWN)])

    def test_many_people(self):
        people = {
            str(person): [
                [measure_form(squat_track(depth=0.9 + 0.02 * person + 0.01 * n)) for n in range(5)]
            ]
            for person in range(4)
        }
        pattern = general_pattern(people, columns_of(LEGS), View.SIDE)
        low, high = pattern.scatter.deviation_limits
        assert (pattern.n_people, pattern.n_repetitions) == (4, 20)
        assert 0.0 < low < high
        assert pattern.own_scatter is not None


class TestFiles:
    def test_reads_back_what_it_wrote(self, taught, tmp_path):
        path = save_reference(tmp_path / "new", taught)
        again = load_reference(path)
        assert format_reference(again) == format_reference(taught)
        for track in (squat_track(), squat_track(depth=0.85)):
            totals = [score_repetition(track, r).total for r in (taught, again)]
            assert totals[0] == pytest.approx(totals[1], abs=1.0)

    def test_later_folders_win_and_deleting_forgets(self, taught, tmp_path):
        one, other = tmp_path / "one", tmp_path / "other"
        save_reference(one, taught)
        save_reference(other, replace(taught, exercise="lunge"))
        assert load_references(one, other, tmp_path / "none")["mine"].exercise == "lunge"
        delete_reference(other, "mine")
        assert load_references(other) == {}
        with pytest.raises(UnknownNameError):
            delete_reference(other, "mine")

    def test_selects_by_exercise_and_name(self, taught):
        general = replace(taught, name="squat", mode="general")
        known = {"mine": taught, "squat": general}
        assert select_reference(known, "squat") is general
        assert select_reference(known, "squat", "mine") is taught
        assert select_reference(known, "lunge") is None
        with pytest.raises(UnknownNameError):
            select_reference(known, "lunge", "mine")

    @pytest.mark.parametrize("name", ["", "Mine", "../mine", "a/b", "x" * 65, "mine\n"])
    def test_refuses_names_that_are_no_plain_file_names(self, taught, tmp_path, name):
        with pytest.raises(InvalidReferenceError):
            check_name(name)
        with pytest.raises(InvalidReferenceError):
            save_reference(tmp_path, replace(taught, name=name))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2},
            {"patterns": []},
            {"signals": ["no such signal"]},
            {"mode": "both"},
            {"columns": []},
            {"unknown": 1},
        ],
    )
    def test_refuses_what_is_no_reference(self, taught, change):
        document = json.loads(format_reference(taught)) | change
        with pytest.raises(InvalidReferenceError):
            parse_reference(json.dumps(document), "test")

    def test_refuses_broken_numbers_and_text(self, taught, tmp_path):
        document = json.loads(format_reference(taught))
        document["patterns"][0]["scatter"]["log_duration"] = 0.0
        with pytest.raises(InvalidReferenceError, match="log_duration"):
            parse_reference(json.dumps(document), "test")
        with pytest.raises(InvalidReferenceError):
            parse_reference("{", "test")
        with pytest.raises(InvalidReferenceError):
            load_reference(tmp_path / "missing.json")


class TestBuiltIn:
    def test_references_are_small_say_where_they_come_from_and_fit_the_exercises(self):
        folder = Settings().references_dir
        references = load_references(folder)
        assert {"squat", "lunge", "hurdle_step", "side_lunge", "sit_to_stand"} <= set(references)
        for name, reference in references.items():
            assert (folder / f"{name}.json").stat().st_size < MAX_BUILT_IN_BYTES
            assert {"source", "licence", "made_by"} <= set(reference.provenance)
            assert [p.view for p in reference.patterns] == [
                View.FRONT,
                View.THREE_QUARTER,
                View.SIDE,
            ]
        exercises = load_exercises(Settings().exercises_dir)
        assert {"squat", "lunge"} <= set(exercises)


class TestBaseline:
    def test_three_accepted_repetitions_make_it(self):
        baseline = PersonalBaseline("squat", LEGS)
        for n in range(3):
            assert baseline.reference() is None
            baseline = accept(baseline, measure_form(squat_track(number=n + 1)))
        reference = baseline.reference()
        assert reference is not None
        assert reference.mode == "personal"
        assert baseline.waiting == ()
        assert score_repetition(squat_track(), reference).total == pytest.approx(100.0)

    def test_it_follows_slowly(self, taught):
        deeper = measure_form(squat_track(depth=0.7))
        baseline = from_reference(taught)
        once = accept(baseline, deeper)
        for _ in range(50):
            baseline = accept(baseline, deeper)

        def total(learned):
            reference = learned.reference()
            assert isinstance(reference, FormReference)
            return score_repetition(squat_track(depth=0.7), reference).total

        start = total(from_reference(taught))
        assert abs(total(once) - start) < 15.0
        assert total(baseline) > max(start, 99.0)

    def test_an_unknown_view_teaches_nothing(self):
        unknown = replace(measure_form(squat_track()), view=View.UNKNOWN)
        baseline = PersonalBaseline("squat", LEGS)
        assert accept(baseline, unknown) is baseline

    def test_only_good_repetitions_are_acceptable(self, taught):
        assert is_acceptable(None)
        assert is_acceptable(score_repetition(squat_track(), taught))
        assert not is_acceptable(score_repetition(squat_track(depth=0.5), taught))


class TestTracks:
    def test_frames_one_by_one_give_the_same_track(self):
        person = person_analysis(with_3d=False)
        (first, *_) = person.repetitions
        frames = [frame_of_row(person, row) for row in range(len(person.time_s))]
        live = track_of(frames, first)
        recorded = tracks_of(person)[0]
        assert live is not None
        for name in ("times_s", "keypoints_px", "angles_deg", "angles_trusted", "progress"):
            np.testing.assert_array_equal(getattr(live, name), getattr(recorded, name))
        assert (live.phases, live.view) == (recorded.phases, recorded.view)

    def test_too_few_frames(self):
        person = person_analysis()
        assert track_of([], person.repetitions[0]) is None


class TestLive:
    def test_names_what_is_off_while_under_way(self, taught):
        track = squat_track(lean_px=60.0)
        state, phases, joints = LiveFormState(), [], set()
        for row in range(len(track.times_s)):
            state, form = follow_form(taught, state, frame_of_track(track, row))
            assert form is not None
            phases.append(form.phase)
            if form.sd > 3.0:
                joints.add(form.joint)
        assert phases[0] < 0.2
        assert phases[-1] > 0.8
        assert joints
        assert all("hip" in joint or "knee" in joint for joint in joints)

    def test_says_nothing_of_other_views_and_of_nobody(self, taught):
        frame = frame_of_track(squat_track(), 0)
        front = replace(frame, view=CameraView(View.FRONT, 5.0, 5.0))
        nobody = replace(frame, confidences=np.zeros(17), angles=untrusted(frame.angles))
        for shown in (front, nobody):
            assert follow_form(taught, LiveFormState(), shown)[1] is None

    def test_untrusted_angles_are_not_named(self, taught):
        joints = set()
        state = LiveFormState()
        track = squat_track(lean_px=60.0)
        for row in range(len(track.times_s)):
            frame = frame_of_track(track, row)
            frame = replace(frame, angles=untrusted(frame.angles))
            state, form = follow_form(taught, state, frame)
            joints.add(form.joint)
        assert all(joint.startswith("pelvis") for joint in joints)

    def test_measures_a_frame_as_the_whole_repetition_is_measured(self):
        track = squat_track()
        whole = measure_form(track)
        body, rows = None, []
        for points in track.keypoints_px:
            body, signals = _measured(body, points, is_front=False)
            rows.append(signals)
        live = np.array([np.interp(whole.times_s, track.times_s, c) for c in np.array(rows).T]).T
        image = next(image for image in whole.images if not image.swapped)
        assert live[:, IS_ANGLE] == pytest.approx(image.signals[:, IS_ANGLE], abs=5.0)
        placed = ~IS_ANGLE & np.isfinite(live).all(axis=0)
        assert placed.sum() == 26
        assert live[:, placed] == pytest.approx(image.signals[:, placed], abs=0.05)

    @pytest.mark.parametrize(("lean_px", "low", "high"), [(0.0, 90.0, 100.0), (70.0, 0.0, 60.0)])
    def test_the_estimate_ends_near_the_score(self, taught, lean_px, low, high):
        track, state, scores = squat_track(lean_px=lean_px), LiveFormState(), []
        for row in range(len(track.times_s)):
            state, form = follow_form(taught, state, frame_of_track(track, row))
            scores.append(form.score)
        assert scores[0] > 80.0
        assert low <= scores[-1] <= high
        final = score_repetition(track, taught).components[Component.DEVIATION]
        assert abs(scores[-1] - final) < 25.0


def untrusted(angles):
    return replace(angles, trusted=np.zeros(12, dtype=bool))


def frame_of_row(person, row):
    return replace(
        person_frame(),
        time_s=float(person.time_s[row]),
        keypoints_px=person.keypoints_px[row],
        keypoints_sd_px=person.keypoints_sd_px[row],
        confidences=person.confidences[row],
        angles=JointAngles(
            person.angles_deg[row], person.angles_sd_deg[row], person.angles_trusted[row]
        ),
        phase=person.phase[row],
        progress=float(person.progress[row]),
    )


def frame_of_track(track, row):
    return replace(
        person_frame(),
        time_s=float(track.times_s[row]),
        keypoints_px=track.keypoints_px[row],
        angles=JointAngles(
            track.angles_deg[row], track.angles_sd_deg[row], track.angles_trusted[row]
        ),
    )
