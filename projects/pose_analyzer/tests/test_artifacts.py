"""Stored files: the folder and S3 do the same under the same keys."""

import os
import resource
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from pose_analyzer import artifact_keys as keys
from pose_analyzer.storage.artifacts import (
    ArtifactStore,
    delete_session_files,
    open_artifact_store,
)
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.upload_errors import (
    ArtifactMissingError,
    StorageFullError,
    StorageUnavailableError,
)

from .s3_server import bucket_settings, s3_server

SESSION, OTHER, JOB = (uuid.UUID(int=n) for n in (1, 2, 3))
ARABIC_ZERO = "\u0660"
CHUNK = keys.chunk_key(SESSION, JOB, 0)


@pytest.fixture(scope="module")
def endpoint_url() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


class Conformance:
    """What every store does."""

    def test_what_was_put_is_there_until_it_is_deleted(self, store: ArtifactStore) -> None:
        assert not store.exists(CHUNK)
        store.put(CHUNK, b"one")
        store.put(CHUNK, b"another")
        assert (store.get(CHUNK), store.size_bytes(CHUNK)) == (b"another", 7)
        store.delete(CHUNK)
        store.delete(CHUNK)
        assert not store.exists(CHUNK)

    def test_large_files_go_in_and_out(self, store: ArtifactStore, tmp_path: Path) -> None:
        content = os.urandom((11 << 20) + 7)
        mine, adopted = tmp_path / "mine", tmp_path / "adopted"
        for path in (mine, adopted):
            path.write_bytes(content)
        key = keys.original_key(SESSION, ".mp4")
        store.put(keys.overlay_key(SESSION, JOB), mine)
        store.adopt(key, adopted)
        assert mine.exists()
        assert not adopted.exists()
        assert b"".join(store.stream(key)) == content
        store.download(key, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content
        path = store.local_path(key, tmp_path / "cache")
        assert path.read_bytes() == content
        assert store.local_path(key, tmp_path / "cache") == path
        assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"copy", "mine"}

    def test_what_is_missing_is_said_to_be(self, store: ArtifactStore, tmp_path: Path) -> None:
        for ask in (
            lambda: store.get(CHUNK),
            lambda: list(store.stream(CHUNK)),
            lambda: store.download(CHUNK, tmp_path / "copy"),
            lambda: store.local_path(CHUNK, tmp_path / "cache"),
        ):
            with pytest.raises(ArtifactMissingError) as caught:
                ask()
            assert caught.value.key == CHUNK
        assert store.size_bytes(CHUNK) is None
        assert store.sizes_bytes(keys.upload_prefix(SESSION)) == {}
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

    def test_a_session_goes_with_all_its_files_and_no_other(self, store: ArtifactStore) -> None:
        for number in range(3):
            store.put(keys.part_key(SESSION, number), bytes(number + 1))
        store.put(CHUNK, b"{}")
        store.put(keys.result_key(OTHER, JOB), b"{}")
        assert store.sizes_bytes(keys.upload_prefix(SESSION)) == {
            keys.part_key(SESSION, number): number + 1 for number in range(3)
        }
        for _ in range(2):
            delete_session_files(store, SESSION)
            assert store.sizes_bytes(keys.session_prefix(SESSION)) == {}
        assert store.get(keys.result_key(OTHER, JOB)) == b"{}"

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "/etc/passwd",
            "coach_plus/sessions/../../../etc/passwd",
            f"coach_plus/sessions/{SESSION}/../{OTHER}/original.mp4",
            f"coach_plus/sessions/{SESSION}",
            f"coach_plus/sessions/{SESSION}/a b",
            f"coach_plus/sessions/{SESSION}/a\0b",
            f"coach_plus/sessions/{SESSION}/.hidden",
            f"coach_plus/sessions/{SESSION}/original.mp4\n",
            f"coach_plus/sessions/{str(SESSION).replace('0', ARABIC_ZERO)}/original.mp4",
        ],
    )
    def test_other_keys_are_refused(self, store: ArtifactStore, tmp_path: Path, key: str) -> None:
        (tmp_path / "file").touch()
        for ask in (
            lambda: store.put(key, b""),
            lambda: store.adopt(key, tmp_path / "file"),
            lambda: store.get(key),
            lambda: list(store.stream(key)),
            lambda: store.local_path(key, tmp_path),
            lambda: store.size_bytes(key),
            lambda: store.delete(key),
            lambda: store.delete_prefix(key),
            lambda: store.delete_prefix(f"{key}/"),
            lambda: store.sizes_bytes(f"{key}/"),
        ):
            if key == f"coach_plus/sessions/{SESSION}":
                continue
            with pytest.raises(ValueError, match="not a"):
                ask()


