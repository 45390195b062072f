"""Uploads over HTTP: what is accepted, what is refused and how, and broken connections."""

import json
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient
from pydantic import SecretStr

from pose_analyzer.api import request_bodies
from pose_analyzer.storage_settings import StorageSettings

from .databases import DatabaseServer, settings_for
from .image_service import check_problem
from .live_server import LiveServer, serving
from .s3_server import bucket_settings, s3_server
from .sample_videos import sha256, video_bytes
from .test_artifacts import files_of_at_most, send
from .uploaded_videos import (
    announced,
    files_below,
    parts_of,
    service,
    small_parts,
    upload_app,
    uploaded_files,
)

__all__ = ["small_parts"]

CONTENT = video_bytes(2_500_000)
NOT_THERE = uuid.UUID(int=7)


@pytest.fixture
def client(
    storage_settings: StorageSettings, tmp_path: Path, small_parts: None
) -> Iterator[TestClient]:
    with service(storage_settings, tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
def shared(
    database_server: DatabaseServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """For what is refused and leaves nothing."""
    folder = tmp_path_factory.mktemp("shared")
    url = database_server.new_database()
    with service(settings_for(url, folder / "data"), folder) as client:
        yield client
        assert client.get("/videos").json()["videos"] == []
        assert uploaded_files(folder / "data") == []
    database_server.drop(url)


def send_parts(client: TestClient, video: dict[str, Any], content: bytes) -> None:
    for number, part in parts_of(content, video).items():
        answer = client.put(video["upload"]["parts"][number]["url"], content=part)
        assert answer.status_code == 204, answer.text


def complete(client: TestClient, video: dict[str, Any], **wishes: Any) -> Any:
    return client.post(f"/videos/{video['video_id']}/complete", json=wishes)


def test_a_video_is_announced_sent_completed_and_deleted(
    client: TestClient, storage_settings: StorageSettings
) -> None:
    video = announced(client, CONTENT, exercise="squat", started_at="2026-05-04T10:30:00+02:00")
    assert [(p["number"], p["stored"]) for p in video["upload"]["parts"]] == [
        (0, False),
        (1, False),
        (2, False),
    ]
    send_parts(client, video, CONTENT)
    now = client.get(f"/videos/{video['video_id']}").json()
    assert [(p["stored"], p["url"]) for p in now["upload"]["parts"]] == [(True, None)] * 3
    stored = complete(client, video, deep_mode="cpu", language="de").json()
    assert (stored["state"], stored["sha256"]) == ("stored", sha256(CONTENT))
    assert (stored["exercise"], stored["upload"]) == ("squat", None)
    assert uuid.UUID(stored["job_id"])
    assert client.get("/videos").json()["videos"] == [stored]
    assert client.get("/videos", params={"state": "uploading"}).json()["videos"] == []
    assert client.delete(f"/videos/{video['video_id']}").status_code == 204
    assert client.get("/videos").json()["videos"] == []
    assert files_below(storage_settings.data_dir / "files") == []


def test_an_interrupted_upload_goes_on_where_it_was(client: TestClient) -> None:
    video = announced(client, CONTENT)
    parts = parts_of(CONTENT, video)
    client.put(video["upload"]["parts"][1]["url"], content=parts[1])
    detail = check_problem(complete(client, video), 409, "upload-incomplete")
    assert "0, 2" in detail
    for part in client.get(f"/videos/{video['video_id']}").json()["upload"]["parts"]:
        if not part["stored"]:
            client.put(part["url"], content=parts[part["number"]])
    assert complete(client, video).json()["state"] == "stored"


def test_a_whole_video_is_sent_as_a_form(client: TestClient) -> None:
    answer = client.post(
        "/videos",
        files={"file": ("squats.mp4", CONTENT, "video/mp4")},
        data={"exercise": "squat", "sha256": sha256(CONTENT).upper(), "overlay": "true"},
    )
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert (body["state"], body["filename"], body["exercise"]) == ("stored", "squats.mp4", "squat")
    assert body["size_bytes"] == len(CONTENT)


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"filename": "../../etc/passwd"}, 422, "invalid-file-name"),
        ({"filename": "/etc/passwd.mp4"}, 422, "invalid-file-name"),
        ({"filename": "a\0b.mp4"}, 422, "invalid-file-name"),
        ({"filename": "a\x1b[2J.mp4"}, 422, "invalid-file-name"),
        ({"filename": "a\u202e4pm.mp4"}, 422, "invalid-file-name"),
        ({"filename": "\uff0e\uff0e\uff0fa.mp4"}, 422, "invalid-file-name"),
        ({"filename": "x" * 300 + ".mp4"}, 422, "invalid-file-name"),
        ({"filename": "x" * 5000}, 422, "invalid-request"),
        ({"filename": "notes.txt"}, 415, "unsupported-video-type"),
        ({"content_type": "image/png"}, 415, "unsupported-video-type"),
        ({"size_bytes": 2**62}, 413, "video-too-large"),
        ({"size_bytes": 2**63}, 422, "invalid-request"),
        ({"size_bytes": 0}, 422, "invalid-request"),
        ({"size_bytes": -1}, 422, "invalid-request"),
        ({"size_bytes": "many"}, 422, "invalid-request"),
        ({"sha256": "abc"}, 422, "invalid-request"),
        ({"athlete_id": "../x"}, 422, "invalid-request"),
        ({"athlete_id": str(NOT_THERE)}, 404, "unknown-athlete"),
        ({"exercise": "flying"}, 422, "unknown-name"),
        ({"started_at": "2026-05-04T10:30:00"}, 422, "invalid-request"),
        ({"video_id": str(NOT_THERE)}, 422, "invalid-request"),
    ],
)
def test_announcements_are_refused_with_what_to_do(
    shared: TestClient, changes: dict[str, Any], status: int, code: str
) -> None:
    body = {"filename": "a.mp4", "size_bytes": 10} | changes
    check_problem(shared.post("/videos", content=json.dumps(body)), status, code)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\xfe", b"null"])
