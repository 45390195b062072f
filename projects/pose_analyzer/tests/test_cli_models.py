import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pose_analyzer.cli import app
from pose_analyzer.cli.exits import Commands
from pose_analyzer.errors import (
    BackendFailedError,
    ModelUnavailableError,
    UnreadableSourceError,
)
from pose_analyzer.model_files import MODELS, store
from shared_utils.exits import ExitCode

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    return CliRunner(
        env={
            "POSE_MODEL_PATH": "",
            "POSE_MODEL_DIR": str(tmp_path / "models"),
            "POSE_CLIPS_DIR": str(tmp_path / "clips"),
            "COLUMNS": "120",
        }
    )


def test_the_table_lists_every_model_with_its_licence(runner: CliRunner) -> None:
    result = runner.invoke(app, ["models"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in MODELS)
    assert "AGPL-3.0" in result.stdout
    assert "missing" in result.stdout


def test_the_list_is_also_json(runner: CliRunner) -> None:
    result = runner.invoke(app, ["models", "list", "--clips", "--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["jumping-jacks"]["licence"] == "BSD-3-Clause"
    assert rows["jumping-jacks"]["path"] is None


def test_a_failed_download_is_one_line_and_the_others_still_arrive(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise store.SourceFailedError("no connection to anywhere")

    monkeypatch.setattr(store, "download_http", fail)
    here = tmp_path / "models" / "yolo11n-pose.pt"
    here.parent.mkdir()
    with zipfile.ZipFile(here, "w") as file:
        file.writestr("weights", "own")
    result = runner.invoke(app, ["models", "download", "mediapipe-heavy", "yolo11n-pose", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"yolo11n-pose": str(here)}
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: Model mediapipe-heavy is not available.")


@pytest.mark.parametrize(
    "arguments",
    [["models", "download"], ["models", "download", "nonsense"], ["nonsense"]],
)
def test_wrong_usage_is_code_2(runner: CliRunner, arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_a_wrong_setting_is_one_line(runner: CliRunner) -> None:
    result = runner.invoke(app, ["models"], env={"POSE_MEDIAPIPE_VARIANT": "huge"})
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: POSE_MEDIAPIPE_VARIANT: ")


def test_exit_codes_tell_bad_input_from_failure() -> None:
    assert Commands.exit_code(UnreadableSourceError("a.txt", "not a video")) is ExitCode.UNUSABLE
    assert Commands.exit_code(ModelUnavailableError("m", "do this")) is ExitCode.FAILED
    assert Commands.exit_code(BackendFailedError("b", "broke")) is ExitCode.FAILED


@pytest.mark.parametrize(
    "command",
    [["-m", "pose_analyzer.cli", "models", "download"], ["scripts/download_models.py"]],
    ids=["module", "script"],
)
def test_the_ways_to_start_it(command: list[str]) -> None:
    path = os.pathsep.join(part for part in sys.path if part)
    done = subprocess.run(
        [sys.executable, *command, "nonsense"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Unknown model 'nonsense'" in done.stderr
