"""Videos a worker has fetched, so that the next chunk of the same video need not fetch it again."""

import shutil
from pathlib import Path

from pose_analyzer.artifact_keys import SESSIONS
from pose_analyzer.storage.artifacts import ArtifactStore


class LocalCopies:
    """Where stored videos can be read; keeps copies of the latest ones where they are not local.

    Parameters
    ----------
    store
        Where the videos are.
    cache_dir
        Folder of the copies, of this worker alone.
    n_kept
        Copies at most; the one unused for longest goes first.
    """

    def __init__(self, store: ArtifactStore, cache_dir: Path, n_kept: int = 2) -> None:
        self._store = store
        self._cache_dir = cache_dir
        self._n_kept = n_kept

    def path(self, key: str) -> Path:
        """Where a video can be read until the next call; raises as `ArtifactStore.local_path`."""
        path = self._store.local_path(key, self._cache_dir)
        if path.is_relative_to(self._cache_dir):
            path.touch()
            self._make_room(path)
        return path

    def _make_room(self, used: Path) -> None:
        copies = sorted(
            (one for one in (self._cache_dir / SESSIONS).glob("*/*") if one.is_file()),
            key=lambda one: one.stat().st_mtime,
        )
        others = [one for one in copies if one != used]
        for old in others[: max(len(copies) - self._n_kept, 0)]:
            shutil.rmtree(old.parent)