def test_other_bodies_are_no_announcement(shared: TestClient, body: bytes) -> None:
    check_problem(shared.post("/videos", content=body), 422, "invalid-request")


def test_quota_and_disk_are_told_with_what_to_do(
    storage_settings: StorageSettings, tmp_path: Path, small_parts: None
) -> None:
    few = storage_settings.model_copy(update={"video_quota_bytes": 3_000_000})
    with service(few, tmp_path) as client:
        video = announced(client, CONTENT)
        body = {"filename": "a.mp4", "size_bytes": len(CONTENT)}
        detail = check_problem(client.post("/videos", json=body), 507, "over-quota")
        assert "DELETE /videos" in detail
        form = {"file": ("a.mp4", CONTENT)}
        check_problem(client.post("/videos", files=form), 507, "over-quota")
        with files_of_at_most(100_000):
            part = parts_of(CONTENT, video)[0]
            url = video["upload"]["parts"][0]["url"]
            check_problem(client.put(url, content=part), 507, "storage-full")
        assert uploaded_files(few.data_dir) == []
        send_parts(client, video, CONTENT)
        assert complete(client, video).json()["state"] == "stored"


def test_parts_are_taken_whole_or_not_at_all(
    client: TestClient, storage_settings: StorageSettings
) -> None:
    video = announced(client, CONTENT)
    address = f"/videos/{video['video_id']}/parts"
    parts = parts_of(CONTENT, video)
    put = client.put
    check_problem(put(f"{address}/0", content=parts[0] + b"x"), 413, "part-too-large")
    check_problem(put(f"{address}/0", content=iter([parts[0], b"x"])), 413, "part-too-large")
    check_problem(put(f"{address}/0", content=parts[0][:-1]), 422, "wrong-part-size")
    check_problem(put(f"{address}/0", content=iter([b"x"])), 422, "wrong-part-size")
    check_problem(put(f"{address}/0", content=b""), 422, "wrong-part-size")
    check_problem(put(f"{address}/2", content=parts[0]), 413, "part-too-large")
    check_problem(put(f"{address}/3", content=parts[0]), 404, "unknown-part")
    check_problem(put(f"{address}/-1", content=parts[0]), 422, "invalid-request")
    check_problem(put(f"{address}/1e9", content=parts[0]), 422, "invalid-request")
    check_problem(put(f"/videos/{NOT_THERE}/parts/0", content=parts[0]), 404, "unknown-video")
    check_problem(put("/videos/../../x/parts/0", content=parts[0]), 404)
    check_problem(put("/videos/%2e%2e%2fx/parts/0", content=parts[0]), 404)
    check_problem(put("/videos/..%00/parts/0", content=parts[0]), 422, "invalid-request")
    assert uploaded_files(storage_settings.data_dir) == []
    send_parts(client, video, CONTENT)
    assert complete(client, video).status_code == 200
    check_problem(put(f"{address}/0", content=parts[0]), 409, "upload-finished")


