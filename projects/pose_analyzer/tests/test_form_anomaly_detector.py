"""What the anomaly detector must answer, whatever it is given."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pose_analyzer.errors import InvalidFormModelError
from pose_analyzer.form_anomalies import (
    MAX_REFERENCES,
    AnomalyState,
    judge_anomaly,
    newest,
    remember,
)
from pose_analyzer.form_anomaly_detector import (
    MIN_REFERENCES,
    FormModel,
    LinearModel,
    judge,
    learn_references,
)
from pose_analyzer.form_model_file import (
    ANY,
    SHIPPED,
    VERSION,
    FormModels,
    load_models,
    save_models,
)
from pose_analyzer.form_trees import Trees
from pose_analyzer.repetition_features import RepetitionFeatures, measure_repetition, mirror
from pose_analyzer.types import View

from .builders import squat_keypoints

VIEWS = (View.FRONT, View.THREE_QUARTER, View.SIDE)
EXERCISES = ("hurdle_step", "lunge", "side_lunge", "sit_to_stand", "squat")


@cache
def loaded() -> FormModels:
    return load_models()


@pytest.fixture
def models() -> FormModels:
    return loaded()


@pytest.fixture
def squat_model(models) -> FormModel:
    return models.select("squat", View.FRONT)


def squat(seed: int, fault_px: float = 0.0, n_frames: int = 60) -> RepetitionFeatures:
    """A squat of one person; with a fault the knees go astray on the way."""
    rng = np.random.default_rng(seed)
    times_s = np.linspace(0.0, 2.0, n_frames)
    progress = 0.5 - 0.5 * np.cos(np.pi * times_s)
    keypoints = np.stack([squat_keypoints(p) for p in progress])
    keypoints += rng.normal(0.0, 1.0, (1, *keypoints.shape[1:]))
    keypoints[:, 13:15, 0] += fault_px * progress[:, None]
    keypoints[:, 9:11, 1] -= fault_px * progress[:, None]
    return measure_repetition(times_s, keypoints, np.full(keypoints.shape[:2], 0.9))


_GOOD = tuple(squat(seed) for seed in (1, 2, 3))


def test_trees_answer_as_read_by_hand():
    stump = Trees(
        feature=np.array([[1, 0, 0], [0, 0, 0]]),
        threshold=np.array([[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        left=np.array([[1, 1, 2], [0, 0, 0]]),
        right=np.array([[2, 1, 2], [0, 0, 0]]),
        value=np.array([[0.0, 10.0, 20.0], [2.0, 0.0, 0.0]]),
        depth=1,
    )
    answers = stump.mean_value(np.array([[9.0, 0.5], [9.0, 0.6]]))
    assert answers.tolist() == [6.0, 11.0]


def test_a_linear_model_answers_as_read_by_hand():
    model = LinearModel(np.array([2.0, -1.0]), 0.5)
    assert model.log_odds(np.array([[1.0, 1.0], [0.0, 3.0]])).tolist() == [1.5, -2.5]


class TestPersonal:
    def test_own_repetitions_are_normal_and_gross_faults_are_not(self, squat_model):
        references = learn_references([squat(s) for s in range(3)], squat_model)
        good, bad = (judge(squat(9, fault_px=f), references, squat_model) for f in (0.0, 60.0))
        assert (good.verdict, good.mode) == ("normal", "personal")
        assert bad.verdict == "faulty"
        assert bad.probability > 0.5 > good.probability

    def test_unusual_signals_name_what_moved(self, squat_model):
        references = learn_references([squat(s) for s in range(3)], squat_model)
        unusual = judge(squat(9, fault_px=60.0), references, squat_model).unusual
        assert any("knee" in u.signal or "wrist" in u.signal for u in unusual)
        sizes = [abs(u.in_sd) for u in unusual]
        assert sizes == sorted(sizes, reverse=True)
        assert all(0.0 < u.phase < 1.0 for u in unusual)

    def test_the_other_side_of_the_body_is_judged_alike(self, squat_model):
        references = learn_references([squat(s) for s in range(3)], squat_model)
        one = squat(9, fault_px=30.0)
        scores = [judge(r, references, squat_model).score for r in (one, mirror(one))]
        assert scores[0] == pytest.approx(scores[1], abs=1e-6)

    def test_two_repetitions_are_no_baseline(self, squat_model):
        assert learn_references([squat(0), squat(1)], squat_model) is None


class TestBaselineKeptUp:
    @pytest.fixture
    def begun(self, squat_model) -> AnomalyState:
        state = AnomalyState()
        for seed in range(MIN_REFERENCES):
            assert state.references == {}
            state = remember(state, View.FRONT, squat(seed), squat_model)
        return state

    def test_normal_repetitions_join_up_to_a_number(self, begun, squat_model):
        state = begun
        for seed in range(10, 10 + 2 * MAX_REFERENCES):
            state = remember(state, View.FRONT, squat(seed), squat_model)
        n_kept = len(state.references[View.FRONT].weights)
        assert MIN_REFERENCES < n_kept <= MAX_REFERENCES
        assert state.seen[View.FRONT][:MIN_REFERENCES] == begun.seen[View.FRONT]

    def test_a_fault_is_not_learned(self, begun, squat_model):
        fault = squat(9, fault_px=60.0)
        assert remember(begun, View.FRONT, fault, squat_model) is begun
        assert judge_anomaly(begun, View.FRONT, fault, squat_model).mode == "personal"

    @given(st.integers(0, 30))
    def test_the_first_and_the_newest_are_kept(self, n):
        kept = newest(range(n))
        assert len(kept) == min(n, MAX_REFERENCES)
        assert kept == sorted(kept)
        assert kept[:MIN_REFERENCES] == list(range(min(n, MIN_REFERENCES)))
        assert n == 0 or kept[-1] == n - 1


class TestWithoutBaseline:
    @pytest.mark.parametrize("exercise", EXERCISES)
    @pytest.mark.parametrize("view", VIEWS)
    def test_trained_exercises_are_judged(self, models, exercise, view):
        anomaly = judge(squat(0), None, models.select(exercise, view))
        assert anomaly.mode == "general"
        assert 0.0 <= anomaly.probability <= 1.0

    def test_others_are_not_judged_until_there_is_a_baseline(self, models):
        model = models.select("deadlift", View.SIDE)
        assert (model.exercise, model.general) == (ANY, None)
        anomaly = judge(squat(0), None, model)
        assert (anomaly.verdict, anomaly.mode) == ("unsure", "none")
        assert np.isnan(anomaly.probability)
        references = learn_references([squat(s) for s in range(3)], model)
        same, other = (judge(squat(9, fault_px=f), references, model) for f in (0.0, 60.0))
        assert same.mode == other.mode == "personal"
        assert same.score < other.score


class TestBadInput:
    @settings(deadline=None, max_examples=30)
    @given(
        hidden=st.sets(st.integers(0, 16)),
        n_frames=st.integers(2, 40),
        seed=st.integers(0, 5),
        confidence=st.sampled_from([0.0, 0.05, 0.9]),
    )
    def test_unseen_keypoints_give_an_answer(self, hidden, n_frames, seed, confidence):
        squat_model = loaded().select("squat", View.FRONT)
        times_s = np.linspace(0.0, 2.0, n_frames)
        keypoints = np.stack([squat_keypoints(p) for p in np.sin(np.pi * times_s / 2.0)])
        keypoints += np.random.default_rng(seed).normal(0.0, 2.0, keypoints.shape)
        keypoints[:, sorted(hidden)] = np.nan
        confidences = np.full(keypoints.shape[:2], confidence)
        features = measure_repetition(times_s, keypoints, confidences)
        own = learn_references([features, *_GOOD], squat_model)
        for references in (own, None):
            anomaly = judge(features, references, squat_model)
            assert anomaly.verdict in {"normal", "faulty", "unsure"}
            assert np.isfinite(anomaly.score) or anomaly.verdict == "unsure"
            if confidence < 0.1:
                assert (anomaly.verdict, anomaly.known_ratio) == ("unsure", 0.0)

    def test_one_frame_is_no_repetition(self):
        with pytest.raises(ValueError, match="two frames"):
            measure_repetition(np.zeros(1), np.zeros((1, 17, 2)), np.ones((1, 17)))

    def test_repetitions_that_show_nothing_are_no_baseline(self, squat_model):
        unseen = np.full((10, 17, 2), np.nan)
        nothing = measure_repetition(np.arange(10.0), unseen, np.zeros((10, 17)))
        assert learn_references([nothing, squat(0), squat(1)], squat_model) is None


class TestFile:
    def test_shipped_models_are_small_and_name_their_exercises(self, models):
        assert SHIPPED.stat().st_size < 10**6
        assert models.trained() == EXERCISES

    def test_saved_models_answer_the_same(self, models, squat_model, tmp_path):
        path = tmp_path / "models.npz"
        save_models([squat_model, models.select("deadlift", View.SIDE)], path)
        again = load_models(path).select("squat", View.FRONT)
        for references in (None, [squat(s) for s in range(3)]):
            first, second = (
                judge(squat(7), references and learn_references(references, m), m).score
                for m in (squat_model, again)
            )
            assert first == pytest.approx(second, abs=0.1)

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 torn"])
    def test_other_files_are_refused(self, tmp_path, content):
        path = tmp_path / "models.npz"
        path.write_bytes(content)
        with pytest.raises(InvalidFormModelError, match=r"models\.npz"):
            load_models(path)

    def test_missing_files_are_refused(self, tmp_path):
        with pytest.raises(InvalidFormModelError):
            load_models(tmp_path / "absent.npz")

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"version": np.array(VERSION + 1)}, "version"),
            ({"signals": np.array(["knee"])}, "signals"),
            ({"names": np.array(["squat/front"])}, "without training"),
            ({"squat/front/general/linear": np.array("text")}, "convert"),
            ({"squat/front/personal/trees/right": np.full((1, 1), 7, np.int16)}, "leads out"),
            ({"names": np.array([{}], dtype=object)}, "pickle"),
        ],
    )
    def test_wrong_contents_are_refused(self, tmp_path, changed, reason):
        with np.load(SHIPPED) as archive:
            arrays = dict(archive) | changed
        path = tmp_path / "models.npz"
        np.savez(path, **arrays)
        with pytest.raises(InvalidFormModelError, match=reason):
            load_models(path)