class TestFolder(Conformance):
    @pytest.fixture
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("möbel #1 %20")

    @pytest.fixture
    def store(self, folder: Path) -> ArtifactStore:
        return open_artifact_store(StorageSettings(s3_bucket=None, data_dir=folder))

    def test_files_stand_under_their_keys(self, store: ArtifactStore, folder: Path) -> None:
        store.put(CHUNK, b"{}")
        assert (folder / "files" / CHUNK).read_bytes() == b"{}"

    def test_a_full_disk_is_said_and_leaves_nothing(
        self, store: ArtifactStore, folder: Path, tmp_path: Path
    ) -> None:
        store.put(CHUNK, b"before")
        large = tmp_path / "large"
        large.write_bytes(bytes(9 << 20))
        store.put(keys.result_key(SESSION, JOB), large)
        with files_of_at_most(1 << 20):
            for content in (large, bytes(2 << 20)):
                with pytest.raises(StorageFullError):
                    store.put(CHUNK, content)
            with pytest.raises(StorageFullError):
                store.download(keys.result_key(SESSION, JOB), folder / "copy")
        assert store.get(CHUNK) == b"before"
        left = {path.name for path in folder.rglob("*") if path.is_file()}
        assert left == {"chunk_0000.json", "final_results.json"}

    def test_what_a_killed_process_left_goes_with_the_session(
        self, store: ArtifactStore, folder: Path
    ) -> None:
        store.put(CHUNK, b"{}")
        (folder / "files" / f"{CHUNK}#1").write_bytes(b"half")
        delete_session_files(store, SESSION)
        assert [path for path in folder.rglob("*") if path.is_file()] == []

    def test_a_folder_that_cannot_be_used_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StorageUnavailableError):
            open_artifact_store(StorageSettings(s3_bucket=None, data_dir=tmp_path / "file"))

    def test_a_folder_has_no_addresses(self, store: ArtifactStore) -> None:
        assert not store.gives_addresses
        with pytest.raises(ValueError, match="no addresses"):
            store.presign([CHUNK], "GET", 60.0)


class TestS3(Conformance):
    @pytest.fixture
    def store(self, endpoint_url: str, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
        settings = bucket_settings(endpoint_url, tmp_path_factory.mktemp("data"))
        return open_artifact_store(settings)

    def test_whoever_has_an_address_needs_no_credentials(self, store: ArtifactStore) -> None:
        assert store.gives_addresses
        wanted = [keys.part_key(SESSION, number) for number in range(2)]
        for number, url in enumerate(store.presign(wanted, "PUT", 60.0)):
            send(url, b"part %d" % number)
        assert [store.get(key) for key in wanted] == [b"part 0", b"part 1"]
        (url,) = store.presign(wanted[:1], "GET", 60.0)
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
            assert answer.read() == b"part 0"
        assert store.presign([], "PUT", 60.0) == []

    def test_a_bucket_that_is_not_there_is_said(self, endpoint_url: str, tmp_path: Path) -> None:
        settings = bucket_settings(endpoint_url, tmp_path)
        store = open_artifact_store(settings.model_copy(update={"s3_bucket": "not-there"}))
        for ask in (
            lambda: store.put(CHUNK, b""),
            lambda: store.get(CHUNK),
            lambda: store.sizes_bytes(keys.upload_prefix(SESSION)),
        ):
            with pytest.raises(StorageUnavailableError):
                ask()


def send(url: str, data: bytes) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, data, headers, method="PUT")  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
        assert answer.status == 200


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """The system refuses larger files to this process, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