def test_the_general_limit_holds_elsewhere(shared: TestClient) -> None:
    """It is below the size of a part here."""
    check_problem(shared.post("/videos", content=bytes(200_000)), 413)


@pytest.mark.parametrize(
    ("content", "name", "kind", "status", "code"),
    [
        (CONTENT, "squats.png", "video/mp4", 415, "unsupported-video-type"),
        (CONTENT, "squats.mp4", "text/plain", 415, "unsupported-video-type"),
        (CONTENT, "..%2f..", "video/mp4", 422, "invalid-file-name"),
        (b"hello", "squats.mp4", "video/mp4", 422, "not-a-video"),
        (b"", "squats.mp4", "video/mp4", 400, "malformed-form"),
    ],
)
def test_forms_with_something_else_are_refused(
    shared: TestClient,
    content: bytes,
    name: str,
    kind: str,
    status: int,
    code: str,
) -> None:
    told = name.replace("%2f", "/")
    answer = shared.post("/videos", files={"file": (told, content, kind)})
    check_problem(answer, status, code)


HEAD = b'--b\r\nContent-Disposition: form-data; name="'
FILE = HEAD + b'file"; filename="a.mp4"\r\n\r\nabc\r\n'


@pytest.mark.parametrize(
    ("boundary", "body"),
    [
        (b"", FILE + b"--b--\r\n"),
        (b"; boundary=b", b""),
        (b"; boundary=b", b"nonsense"),
        (b"; boundary=b", FILE),
        (b"; boundary=b", HEAD + b'exercise"\r\n\r\nsquat\r\n--b--\r\n'),
        (b"; boundary=b", FILE + FILE + b"--b--\r\n"),
        (b"; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--b--\r\n"),
        (b"; boundary=b", HEAD + b'exercise"\r\n\r\n' + b"x" * 5000 + b"\r\n--b--\r\n"),
        (b"; boundary=b", HEAD + b'exercise"\r\n\r\n\xff\r\n--b--\r\n'),
        (b"; boundary=b", b"".join([HEAD + b'%d"\r\n\r\n\r\n' % n for n in range(20)])),
        (b"; boundary=" + b"b" * 300, FILE),
    ],
)
def test_malformed_forms_are_refused(shared: TestClient, boundary: bytes, body: bytes) -> None:
    headers = {"Content-Type": b"multipart/form-data" + boundary}
    check_problem(shared.post("/videos", content=body, headers=headers), 400, "malformed-form")


def test_fields_of_a_form_are_checked(shared: TestClient) -> None:
    form = {"file": ("a.mp4", CONTENT)}
    for wrong in ({"deep_mode": "fpga"}, {"colour": "red"}, {"sha256": "0"}):
        answer = shared.post("/videos", files=form, data=wrong)
        check_problem(answer, 422, "invalid-request")
    answer = shared.post("/videos", files=form, data={"exercise": "flying"})
    check_problem(answer, 422, "unknown-name")
    answer = shared.post("/videos", files=form, data={"sha256": "0" * 64})
    check_problem(answer, 422, "checksum-mismatch")


