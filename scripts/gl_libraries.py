"""Give MediaPipe the two OpenGL ES libraries it links to, on machines without a desktop.

MediaPipe's native library names libEGL and libGLESv2 although the CPU path never calls them, so the
vendor-neutral stubs of libglvnd are enough: no X server, no driver, no root.
"""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

SONAMES = ("libEGL.so.1", "libGLESv2.so.2")
DEBIAN_PACKAGES = ("libegl1", "libgles2", "libglvnd0")
ADVICE = (
    f"MediaPipe needs {' and '.join(SONAMES)}, which are not on this machine: install them "
    f"(Debian and Ubuntu: apt-get install {' '.join(DEBIAN_PACKAGES[:2])}); until then only the "
    "YOLO detectors work."
)
_APT_TIMEOUT_S = 120.0


def missing_from_system(sonames: tuple[str, ...] = SONAMES) -> tuple[str, ...]:
    """Which of the libraries the dynamic loader does not find."""
    return tuple(name for name in sonames if not _loads(name))


def missing_from_folder(folder: Path) -> tuple[str, ...]:
    """Which of the libraries are not below `folder` either."""
    return tuple(name for name in SONAMES if not any(folder.rglob(name)))


def provide(folder: Path) -> bool:
    """Unpack the libraries below `folder` from Debian packages, changing nothing else.

    Returns
    -------
    bool
        False where this machine has no apt-get, or apt-get cannot fetch the packages.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return False
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if not _download(work):
            return False
        for package in sorted(work.glob("*.deb")):
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)
    return not missing_from_folder(folder)


def _loads(soname: str) -> bool:
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True


def _download(work: Path) -> bool:
    """Fetch the packages into `work`, with package lists of our own if the machine has none."""
    state = work / "apt"
    (state / "lists" / "partial").mkdir(parents=True)
    (state / "cache" / "archives" / "partial").mkdir(parents=True)
    own_lists = (
        *("-o", f"Dir::State::Lists={state / 'lists'}"),
        *("-o", f"Dir::Cache={state / 'cache'}"),
        # As root, apt-get would work as user _apt, who may not write here.
        *("-o", "APT::Sandbox::User="),
    )
    return _apt_get(work, "download", *DEBIAN_PACKAGES) or (
        _apt_get(work, *own_lists, "update")
        and _apt_get(work, *own_lists, "download", *DEBIAN_PACKAGES)
    )


def _apt_get(folder: Path, *arguments: str) -> bool:
    command = ["apt-get", "-qq", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_APT_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
