"""Which files and cameras a client may name."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.errors import SourceNotAllowedError, SourceNotFoundError
from pose_analyzer.sources import SourceKind, resolve_source
from pose_analyzer.sources.allow_list import entries_without_effect

CAMERAS = ("rtsp://cam.example/", "rtsps://nvr.example:8322/halls/", "rtsp://[2001:db8::1]:554/a")


@pytest.mark.parametrize(
    ("wanted", "opened"),
    [
        ("rtsp://cam.example/", "rtsp://cam.example:554/"),
        ("rtsp://cam.example", "rtsp://cam.example:554"),
        ("RTSP://CAM.example:554/live/1?channel=2", "rtsp://cam.example:554/live/1?channel=2"),
        ("rtsp://user:p%40ss@cam.example/x", "rtsp://user:p%40ss@cam.example:554/x"),
        ("rtsp://a:b@c:d@cam.example/x", "rtsp://a:b%40c%3Ad@cam.example:554/x"),
        ("rtsps://nvr.example:8322/halls", "rtsps://nvr.example:8322/halls"),
        ("rtsps://nvr.example:8322/halls/2", "rtsps://nvr.example:8322/halls/2"),
        ("rtsp://[2001:DB8::1]/a", "rtsp://[2001:db8::1]:554/a"),
    ],
)
def test_cameras_that_may_be_read(wanted: str, opened: str) -> None:
    source = resolve_source(wanted, CAMERAS)

    assert source.kind is SourceKind.CAMERA
    assert source.location == opened


@pytest.mark.parametrize(
    "wanted",
    [
        "rtsp://cam.example@evil.example/",
        "rtsp://cam.example:554@evil.example/",
        "rtsp://cam.example.evil.example/",
        "rtsp://cam.example\\@evil.example/",
        "rtsp://cam.example%2eevil/",
        "rtsp://cam.example#@evil.example/",
        "rtsp://evil.example/rtsp://cam.example/",
        "rtsp://cam.example:8554/",
        "rtsp://cam.example:0/",
        "rtsp://cam.example:554x/",
        "rtsp://cam.exam\tple/",
        "rtsp://cam。example/",
        "rtsps://cam.example/",
        "http://cam.example/",
        "file://cam.example/etc/passwd",
        "tcp://cam.example/",
        "rtsp:///etc/passwd",
        "rtsps://nvr.example/halls/",
        "rtsps://nvr.example:8322/",
        "rtsps://nvr.example:8322/hallsaal",
        "rtsps://nvr.example:8322/halls/../vault",
        "rtsps://nvr.example:8322/halls/%2e%2E/vault",
        "rtsps://nvr.example:8322/halls/%252e%252e/vault",
        "rtsps://nvr.example:8322/halls%2f..%2fvault",
        "rtsps://nvr.example:8322/halls/..%5cvault",
        "rtsps://nvr.example:8322/./halls/1",
    ],
)
def test_addresses_that_may_not_be_read(wanted: str) -> None:
    with pytest.raises(SourceNotAllowedError):
        resolve_source(wanted, CAMERAS)


@pytest.mark.parametrize(
    "wanted",
    [
        "rtsp://admin:s3cret@cam.example/live",
        "rtsp://s3cret@cam.example/live",
        "rtsp://cam.example/live?user=admin&password=s3cret",
        "rtsp://cam.example/user=admin&password=s3cret&channel=1",
        "rtsp://admin:s3cret@elsewhere.example/live",
        "rtsp://admin:s3cret@cam.example:99999/live",
        "rtsp://admin:s3cret@cam.example:554x/live#1",
        "rtsp://admin:s3cret @cam.example/live",
        "http://admin:s3cret@cam.example/live",
    ],
)
def test_passwords_are_never_shown(wanted: str) -> None:
    try:
        shown = repr(resolve_source(wanted, CAMERAS))
    except SourceNotAllowedError as error:
        shown = f"{error} {error!r} {error.source} {error.__cause__}"
    assert "s3cret" not in shown


def test_the_service_may_know_the_password_itself() -> None:
    source = resolve_source("rtsp://cam.example/1", ("rtsp://service:s3cret@cam.example/",))

    assert source.location == "rtsp://service:s3cret@cam.example:554/1"
    assert "s3cret" not in repr(source)


AUTHORITY = st.lists(
    st.sampled_from(["cam.example", "evil", "@", ":", "554", ".", "[", "]", "%40", "/", "?"]),
    min_size=1,
    max_size=6,
).map("".join)
PATH = st.lists(
    st.sampled_from(["a", "b", "/", "..", ".", "%2e", "%2f", "%25", "2e", "?", "@", "//"]),
    max_size=8,
).map("".join)


@given(AUTHORITY, PATH)
def test_whatever_is_accepted_lies_below_the_allowed_address(authority: str, path: str) -> None:
    try:
        source = resolve_source(f"rtsp://{authority}/{path}", ("rtsp://cam.example/a/",))
    except SourceNotAllowedError:
        return
    parts = urlsplit(source.location)
    assert (parts.hostname, parts.port) == ("cam.example", 554)
    assert parts.path == "/a" or parts.path.lstrip("/").startswith("a/") or parts.path == "//a"
    assert ".." not in parts.path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips/ is allowed; beside it lie a secret and a folder whose name begins alike."""
    root = tmp_path_factory.mktemp("files")
    for name in ("clips/a.mp4", "clips/more/b.mp4", "secret.mp4", "clips2/c.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "clips" / "out").symlink_to(root)
    (root / "clips" / "in").symlink_to(root / "clips" / "more")
    (root / "clips" / "circle").symlink_to(root / "clips" / "circle")
    return root


@pytest.mark.parametrize("wanted", ["a.mp4", "more/../a.mp4", "in/b.mp4", "./more/b.mp4"])
def test_files_that_may_be_read(folders: Path, wanted: str) -> None:
    allowed = ("rtsp://cam.example/", str(folders / "clips2"), str(folders / "clips"))
    by_name = resolve_source(wanted, allowed)
    by_path = resolve_source(f"{folders}/clips/{wanted}", allowed)

    assert by_name == by_path
    assert by_name.kind is SourceKind.FILE
    assert by_name.location == str((folders / "clips" / wanted).resolve())
    assert str(folders) not in by_name.name


@pytest.mark.parametrize(
    "wanted",
    ["", "../secret.mp4", "out/secret.mp4", "circle", "a\0.mp4", "x" * 5000, "/etc/passwd"],
)
@pytest.mark.parametrize("allowed", ["clips", ""])
def test_files_that_may_not_be_read(folders: Path, wanted: str, allowed: str) -> None:
    entries = (str(folders / allowed),) if allowed else ("",)
    with pytest.raises(SourceNotAllowedError) as refusal:
        resolve_source(wanted, entries)
    assert str(folders) not in str(refusal.value)


def test_a_folder_whose_name_begins_alike_is_another(folders: Path) -> None:
    with pytest.raises(SourceNotAllowedError):
        resolve_source(f"{folders}/clips2/c.mp4", (str(folders / "clips"),))


@pytest.mark.parametrize("wanted", ["missing.mp4", "more", ".", "%2e%2e/secret.mp4"])
def test_what_is_no_file_is_said_to_be_missing(folders: Path, wanted: str) -> None:
    with pytest.raises(SourceNotFoundError, match="no file"):
        resolve_source(wanted, (str(folders / "clips"),))


@given(st.lists(st.sampled_from(["..", ".", "", "a.mp4", "secret.mp4", "more", "in", "out"])))
def test_no_path_leads_out_of_the_folder(folders: Path, parts: list[str]) -> None:
    clips = folders / "clips"
    for wanted in ("/".join(parts), "/".join([str(clips), *parts])):
        try:
            source = resolve_source(wanted, (str(clips),))
        except (SourceNotAllowedError, SourceNotFoundError):
            continue
        assert Path(source.location).resolve().is_relative_to(clips.resolve())


def test_entries_that_allow_nothing_are_told_without_their_password(tmp_path: Path) -> None:
    allowed = (str(tmp_path), *CAMERAS, str(tmp_path / "absent"), "http://me:secret@cam.example/")
    absent, address = entries_without_effect(allowed)
    assert "absent" in absent
    assert "entry 6" in address
    assert "secret" not in address
