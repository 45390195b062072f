"""Which files are here and sound, and how a missing one is put in place."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Final

from pose_analyzer.errors import ClipUnavailableError, ModelUnavailableError, UnknownNameError
from pose_analyzer.model_files.registry import (
    CLIPS,
    MODELS,
    HttpSource,
    PackageSource,
    PublishedFile,
    Source,
    UltralyticsSource,
)
from pose_analyzer.model_files.sources import (
    DownloadProgress,
    SilentProgress,
    SourceFailedError,
    address,
    download_http,
    download_wheel,
    download_yolo,
    is_sound_archive,
    unpack,
)
from pose_analyzer.settings import Settings

TEMPORARY_PREFIX: Final = ".fetch-"
# A temporary folder this old was left by a process that was killed.
STALE_AFTER_S: Final = 24 * 3600.0


class FileState(StrEnum):
    """What is known of a local file."""

    VERIFIED = "verified"
    """Its content is the published one."""
    UNVERIFIED = "local, unverified"
    """Complete, but the publisher states no checksum or the content is the user's own."""
    DAMAGED = "damaged"
    """Incomplete or not the published content: it is not used, and fetched again."""
    MISSING = "missing"

    @property
    def usable(self) -> bool:
        """Whether the file may be opened."""
        return self in (FileState.VERIFIED, FileState.UNVERIFIED)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A published file and what this machine has of it."""

    published: PublishedFile
    state: FileState
    path: Path | None
    """None when missing."""
    sha256: str | None
    """Of the local file, or else the published one; None when neither is known."""

    @property
    def size_bytes(self) -> int | None:
        """Size of the local file, or else the published one."""
        return self.path.stat().st_size if self.path else self.published.size_bytes


def locate_model(name: str, settings: Settings) -> Path:
    """Where a model file is on this machine.

    Parameters
    ----------
    name
        A key of `MODELS`.

    Raises
    ------
    UnknownNameError
        There is no such model.
    ModelUnavailableError
        It is not here; the message says how to get it.
    """
    published = _lookup("model", name, MODELS)
    found = _find(published, _model_folders(settings))
    if found.path is None or not found.state.usable:
        remedy = f"Run `pose-analyzer models download {name}`, or {_by_hand(published, settings)}."
        raise ModelUnavailableError(name, remedy)
    return found.path


def fetch_model(name: str, settings: Settings, progress: DownloadProgress | None = None) -> Path:
    """Find a model file or else download it into `settings.model_dir`.

    Raises
    ------
    UnknownNameError
        There is no such model.
    ModelUnavailableError
        No source delivered it.
    """
    published = _lookup("model", name, MODELS)
    found = _find(published, _model_folders(settings))
    if found.path is not None and found.state.usable:
        return found.path
    try:
        return _download(published, MODELS, settings.model_dir, progress or SilentProgress())
    except SourceFailedError as error:
        remedy = f"Connect to a network ({error}), or {_by_hand(published, settings)}."
        raise ModelUnavailableError(name, remedy) from error


def locate_clip(name: str, settings: Settings) -> Path:
    """Where a sample clip is on this machine.

    Raises
    ------
    UnknownNameError
        There is no such clip.
    ClipUnavailableError
        It is not here; the message says how to get it.
    """
    published = _lookup("clip", name, CLIPS)
    found = _find(published, (settings.clips_dir,))
    if found.path is None or not found.state.usable:
        remedy = f"Run `pose-analyzer models download --clips {name}`."
        raise ClipUnavailableError(name, remedy)
    return found.path


def fetch_clip(name: str, settings: Settings, progress: DownloadProgress | None = None) -> Path:
    """Find a sample clip or else download it into `settings.clips_dir`.

    Raises
    ------
    UnknownNameError
        There is no such clip.
    ClipUnavailableError
        No source delivered it.
    """
    published = _lookup("clip", name, CLIPS)
    found = _find(published, (settings.clips_dir,))
    if found.path is not None and found.state.usable:
        return found.path
    try:
        return _download(published, CLIPS, settings.clips_dir, progress or SilentProgress())
    except SourceFailedError as error:
        remedy = (
            f"Connect to a Python package index ({error}), or put {published.filename} into "
            f"{settings.clips_dir}."
        )
        raise ClipUnavailableError(name, remedy) from error


def model_states(settings: Settings) -> tuple[LocalFile, ...]:
    """Every known model file and what this machine has of it."""
    return tuple(_find(published, _model_folders(settings)) for published in MODELS.values())


def clip_states(settings: Settings) -> tuple[LocalFile, ...]:
    """Every sample clip and what this machine has of it."""
    return tuple(_find(published, (settings.clips_dir,)) for published in CLIPS.values())


def exported_onnx_path(pt_path: Path, settings: Settings) -> Path:
    """Where the ONNX export of some weights belongs: one place per content of the weights.

    The folder is made, the file is not; write it under another name and rename it.
    """
    folder = settings.cache_dir / "onnx"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{pt_path.stem}-{file_sha256(pt_path)[:16]}.onnx"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered for as long as its size and time stay the same."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def _lookup(kind: str, name: str, known: Mapping[str, PublishedFile]) -> PublishedFile:
    if name not in known:
        raise UnknownNameError(kind, name, tuple(known))
    return known[name]


def _model_folders(settings: Settings) -> tuple[Path, ...]:
    return (*settings.model_path, settings.model_dir)


def _by_hand(published: PublishedFile, settings: Settings) -> str:
    return (
        f"put {published.filename} from {address(published.sources)} into {settings.model_dir} "
        "or a folder named in POSE_MODEL_PATH"
    )


def _find(published: PublishedFile, folders: tuple[Path, ...]) -> LocalFile:
    """Find the first usable copy, or else a damaged one, or else none."""
    damaged: LocalFile | None = None
    for folder in folders:
        path = folder / published.filename
        if not path.is_file():
            continue
        local = LocalFile(published, _state(path, published), path, file_sha256(path))
        if local.state.usable:
            return local
        damaged = damaged or local
    sha256 = next(iter(published.sha256), None)
    return damaged or LocalFile(published, FileState.MISSING, None, sha256)


def _state(path: Path, published: PublishedFile) -> FileState:
    if file_sha256(path) in published.sha256:
        return FileState.VERIFIED
    if published.sha256 and not published.own_content_allowed:
        return FileState.DAMAGED
    stat = path.stat()
    return (
        FileState.UNVERIFIED if _sound(path, stat.st_size, stat.st_mtime_ns) else FileState.DAMAGED
    )


# The last two arguments only tell one content of a path from the next.
@lru_cache(maxsize=64)
def _sha256(path: Path, _size_bytes: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _sound(path: Path, _size_bytes: int, _mtime_ns: int) -> bool:
    return is_sound_archive(path)


def _download(
    published: PublishedFile,
    registry: Mapping[str, PublishedFile],
    folder: Path,
    progress: DownloadProgress,
) -> Path:
    """Try the sources in turn; raise SourceFailedError with all reasons when none delivers."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
    except OSError as error:
        raise SourceFailedError(f"{folder} cannot be written: {error.strerror}") from error
    failures = []
    for source in published.sources:
        # Inside the target folder, so that the rename at the end is atomic; a name of its own,
        # so that two processes never write the same file.
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as temporary:
            try:
                arrived = _obtain(source, published, registry, Path(temporary), progress)
                for file, path in arrived.items():
                    _install(file, path, folder)
            except (SourceFailedError, OSError) as error:
                failures.append(str(error))
                continue
        return folder / published.filename
    raise SourceFailedError("; ".join(failures))


