"""Exercise files: the built-in ones, and what is said of unusable ones."""

from pathlib import Path

import pytest
import yaml

from pose_analyzer.errors import InvalidExerciseError, UnknownNameError
from pose_analyzer.exercises import AUTO, load_exercise, load_exercises, select_exercises
from pose_analyzer.settings import Settings
from pose_analyzer.skeletons import ANGLE_NAMES

from .builders import squat_exercise

BUILT_IN = Path(__file__).resolve().parents[3] / "config" / "exercises"
VALID = {
    "name": "curl",
    "title": "Curl",
    "description": "Forearms rise.",
    "first_phase": "concentric",
    "signal": {"feature": "elbow_deg", "start": 140, "full": 50},
    "requires": [
        {"feature": "shoulder_deg", "at": "all", "max": 60},
        {"any": [{"feature": "hip_deg", "min": 150}, {"feature": "knee_deg", "min": 150}]},
    ],
}


def write(folder, content, name="curl.yml"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_the_built_in_exercises():
    exercises = load_exercises(BUILT_IN)
    assert set(exercises) == {
        "squat",
        "push_up",
        "deadlift",
        "lunge",
        "overhead_press",
        "bicep_curl",
        "jumping_jack",
    }
    joints = {name.removeprefix("left_").removeprefix("right_") for name in ANGLE_NAMES}
    for name, exercise in exercises.items():
        assert (BUILT_IN / f"{name}.yml").is_file()
        assert exercise.title
        assert exercise.description
        assert exercise.main_angles
        assert set(exercise.main_angles) <= joints
        assert exercise.movement.exercise == name
    assert exercises["squat"].first_phase == "eccentric"
    assert exercises["bicep_curl"].first_phase == "concentric"


def test_a_file_becomes_a_movement(tmp_path):
    movement = load_exercise(write(tmp_path, VALID)).movement
    assert (movement.exercise, movement.feature) == ("curl", "elbow_deg")
    assert (movement.start, movement.full, movement.first_phase) == (140.0, 50.0, "concentric")
    (shoulder,), (hip, knee) = movement.conditions
    assert (shoulder.feature, shoulder.at, shoulder.max) == ("shoulder_deg", "all", 60.0)
    assert (hip.feature, hip.at, hip.min) == ("hip_deg", "full", 150.0)
    assert knee.feature == "knee_deg"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "Bicep Curl"}, "name: "),
        ({"first_phase": "isometric"}, "first_phase: "),
        ({"frist_phase": "eccentric"}, "frist_phase: "),
        ({"title": None}, "title: "),
        ({"signal": {"feature": "elbow", "start": 1, "full": 2}}, "signal.feature: .*elbow_deg"),
        ({"signal": {"feature": "elbow_deg", "start": 1, "full": 1}}, "signal: .*must differ"),
        (
            {"signal": VALID["signal"] | {"enter_start": 0.8, "enter_full": 0.7}},
            "signal: .*enter_start must lie below enter_full",
        ),
        ({"signal": VALID["signal"] | {"enter_full": 1.5}}, "signal.enter_full: "),
        ({"min_repetition_s": 0}, "min_repetition_s: "),
        ({"requires": [{"feature": "hip_deg"}]}, r"requires\.0.*give min, max or both"),
        ({"requires": [{"feature": "hip_deg", "min": 5, "max": 4}]}, r"requires\.0.*min below max"),
        ({"requires": [{"feature": "wings", "min": 5}]}, r"requires\.0.*wings"),
        ({"requires": [{"any": [{"feature": "hip_deg", "min": 5}]}]}, r"requires\.0"),
    ],
)
def test_an_invalid_field_is_named(tmp_path, change, reason):
    path = write(tmp_path, VALID | change)
    with pytest.raises(InvalidExerciseError, match=reason) as raised:
        load_exercise(path)
    assert raised.value.path == str(path)


@pytest.mark.parametrize("missing", ["name", "title", "description", "first_phase", "signal"])
def test_a_missing_field_is_named(tmp_path, missing):
    path = write(tmp_path, {key: value for key, value in VALID.items() if key != missing})
    with pytest.raises(InvalidExerciseError, match=f"{missing}: Field required"):
        load_exercise(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("a: [1,", "not YAML"), ("just words", "file: "), ("", "file: "), ("- 1\n- 2", "file: ")],
)
def test_what_is_no_exercise_at_all(tmp_path, content, reason):
    with pytest.raises(InvalidExerciseError, match=reason):
        load_exercise(write(tmp_path, content))


def test_what_cannot_be_read(tmp_path):
    path = tmp_path / "curl.yml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(InvalidExerciseError):
        load_exercise(path)


class TestFolder:
    def test_by_name_in_alphabetical_order_of_files(self, tmp_path):
        write(tmp_path, VALID, "b.yml")
        write(tmp_path, VALID | {"name": "row"}, "a.yml")
        write(tmp_path, "not read", "notes.txt")
        assert list(load_exercises(tmp_path)) == ["row", "curl"]

    def test_one_name_twice(self, tmp_path):
        write(tmp_path, VALID, "a.yml")
        write(tmp_path, VALID, "b.yml")
        with pytest.raises(InvalidExerciseError, match=r"b\.yml: curl is described twice"):
            load_exercises(tmp_path)

    @pytest.mark.parametrize("name", [".", "not there"])
    def test_nothing_there(self, tmp_path, name):
        with pytest.raises(InvalidExerciseError, match="no exercise file"):
            load_exercises(tmp_path / name)

    def test_the_settings_name_it(self, tmp_path, monkeypatch):
        write(tmp_path, VALID)
        monkeypatch.delenv("POSE_EXERCISES_DIR", raising=False)
        assert Settings().exercises_dir == BUILT_IN
        monkeypatch.setenv("POSE_EXERCISES_DIR", str(tmp_path))
        assert list(load_exercises(Settings().exercises_dir)) == ["curl"]


class TestSelect:
    @property
    def known(self):
        return {"squat": squat_exercise(), "row": squat_exercise(name="row")}

    def test_one(self):
        assert select_exercises(self.known, "row") == (self.known["row"],)

    def test_auto_is_all_of_them(self):
        assert select_exercises(self.known, AUTO) == tuple(self.known.values())

    def test_unknown_names_are_told_the_known_ones(self):
        with pytest.raises(UnknownNameError, match=r"'jump'\. Known: auto, squat, row") as raised:
            select_exercises(self.known, "jump")
        assert raised.value.known == ("auto", "squat", "row")
