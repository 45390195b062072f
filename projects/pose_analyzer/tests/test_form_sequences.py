"""Any keypoints get an answer, in the words of `POST /analyze-form`."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pose_analyzer.api.form_schemas import FormQuestion, SetForm
from pose_analyzer.exercises import load_exercises
from pose_analyzer.form_library import folders_of, load_form_library
from pose_analyzer.form_sequences import judge_keypoints
from pose_analyzer.form_types import FormChoice
from pose_analyzer.settings import Settings
from pose_analyzer.stream_analyzer import AnalysisConfig

EXERCISES = tuple(load_exercises(Settings().exercises_dir).values())
JUDGE = load_form_library(folders_of(Settings())).judge_config(EXERCISES, FormChoice())
NAN_POINT = [None, None, 0.0]
POINT = st.one_of(
    st.just(NAN_POINT),
    st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0.0, 1.0)).map(list),
)


# In a module without a running service, whose threads draw random numbers while Hypothesis looks
# after them.
@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(POINT, min_size=17, max_size=17), min_size=1, max_size=6))
@example([[[0.0, 0.0, 1.0]] * 17])
@example([[[n * 1e-170, 0.0, 1.0] for n in range(17)]])
@example([[[n * 1e-160, n * n * 1e-160, 1.0] for n in range(17)]] * 6)
def test_any_keypoints_get_an_answer(frames: list[object]) -> None:
    question = FormQuestion.model_validate({"fps": 30.0, "frames": frames})
    judged = judge_keypoints(AnalysisConfig(EXERCISES, judge=JUDGE), question.sequence())
    assert SetForm.of(judged).problems == ["No repetition was counted."]
