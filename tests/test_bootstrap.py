"""The set-up notices every way in which .venv can be wrong, and explains what it cannot mend."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import bootstrap
import gl_libraries
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def workspace(tmp_path) -> bootstrap.Workspace:
    """A small checkout whose environment holds one wheel."""
    for name in ("config/locks/workspace.txt", "config/locks/uv.txt", "scripts/bootstrap.py"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    package = tmp_path / "projects" / "one"
    package.mkdir(parents=True)
    (package / "pyproject.toml").write_text("[project]\n")
    make_environment(tmp_path)
    return bootstrap.Workspace(tmp_path)


def make_environment(root: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    (site,) = (root / ".venv" / "lib").glob("python3.*/site-packages")
    (site / "uv.py").write_text("def find_uv_bin(): ...\n")
    (site / "wheel.py").write_text("answer = 42\n")
    metadata = site / "wheel-1.0.dist-info"
    metadata.mkdir()
    (metadata / "RECORD").write_text(
        "wheel.py,sha256=x,12\nuv.py,,\nwheel-1.0.dist-info/RECORD,,\n"
    )


@pytest.fixture
def installed(workspace, monkeypatch) -> bootstrap.Workspace:
    monkeypatch.setattr(bootstrap, "_sync", lambda *_, **__: None)
    bootstrap.install(workspace)
    return workspace


def wheel_file(workspace: bootstrap.Workspace) -> Path:
    assert workspace.site_packages is not None
    return workspace.site_packages / "wheel.py"


def test_nothing_to_do_after_an_installation(installed):
    assert bootstrap.installed_problem(installed) is None


def test_new_environment_is_incomplete(workspace):
    assert "incomplete" in bootstrap.installed_problem(workspace)


@pytest.mark.parametrize("changed", ["config/locks/workspace.txt", "projects/one/pyproject.toml"])
def test_changed_inputs_are_noticed(installed, changed):
    with (installed.root / changed).open("a") as file:
        file.write("\n# changed\n")
    assert "changed" in bootstrap.installed_problem(installed)


def test_missing_file_is_noticed(installed):
    wheel_file(installed).unlink()
    assert "damaged" in bootstrap.installed_problem(installed)


def test_truncated_file_is_noticed(installed):
    wheel_file(installed).write_text("answer")
    assert "damaged" in bootstrap.installed_problem(installed)


def test_removed_package_is_noticed(installed):
    shutil.rmtree(installed.site_packages / "wheel-1.0.dist-info")
    assert "by hand" in bootstrap.installed_problem(installed)


def test_lost_python_is_noticed(installed):
    installed.python.unlink()
    assert "Python" in bootstrap.installed_problem(installed)


def test_moved_checkout_is_noticed(installed, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "checkout"
    shutil.move(installed.root, moved)
    assert "moved" in bootstrap.installed_problem(bootstrap.Workspace(moved))


def test_interrupted_installation_is_not_taken_for_a_finished_one(installed, monkeypatch):
    def interrupted(_: bootstrap.Workspace) -> None:
        raise KeyboardInterrupt

    installed.stamp.unlink()
    monkeypatch.setattr(bootstrap, "_sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bootstrap.install(installed)
    assert "incomplete" in bootstrap.installed_problem(installed)


def test_damaged_package_is_fetched_anew(installed, monkeypatch):
    fetched = []

    def sync(workspace: bootstrap.Workspace, reinstall: Sequence[str] = ()) -> None:
        fetched.extend(reinstall)
        if "wheel" in reinstall:
            wheel_file(workspace).write_text("answer = 42\n")

    monkeypatch.setattr(bootstrap, "_sync", sync)
    wheel_file(installed).unlink()
    bootstrap.install(installed)
    assert fetched == ["wheel"]
    assert bootstrap.installed_problem(installed) is None


def test_damage_that_stays_is_not_called_installed(installed):
    wheel_file(installed).unlink()
    with pytest.raises(bootstrap.SetupError, match=r"wheel\.py"):
        bootstrap.install(installed)
    assert "incomplete" in bootstrap.installed_problem(installed)


def test_python_without_pip_gets_one_clear_sentence(workspace, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(bootstrap.SetupError, match="python3-venv"):
        bootstrap._make_venv(workspace)
    assert workspace.venv.exists(), "nothing is thrown away before it can be replaced"


def test_pips_index_is_used_by_uv_too_unless_uv_has_its_own(monkeypatch):
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.delenv("UV_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    assert bootstrap._uv_environment()["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    monkeypatch.setenv("UV_INDEX_URL", "https://other.example/simple")
    assert "UV_DEFAULT_INDEX" not in bootstrap._uv_environment()


APT_GET = """#!/bin/sh
# Knows no packages until it has made lists of its own, like a slim container image.
case "$*" in
  *" update") touch lists ;;
  *" download "*) [ -e lists ] && touch libegl1.deb libgles2.deb libglvnd0.deb ;;
esac
"""
DPKG = """#!/bin/sh
mkdir -p "$3/usr/lib"
touch "$3/usr/lib/libEGL.so.1" "$3/usr/lib/libGLESv2.so.2"
"""


def put_on_path(folder: Path, monkeypatch, **programs: str) -> None:
    folder.mkdir()
    for name, text in programs.items():
        program = folder / name.replace("_", "-")
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_gl_libraries_are_unpacked_without_package_lists(tmp_path, monkeypatch):
    put_on_path(tmp_path / "bin", monkeypatch, apt_get=APT_GET, dpkg=DPKG)
    assert gl_libraries.provide(tmp_path / "glvnd")
    assert gl_libraries.missing_from_folder(tmp_path / "glvnd") == ()


def test_gl_libraries_that_cannot_be_fetched_are_not_claimed(tmp_path, monkeypatch):
    put_on_path(tmp_path / "bin", monkeypatch, apt_get="#!/bin/sh\nexit 100\n", dpkg=DPKG)
    assert not gl_libraries.provide(tmp_path / "glvnd")
    assert gl_libraries.missing_from_folder(tmp_path / "glvnd") == gl_libraries.SONAMES


def test_missing_gl_libraries_are_told_in_one_sentence_and_do_not_stop_the_setup(
    workspace, monkeypatch, capsys
):
    monkeypatch.setattr(bootstrap, "_sync", lambda *_, **__: None)
    monkeypatch.setattr(gl_libraries, "missing_from_system", lambda: gl_libraries.SONAMES)
    monkeypatch.setattr(gl_libraries, "provide", lambda _: False)
    bootstrap.install(workspace)
    assert bootstrap.installed_problem(workspace) is None
    assert "apt-get install libegl1 libgles2" in capsys.readouterr().err