def test_a_form_above_the_limit_is_refused_before_it_is_read(
    storage_settings: StorageSettings, tmp_path: Path
) -> None:
    few = storage_settings.model_copy(update={"max_video_bytes": 1_000_000})
    with service(few, tmp_path) as client:
        answer = client.post("/videos", files={"file": ("a.mp4", CONTENT)})
        check_problem(answer, 413, "video-too-large")
        body = iter([FILE[:-2], CONTENT])  # of a size that is not told
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = client.post("/videos", content=body, headers=headers)
        check_problem(answer, 413, "video-too-large")
        assert uploaded_files(few.data_dir) == []


def test_what_was_refused_tells_why_afterwards(client: TestClient) -> None:
    video = announced(client, CONTENT, sha256="0" * 64)
    send_parts(client, video, CONTENT)
    detail = check_problem(complete(client, video), 422, "checksum-mismatch")
    told = client.get(f"/videos/{video['video_id']}").json()
    assert (told["state"], told["refusal"]) == ("refused", detail)
    check_problem(complete(client, video), 409, "upload-finished")


def test_wishes_are_checked_before_the_upload_is_put_together(client: TestClient) -> None:
    video = announced(client, CONTENT)
    for wrong in ({"exercise": "flying"}, {"detector": "/etc/passwd"}, {"language": "xx"}):
        check_problem(complete(client, video, **wrong), 422, "unknown-name")
    check_problem(complete(client, video, sample_fps=0), 422, "invalid-request")
    check_problem(client.post(f"/videos/{NOT_THERE}/complete", json={}), 404, "unknown-video")
    check_problem(client.get("/videos/x"), 422, "invalid-request")
    check_problem(client.delete(f"/videos/{NOT_THERE}"), 404, "unknown-video")


