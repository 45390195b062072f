"""Make .venv hold exactly the locked wheels and this checkout's packages; do nothing if it does.

Standard library only: it runs before anything is installed. `make install` and the Pixi task
`sync-wheels` both call it, so both ways of working get the same versions.
"""

import csv
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gl_libraries

SUPPORTED_PYTHONS = ((3, 11), (3, 12))
_WHEEL_LOCK = Path("config/locks/workspace.txt")
_UV_LOCK = Path("config/locks/uv.txt")
_CUDA_WHEELS_TIMEOUT_S = "600"

CommandPart = str | Path


class SetupError(Exception):
    """A machine on which the set-up cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Workspace:
    """A checkout and its virtual environment."""

    root: Path

    @property
    def venv(self) -> Path:
        """The virtual environment."""
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.venv / "bin" / "python"

    @property
    def gl_folder(self) -> Path:
        """Where unpacked OpenGL ES libraries go (``<sys.prefix>/lib/glvnd``)."""
        return self.venv / "lib" / "glvnd"

    @property
    def stamp(self) -> Path:
        """What a completed installation left behind."""
        return self.venv / "installed.json"

    @property
    def site_packages(self) -> Path | None:
        """Where its wheels are, if anywhere."""
        return next((self.venv / "lib").glob("python3.*/site-packages"), None)

    @property
    def projects(self) -> list[Path]:
        """Our own packages."""
        return sorted(path.parent for path in self.root.glob("projects/*/pyproject.toml"))

    def fingerprint(self) -> str:
        """Digest of everything that decides what has to be installed, and where."""
        digest = hashlib.sha256(str(self.root).encode())
        inputs = [_WHEEL_LOCK, _UV_LOCK, Path("scripts/bootstrap.py")]
        inputs += [project.relative_to(self.root) / "pyproject.toml" for project in self.projects]
        for path in inputs:
            digest.update(f"\0{path}\0".encode() + (self.root / path).read_bytes())
        return digest.hexdigest()

    def distributions(self) -> list[str]:
        """Names of the installed distributions' metadata folders."""
        site = self.site_packages
        return sorted(path.name for path in site.glob("*.dist-info")) if site else []