def _obtain(
    source: Source,
    published: PublishedFile,
    registry: Mapping[str, PublishedFile],
    temporary: Path,
    progress: DownloadProgress,
) -> dict[PublishedFile, Path]:
    """Get a file and, from a wheel, whatever else of the registry the wheel holds."""
    target = temporary / published.filename
    match source:
        case HttpSource():
            download_http(source, target, progress)
            return {published: target}
        case UltralyticsSource():
            download_yolo(source, target, progress)
            return {published: target}
        case PackageSource(package=package):
            wheel = download_wheel(package, temporary, progress)
            arrived = {}
            for file in registry.values():
                for other in file.sources:
                    if isinstance(other, PackageSource) and other.package == package:
                        arrived[file] = temporary / file.filename
                        unpack(wheel, other.member, arrived[file])
            return arrived


def _install(published: PublishedFile, path: Path, folder: Path) -> None:
    """Check what arrived and move it into place in one step."""
    official = file_sha256(path) in published.sha256
    if not official and (published.sha256 or not is_sound_archive(path)):
        raise SourceFailedError(f"{published.filename} arrived damaged")
    path.replace(folder / published.filename)


def _remove_stale(folder: Path) -> None:
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if time.time() - leftover.stat().st_mtime > STALE_AFTER_S:
            shutil.rmtree(leftover, ignore_errors=True)