def test_addresses_are_signed_where_there_is_a_key(
    storage_settings: StorageSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = storage_settings.model_copy(update={"app_secret_key": SecretStr("s")})
    with service(signed, tmp_path) as client:
        video = announced(client, CONTENT)
        url = video["upload"]["parts"][0]["url"]
        for forged in (
            url.partition("?")[0],
            url[:-1] + "x",
            url.replace("expires=1", "expires=2"),
        ):
            answer = client.put(forged, content=CONTENT)
            check_problem(answer, 403, "upload-address-invalid")
        now_s = time.time()
        with monkeypatch.context() as later:
            later.setattr(time, "time", lambda: now_s + 7 * 3600)
            check_problem(client.put(url, content=CONTENT), 403, "upload-address-invalid")
        assert client.put(url, content=CONTENT).status_code == 204


def test_without_a_database_or_folder_everything_else_works(tmp_path: Path) -> None:
    with service(None, tmp_path) as client:
        assert client.get("/exercises").status_code == 200
        for answer in (
            client.get("/videos"),
            client.post("/videos", json={"filename": "a.mp4", "size_bytes": 1}),
            client.put(f"/videos/{NOT_THERE}/parts/0", content=b""),
        ):
            assert answer.status_code == 503


def test_a_folder_that_cannot_be_written_to_is_told(
    storage_settings: StorageSettings, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    broken = storage_settings.model_copy(update={"data_dir": tmp_path / "file"})
    with service(broken, tmp_path) as client:
        answer = client.get("/videos")
        detail = check_problem(answer, 503, "storage-unavailable")
        assert str(tmp_path) not in detail
        assert answer.headers["Retry-After"] == "10"
        files = client.get("/health").json()["files"]
        assert files["state"] == "unavailable"
        assert str(tmp_path / "file") in files["reason"]


@pytest.fixture
def live(
    storage_settings: StorageSettings, tmp_path: Path, small_parts: None
) -> Iterator[LiveServer]:
    app = upload_app(storage_settings, tmp_path)
    with structlog.testing.capture_logs() as logs, serving(app) as server:
        while server.call("GET", "/health")[1]["database"]["state"] == "starting":
            time.sleep(0.02)
        yield server
        assert [entry for entry in logs if entry["log_level"] == "error"] == []


def began(live: LiveServer) -> dict[str, Any]:
    body = {"filename": "a.mp4", "size_bytes": len(CONTENT), "sha256": sha256(CONTENT)}
    status, video, _ = live.call("POST", "/videos", body)
    assert status == 201, video
    return video


def raw_put(live: LiveServer, path: str, told_bytes: int, body: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=10)
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {told_bytes}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def eventually_no_files(folder: Path) -> None:
    for _ in range(500):
        if not files_below(folder):
            return
        time.sleep(0.01)
    raise AssertionError(files_below(folder))


def test_a_connection_that_breaks_within_a_part_leaves_nothing(
    live: LiveServer, storage_settings: StorageSettings
) -> None:
    video = began(live)
    path = video["upload"]["parts"][0]["url"]
    part = parts_of(CONTENT, video)[0]
    incoming = storage_settings.data_dir / "incoming"
    connection = raw_put(live, path, len(part), part[: len(part) // 2])
    while not files_below(incoming):
        time.sleep(0.01)
    connection.close()
    eventually_no_files(incoming)
    told = live.call("GET", f"/videos/{video['video_id']}")[1]
    assert [one["stored"] for one in told["upload"]["parts"]] == [False] * 3
    with raw_put(live, path, len(part), part) as again:
        assert again.recv(100).startswith(b"HTTP/1.1 204")


def test_a_length_that_lies_gains_nothing(
    live: LiveServer, storage_settings: StorageSettings
) -> None:
    video = began(live)
    path = video["upload"]["parts"][0]["url"]
    part = parts_of(CONTENT, video)[0]
    with raw_put(live, path, len(part) - 1, part) as short:
        assert short.recv(100).startswith(b"HTTP/1.1 422")
    with raw_put(live, path, 10**15, part) as long:
        assert long.recv(100).startswith(b"HTTP/1.1 413")
    with raw_put(live, path, len(part), part + b"GET /health HTTP/1.1\r\n\r\n") as more:
        assert more.recv(100).startswith(b"HTTP/1.1 204")
    told = live.call("GET", f"/videos/{video['video_id']}")[1]
    assert [one["stored"] for one in told["upload"]["parts"]] == [True, False, False]
    assert files_below(storage_settings.data_dir / "incoming") == []


def test_a_part_without_end_is_not_read(
    live: LiveServer, storage_settings: StorageSettings
) -> None:
    video = began(live)
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=10)
    path = video["upload"]["parts"][0]["url"]
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.sendall(head.encode())
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with connection:
        for _ in range(3 * 16):  # three times the part
            connection.sendall(chunk)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    eventually_no_files(storage_settings.data_dir / "incoming")


def test_who_sends_nothing_for_long_is_told(
    live: LiveServer, storage_settings: StorageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_bodies, "IDLE_S", 0.05)
    video = began(live)
    part = parts_of(CONTENT, video)[0]
    with raw_put(live, video["upload"]["parts"][0]["url"], len(part), part[:1000]) as slow:
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    assert files_below(storage_settings.data_dir / "incoming") == []


def test_parts_go_to_s3_by_the_addresses_of_the_service(
    storage_settings: StorageSettings, tmp_path: Path, small_parts: None
) -> None:
    with s3_server() as endpoint_url:
        bucket = bucket_settings(endpoint_url, tmp_path)
        names = ("s3_bucket", "s3_region", "s3_endpoint_url")
        changes = {name: getattr(bucket, name) for name in names}
        with service(storage_settings.model_copy(update=changes), tmp_path) as client:
            video = announced(client, CONTENT)
            parts = parts_of(CONTENT, video)
            for part in video["upload"]["parts"]:
                assert part["url"].startswith(endpoint_url)
                if part["number"]:
                    send(part["url"], parts[part["number"]])
            # Who cannot reach S3 may send through the service all the same.
            path = f"/videos/{video['video_id']}/parts/0"
            assert client.put(path, content=parts[0]).status_code == 204
            assert complete(client, video).json()["state"] == "stored"
            indirect = announced(client, CONTENT, direct=False)
            assert indirect["upload"]["parts"][0]["url"].startswith("/videos/")


def test_the_document_tells_of_both_bodies(shared: TestClient) -> None:
    posted = shared.get("/openapi.json").json()["paths"]["/videos"]["post"]
    assert set(posted["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert {"413", "415", "507"} <= posted["responses"].keys()
