"""Teaching a reference from video, and collecting references from a list of clips."""

import csv
import importlib
from pathlib import Path

import pytest
import yaml
from collect_fitness_data import collect, read_list
from typer.testing import CliRunner

from pose_analyzer.cli import app
from pose_analyzer.form_scorer import score_repetition
from pose_analyzer.reference_files import load_reference

from .builders import FakeDetector, squat_exercise, squat_pose, squat_progress
from .form_tracks_of_squats import squat_track
from .test_cli_analyze import video  # noqa: F401 - a fixture

teach_module = importlib.import_module("pose_analyzer.cli.teach")


def squats(time_s):
    return [squat_pose(squat_progress(time_s, 0.4, 1), (160.0, 220.0), 160.0)]


def nobody(time_s):
    return []


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> dict:
    shown = {"people": squats}
    monkeypatch.setattr(
        teach_module, "create_detector", lambda *_, **__: FakeDetector(shown["people"])
    )
    return shown


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    folder = tmp_path / "exercises"
    folder.mkdir()
    squat = squat_exercise(main_angles=["knee", "hip", "trunk_inclination"])
    (folder / "squat.yml").write_text(yaml.safe_dump(squat.model_dump(mode="json")))
    monkeypatch.setenv("POSE_EXERCISES_DIR", str(folder))
    monkeypatch.setenv("POSE_REFERENCES_DIR", str(tmp_path / "no-references"))
    monkeypatch.setenv("COLUMNS", "160")
    return CliRunner()


def teach(runner, video, out, *options):  # noqa: F811
    arguments = ["teach", str(video), "--exercise", "squat", "--out", str(out), *options]
    return runner.invoke(app, arguments)


def test_one_good_repetition_becomes_a_reference(runner, people, video, tmp_path):  # noqa: F811
    result = teach(runner, video, tmp_path / "taught", "--name", "coach")
    assert result.exit_code == 0, result.output
    path = tmp_path / "taught" / "coach.json"
    assert str(path) in result.stdout
    reference = load_reference(path)
    assert (reference.mode, reference.exercise) == ("personal", "squat")
    assert reference.provenance["source"] == "squats.mp4"
    assert score_repetition(squat_track(), reference).total is not None


def test_what_cannot_be_taught_is_one_line_and_code_2(
    runner,
    people,
    video,  # noqa: F811
    tmp_path,
):
    out = tmp_path / "taught"
    bad_name = teach(runner, video, out, "--name", "../coach")
    people["people"] = nobody
    unseen = teach(runner, video, out, "--name", "coach")
    for result in (bad_name, unseen):
        assert result.exit_code == 2
        assert "Traceback" not in result.output
    assert "no repetition of squat" in unseen.output
    assert not out.exists()


def test_a_list_of_clips_becomes_references_and_a_table(
    runner,
    people,
    video,  # noqa: F811
    tmp_path,
    capsys,
):
    listed = tmp_path / "clips.csv"
    listed.write_text(f"video,exercise,form_quality\n{video},squat,good\nmissing.mp4,squat,bad\n")
    assert collect(listed, tmp_path / "out", "fake") == 1
    assert "missing.mp4" in capsys.readouterr().err
    with (tmp_path / "out" / "metadata.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["video_id"], row["exercise_type"], row["form_quality"]) == (
        "squats",
        "squat",
        "good",
    )
    start_s, turn_s, end_s = (float(part) for part in row["keyframes"].split("/"))
    assert start_s < turn_s < end_s
    assert load_reference(tmp_path / "out" / "references" / "squat.json").mode == "general"


@pytest.mark.parametrize(
    "text", ["video,exercise\n", "video,exercise,form_quality\na,squat,fine\n"]
)
def test_a_wrong_list_says_so(text, tmp_path):
    listed = tmp_path / "clips.csv"
    listed.write_text(text)
    with pytest.raises(ValueError, match="form_quality"):
        read_list(listed)
