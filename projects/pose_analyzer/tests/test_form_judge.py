"""Each repetition is judged once, when it is over, the same however its frames arrive."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pose_analyzer.errors import UnknownNameError
from pose_analyzer.exercises import load_exercises, select_exercises
from pose_analyzer.form_library import FormChoice, FormFolders, load_form_library
from pose_analyzer.form_model_file import SHIPPED
from pose_analyzer.form_types import Verdict
from pose_analyzer.live_analysis import messages
from pose_analyzer.live_analysis.messages import Change, Configure, Open
from pose_analyzer.live_analysis.worker import Sessions
from pose_analyzer.reference_files import save_reference
from pose_analyzer.settings import Settings
from pose_analyzer.stream_analyzer import AnalysisConfig, StreamAnalyzer
from pose_analyzer.stream_types import Encoding
from pose_analyzer.types import Pose
from pose_analyzer.video_processor import process_video

from .builders import FakeDetector, FakeSource, pose_of, squat_keypoints, squat_progress
from .test_form_scorer import REFERENCE

SETTINGS = Settings()
EXERCISES = load_exercises(SETTINGS.exercises_dir)


def folders(tmp_path, models=None):
    return FormFolders(
        SETTINGS.references_dir, tmp_path, SETTINGS.faults_dir, SETTINGS.coaching_dir, models
    )


@pytest.fixture
def library(tmp_path):
    return load_form_library(folders(tmp_path))


def config_for(library, exercise="squat", **choice):
    chosen = select_exercises(EXERCISES, exercise)
    return AnalysisConfig(
        chosen,
        exercise,
        sample_fps=None,
        judge=library.judge_config(chosen, FormChoice(**choice)),
    )


def squats(time_s, n=3, depth=1.0):
    return [pose_of(squat_keypoints(depth * squat_progress(time_s, n_repetitions=n)))]


def judged(config, people=squats, seconds=9.0):
    forms = []
    source = FakeSource(np.arange(0, seconds, 1 / 30))
    analysis = process_video(source, FakeDetector(people), config, on_form=forms.append)
    return analysis, forms


@pytest.mark.parametrize("exercise", ["squat", "auto"])
def test_every_repetition_is_judged_once(library, exercise):
    analysis, forms = judged(config_for(library, exercise))
    (person,) = analysis.people
    assert [form.repetition for form in forms] == [r.number for r in person.repetitions]
    assert len(forms) == 3
    assert all(form.score.total is not None for form in forms)


def test_the_last_repetition_is_judged_though_the_recording_ends_with_it(library):
    _, forms = judged(config_for(library), seconds=6.6)
    assert [form.repetition for form in forms] == [1, 2, 3]


def test_nothing_is_judged_unless_asked():
    config = AnalysisConfig(select_exercises(EXERCISES, "squat"), "squat", sample_fps=None)
    assert judged(config)[1] == []


def test_a_chosen_reference_stays(library, tmp_path):
    save_reference(tmp_path, REFERENCE)
    _, forms = judged(
        config_for(library, "squat", reference="good"), lambda t: squats(t, n=6), seconds=14.0
    )
    assert len(forms) == 6
    assert {form.score.reference.name for form in forms} == {"good"}


def test_without_a_reference_the_first_repetitions_make_one(library, monkeypatch):
    monkeypatch.setattr(type(library), "references", lambda _: {})
    _, forms = judged(config_for(library), lambda t: squats(t, n=6), seconds=14.0)
    assert [form.score.total is None for form in forms] == [True] * 3 + [False] * 3
    assert forms[-1].score.reference.mode == "personal"
    assert forms[-1].score.total > 80.0


def test_what_is_like_ones_own_repetitions_is_not_unusual(tmp_path, monkeypatch):
    library = load_form_library(folders(tmp_path, SHIPPED))
    monkeypatch.setattr(type(library), "references", lambda _: {})
    _, forms = judged(config_for(library), lambda t: squats(t, n=6), seconds=14.0)
    assert forms[-1].anomaly.mode == "personal"
    assert forms[-1].anomaly.verdict is not Verdict.ANOMALOUS


@pytest.mark.parametrize("known", [True, False], ids=["reference", "none"])
def test_frames_are_compared_while_a_repetition_is_under_way(library, monkeypatch, known):
    if not known:
        monkeypatch.setattr(type(library), "references", lambda _: {})
    analyzer = StreamAnalyzer(None, config_for(library))
    assert analyzer.form_now(1) is None
    told = {}
    for index, time_s in enumerate(np.arange(0, 14.0, 1 / 30)):
        analyzer.observe(squats(time_s, n=5), index, float(time_s))
        told[float(time_s)] = analyzer.form_now(1)
    at_rest = [now for time_s, now in told.items() if time_s < 0.4 or time_s > 11.5]
    assert not any(at_rest)
    first = [now for time_s, now in told.items() if 1.0 < time_s < 2.0 and now is not None]
    fifth = [now for time_s, now in told.items() if 9.0 < time_s < 10.0 and now is not None]
    # Without a general one, three repetitions make a reference.
    assert bool(first) is known
    assert len(fifth) > 15
    assert fifth[0].phase < 0.5 < fifth[-1].phase
    assert all(now.score > 60.0 for now in fifth)


def test_an_unknown_reference_or_language(library):
    with pytest.raises(UnknownNameError, match="reference"):
        config_for(library, reference="nobody")
    with pytest.raises(UnknownNameError, match="language"):
        config_for(library, language="tlh")


def test_counting_anew_keeps_what_was_learned(library, monkeypatch):
    monkeypatch.setattr(type(library), "references", lambda _: {})
    config = config_for(library)
    analyzer = StreamAnalyzer(None, config)
    forms = []
    for index, time_s in enumerate(np.arange(0, 11.5, 1 / 30)):
        analyzer.observe(squats(time_s, n=4), index, float(time_s))
        forms += analyzer.new_forms
    assert len(forms) == 4
    analyzer.change_exercises(config.exercises, config.judge)
    for index, time_s in enumerate(np.arange(0, 9.5, 1 / 30), start=1000):
        analyzer.observe(squats(time_s, n=1), index, float(time_s) + 12.0)
        if analyzer.new_forms:
            (form,) = analyzer.new_forms
    assert form.repetition == 1
    assert form.score.reference.mode == "personal"


LIBRARY = load_form_library(folders(SETTINGS.taught_references_dir))


KEYPOINTS = {
    "noise": lambda rng: rng.uniform(-1e4, 1e4, (17, 2)),
    "person": lambda rng: squat_keypoints(rng.uniform(0.0, 1.0)),
    "point": lambda rng: np.full((17, 2), 3000.0),
    "unknown": lambda rng: np.full((17, 2), np.nan),
    "huge": lambda rng: rng.uniform(-1e12, 1e12, (17, 2)),
}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(KEYPOINTS)), st.floats(0.0, 1.0)), max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_any_keypoints_are_borne(runs, seed):
    rng = np.random.default_rng(seed)
    analyzer = StreamAnalyzer(None, config_for(LIBRARY, "auto"))
    index = 0
    for kind, confidence in runs:
        for _ in range(8):
            keypoints = KEYPOINTS[kind](rng)
            box = np.array([0.0, 0.0, 100.0, 100.0])
            pose = Pose(keypoints, np.full(17, confidence), box, 0.9)
            analyzer.observe([pose], index, index / 10.0)
            index += 1
    analyzer.finish()


def test_a_process_outlives_references_that_are_deleted_or_spoiled(tmp_path):
    sessions = Sessions()
    fields = [exercise.model_dump() for exercise in EXERCISES.values()]
    sessions.handle(Configure(fields, folders(tmp_path).as_texts()))
    sessions.handle(Open("a", "squat", FormChoice("gone")))
    (tmp_path / "bad.json").write_text("{}")
    sessions.handle(Open("b", "squat", FormChoice()))
    sessions.handle(Change("a", "lunge"))
    pose = messages.question("a", 0, 0.0, squats(0.0), Encoding.JSON)
    assert sessions.handle(pose).n_people == 1