def main() -> int:
    """Install; the exit status tells whether .venv is ready."""
    workspace = Workspace(Path(__file__).resolve().parents[1])
    try:
        _check_python()
        with _only_one_at_a_time(workspace.root):
            install(workspace)
    except SetupError as error:
        print(f"make install: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        command = " ".join(str(part) for part in error.cmd)
        print(f"make install: this failed, see above: {command}", file=sys.stderr)
        return 1
    return 0


def install(workspace: Workspace) -> None:
    """Bring .venv to the locked state, from whatever state it is in."""
    problem = installed_problem(workspace)
    if problem is None:
        _tell_about_gl(workspace)
        return
    print(f"Setting up .venv, as {problem}; downloads may take minutes.", flush=True)
    workspace.stamp.unlink(missing_ok=True)
    if not _venv_usable(workspace):
        _make_venv(workspace)
    _sync(workspace)
    damaged = damaged_files(workspace)
    if damaged:
        # uv takes a damaged package for an installed one unless told to fetch it anew.
        _sync(workspace, reinstall=sorted(damaged))
        damaged = damaged_files(workspace)
    if damaged:
        raise SetupError(f"still damaged: {', '.join(map(str, damaged.values()))}.")
    if gl_libraries.missing_from_system() and gl_libraries.missing_from_folder(workspace.gl_folder):
        gl_libraries.provide(workspace.gl_folder)
    _tell_about_gl(workspace)
    stamp = {"fingerprint": workspace.fingerprint(), "distributions": workspace.distributions()}
    unfinished = workspace.stamp.with_suffix(".part")
    unfinished.write_text(json.dumps(stamp, indent=1))
    unfinished.replace(workspace.stamp)


def installed_problem(workspace: Workspace) -> str | None:
    """Why .venv is not what the locks ask for; None if it is."""
    if not workspace.stamp.is_file():
        return "it is new or incomplete"
    if not _venv_usable(workspace):
        return "it was moved, or its Python or uv does not work"
    stamp = json.loads(workspace.stamp.read_text())
    if stamp["fingerprint"] != workspace.fingerprint():
        return "locks or packages have changed"
    if stamp["distributions"] != workspace.distributions():
        return "packages were added or removed by hand"
    damaged = damaged_files(workspace)
    return f"{next(iter(damaged.values()))} is damaged" if damaged else None


def damaged_files(workspace: Workspace) -> dict[str, Path]:
    """Name the packages with files missing or of another size than recorded, and one such file."""
    site = workspace.site_packages
    if site is None:
        return {}
    found = {folder.name: _first_damaged(site, folder) for folder in site.glob("*.dist-info")}
    return {name.partition("-")[0]: path for name, path in found.items() if path is not None}


def _first_damaged(site: Path, metadata: Path) -> Path | None:
    record = metadata / "RECORD"
    if not record.is_file():
        return record
    with record.open(newline="") as rows:
        for name, _, size in csv.reader(rows):
            path = os.path.join(site, name)  # noqa: PTH118 -- 35,000 Path objects take a second
            try:
                actual = os.stat(path).st_size  # noqa: PTH116
            except OSError:
                return Path(path)
            if size and actual != int(size):
                return Path(path)
    return None


def _check_python() -> None:
    if sys.version_info[:2] not in SUPPORTED_PYTHONS:
        known = " or ".join(f"{major}.{minor}" for major, minor in SUPPORTED_PYTHONS)
        raise SetupError(f"Python {known} is needed, this is {sys.version.split()[0]}.")


@contextmanager
def _only_one_at_a_time(root: Path) -> Iterator[None]:
    """Keep two runs, such as `make demo` and `make test`, from installing at the same time."""
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _venv_usable(workspace: Workspace) -> bool:
    """Whether the environment was made in this place, and its Python and uv work."""
    config = workspace.venv / "pyvenv.cfg"
    # Scripts name their interpreter by absolute path, so a moved environment is broken.
    if not config.is_file() or not config.read_text().rstrip().endswith(f" {workspace.venv}"):
        return False
    if not workspace.python.exists():
        return False
    script = (
        "import sys, uv; uv.find_uv_bin(); "
        f"sys.exit(sys.version_info[:2] not in {SUPPORTED_PYTHONS})"
    )
    command: list[CommandPart] = [workspace.python, "-I", "-c", script]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _make_venv(workspace: Workspace) -> None:
    """Make .venv anew with uv, at the locked version, in it."""
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    if not has_ensurepip and importlib.util.find_spec("pip") is None:
        raise SetupError(
            "this Python has neither ensurepip nor pip: install one of them "
            "(Debian and Ubuntu: apt-get install python3-venv)."
        )
    if workspace.venv.exists():
        shutil.rmtree(workspace.venv)
    options = () if has_ensurepip else ("--without-pip",)
    _run(sys.executable, "-m", "venv", *options, workspace.venv)
    pip: list[CommandPart] = [workspace.python, "-m", "pip"]
    if not has_ensurepip:
        pip = [sys.executable, "-m", "pip", "--python", workspace.python]
    uv_lock = workspace.root / _UV_LOCK
    flags = ("--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes")
    _run(*pip, "install", *flags, "-r", uv_lock)


def _sync(workspace: Workspace, reinstall: Sequence[str] = ()) -> None:
    """Install the locked wheels, remove everything else, then add our own packages."""
    uv: list[CommandPart] = [workspace.python, "-m", "uv", "pip"]
    target: list[CommandPart] = ["--python", workspace.python]
    environment = _uv_environment()
    lock = workspace.root / _WHEEL_LOCK
    quiet = () if sys.stderr.isatty() else ("--quiet",)
    options = (*quiet, *(f"--reinstall-package={name}" for name in reinstall))
    required = ("--require-hashes", "--no-build", lock)
    _run(*uv, "sync", *target, *options, *required, environment=environment)
    editables: list[CommandPart] = []
    for project in workspace.projects:
        editables += ["--editable", project]
    flags = ("--quiet", "--no-deps", "--no-build-isolation")
    _run(*uv, "install", *target, *flags, *editables, environment=environment)


def _uv_environment() -> dict[str, str]:
    """Our environment, with the package index that pip is set to use unless uv has its own."""
    environment = {"UV_HTTP_TIMEOUT": _CUDA_WHEELS_TIMEOUT_S} | os.environ
    if not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & environment.keys():
        index = environment.get("PIP_INDEX_URL") or _pip_setting("global.index-url")
        if index:
            environment["UV_DEFAULT_INDEX"] = index
    return environment


def _pip_setting(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", name],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _tell_about_gl(workspace: Workspace) -> None:
    if gl_libraries.missing_from_system() and gl_libraries.missing_from_folder(workspace.gl_folder):
        print(f"make install: {gl_libraries.ADVICE}", file=sys.stderr)


def _run(*command: CommandPart, environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
