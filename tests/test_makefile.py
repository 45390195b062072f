"""One set of commands: the Makefile's, which Pixi's tasks, pre-commit and CI only call."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^\.PHONY: ([a-z-]+)$", MAKEFILE, flags=re.MULTILINE))
TASKS = tomllib.loads((ROOT / "pixi.toml").read_text())["tasks"]
OUTER_MAKE = ("MAKE", "PIXI", "SHARED_DATA", "POSE_MODEL_PATH", "PYTHON")


def make(*arguments: str, **variables: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(OUTER_MAKE)}
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env=inherited | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture
def path_with_pixi(tmp_path) -> str:
    pixi = tmp_path / "pixi"
    pixi.write_text("#!/bin/sh\n")
    pixi.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


def test_bare_make_lists_every_target_with_a_line():
    lines = dict(re.findall(r"^ *make ([a-z-]+) +(\S.*)$", make(), flags=re.MULTILINE))
    assert set(lines) == TARGETS


def test_help_works_without_an_environment_and_changes_nothing():
    assert "bootstrap" not in make("-n", "help")


def test_commands_run_in_pixi_where_it_is_on_the_path(path_with_pixi, tmp_path):
    commands = make("-n", "lint", PATH=path_with_pixi)
    prefix = f"{tmp_path / 'pixi'} run --locked -e cpu "
    assert f"{prefix}python scripts/bootstrap.py" in commands
    assert f"{prefix}.venv/bin/ruff check ." in commands


def test_pixi_environment_can_be_chosen(path_with_pixi):
    assert "pixi run --locked -e cuda" in make("-n", "lint", "PIXI_ENV=cuda", PATH=path_with_pixi)


@pytest.mark.parametrize("how", [{"PIXI": ""}, {"PIXI_ENVIRONMENT_NAME": "cpu"}])
def test_commands_run_directly_without_pixi_and_inside_it(path_with_pixi, how):
    assert "pixi run" not in make("-n", "lint", PATH=path_with_pixi, **how)


def test_data_beside_the_checkout_reaches_the_commands(tmp_path):
    show = tmp_path / "show.mk"
    show.write_text('show:\n\t@echo "$$SHARED_DATA|$$POSE_MODEL_PATH"\n')
    data = tmp_path / "clips and models"
    data.mkdir()
    run = ("-f", "Makefile", "-f", str(show), "show")
    assert make(*run, SHARED_DATA=str(data)).strip() == f"{data}|{data}/models"
    both = make(*run, SHARED_DATA=str(data), POSE_MODEL_PATH="/mine")
    assert both.strip() == f"{data}|/mine:{data}/models"
    assert make(*run, SHARED_DATA=str(tmp_path / "absent")).strip() == "|"


def test_every_pixi_task_calls_a_target_after_the_wheels_are_there():
    called = set()
    for name, task in TASKS.items():
        if name == "sync-wheels":
            assert task["cmd"] == "python scripts/bootstrap.py"
            continue
        assert task["depends-on"] == ["sync-wheels"], name
        command, target = task["cmd"].split()
        assert command == "make"
        called.add(target)
    assert called == TARGETS - {"help", "install", "pixi-lock"}


def test_ci_and_pre_commit_run_the_same_targets():
    ci_script = ROOT / ".ci" / "run"
    assert os.access(ci_script, os.X_OK)
    in_ci = re.findall(r"^make ([a-z-]+)$", ci_script.read_text(), flags=re.MULTILINE)
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    hooks = [hook["entry"].split()[-1] for hook in repository["hooks"]]
    assert in_ci == hooks == ["lint", "test"]
