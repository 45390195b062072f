"""Single images over HTTP."""

import asyncio
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import pytest
import structlog
from fastapi.testclient import TestClient
from PIL import Image

from pose_analyzer import on_demand
from pose_analyzer.api import routes as api_routes
from pose_analyzer.api.main import create_app
from pose_analyzer.api.problems import PROBLEMS
from pose_analyzer.errors import (
    BackendFailedError,
    ModelUnavailableError,
)
from pose_analyzer.settings import Settings
from pose_analyzer.skeletons import ANGLE_NAMES, KEYPOINT_NAMES
from shared_utils.body_limit import ENVELOPE_BYTES
from shared_utils.gpu import GpuSnapshot
from shared_utils.problems import MEDIA_TYPE

from .image_service import Factory, check_problem, picture, small_settings, upload


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """The default configuration renders the locals of every frame of a traceback."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return small_settings(tmp_path)


@pytest.fixture
def factory() -> Factory:
    return Factory()


@pytest.fixture
def client(settings: Settings, factory: Factory) -> Iterator[TestClient]:
    with TestClient(create_app(settings, factory)) as client:
        yield client


def test_health_tells_versions_device_and_models(client: TestClient) -> None:
    client.post("/detect", files=upload(picture()))
    body = client.get("/health").json()
    assert body["status"] == "ok"
    assert body["versions"]["mediapipe"].startswith("0.10.")
    assert body["device"] in {"cpu", "cuda"}
    assert body["detectors"] == [{"name": "mediapipe-full", "device": "cpu"}]
    assert {"name": "mediapipe-full", "licence": "Apache-2.0", "state": "missing"} in body["models"]


def test_detect_answers_people_with_named_keypoints_and_angles(
    client: TestClient, factory: Factory
) -> None:
    response = client.post("/detect", files=upload(picture()))
    assert response.status_code == 200
    body = response.json()
    assert (body["detector"], body["width_px"], body["height_px"]) == ("mediapipe-full", 100, 140)
    (person,) = body["people"]
    assert [point["name"] for point in person["keypoints"]] == list(KEYPOINT_NAMES)
    assert [angle["name"] for angle in person["angles"]] == list(ANGLE_NAMES)
    assert person["box_px"] == [35.0, 5.0, 65.0, 130.0]
    angles = {angle["name"]: angle for angle in person["angles"]}
    assert angles["left_knee"]["value_deg"] == pytest.approx(180.0, abs=5.0)
    assert angles["left_elbow"]["value_deg"] is None
    assert person["keypoints"][9]["x_px"] is None
    assert person["angles_3d"] is None
    (image_bgr,) = factory.made[0].images
    assert image_bgr[0, 0].tolist() == [50, 100, 200]


def test_a_detector_is_made_once_and_two_names_of_one_model_share_it(
    client: TestClient, factory: Factory
) -> None:
    for name in ("auto", "mediapipe-full", "auto", "mediapipe-lite"):
        params = {"detector": name}
        assert client.post("/detect", params=params, files=upload(picture())).status_code == 200
    assert factory.asked == ["mediapipe-full", "mediapipe-lite"]


def test_detectors_are_closed_at_the_end(settings: Settings, factory: Factory) -> None:
    with TestClient(create_app(settings, factory)) as client:
        client.post("/detect", files=upload(picture()))
    assert [detector.closed for detector in factory.made] == [True]


def test_many_clients_at_once_take_turns(client: TestClient, factory: Factory) -> None:
    def ask(_: int) -> int:
        return client.post("/detect", files=upload(picture())).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(24))) == {200}
    assert len(factory.made) == 1
    assert len(factory.made[0].images) == 24


@pytest.mark.parametrize("name", ["nonsense", "/etc/weights.pt", "../weights.onnx", ""])
def test_unknown_detectors_and_paths_of_weights_are_refused(
    client: TestClient, factory: Factory, name: str
) -> None:
    response = client.post("/detect", params={"detector": name}, files=upload(picture()))
    assert "mediapipe" in check_problem(response, 422, "unknown-name")
    assert factory.asked == []


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", picture(kind="JPEG")[:400], picture()[:100], b"GIF89a" + bytes(100)],
    ids=["empty", "text", "truncated jpeg", "truncated png", "gif"],
)
def test_what_is_not_an_image_is_refused(client: TestClient, content: bytes) -> None:
    response = client.post("/detect", files=upload(content))
    check_problem(response, 415, "not-an-image")


def test_too_many_bytes_are_refused(client: TestClient) -> None:
    response = client.post("/detect", files=upload(bytes(150_000)))
    assert "100000 bytes" in check_problem(response, 413)


def test_too_many_pixels_are_refused_before_decoding(client: TestClient) -> None:
    response = client.post("/detect", files=upload(picture(1001, 1000)))
    check_problem(response, 413, "too-many-pixels")
    # Beyond Pillow's own limits, as a warning and as an error.
    for side_px in (10_000, 20_000):
        buffer = io.BytesIO()
        Image.new("1", (side_px, side_px)).save(buffer, "PNG")
        response = client.post("/detect", files=upload(buffer.getvalue()))
        check_problem(response, 413, "too-many-pixels")


async def test_an_endless_upload_is_not_read_to_its_end(
    settings: Settings, factory: Factory
) -> None:
    n_read_bytes = 0
    sent: list[dict[str, Any]] = []
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    async def receive() -> dict[str, Any]:
        nonlocal n_read_bytes
        body = bytes(10_000) if n_read_bytes else head
        n_read_bytes += len(body)
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    app = create_app(settings, factory)
    async with app.router.lifespan_context(app) as state:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/detect",
            "query_string": b"",
            "headers": [(b"content-type", b"multipart/form-data; boundary=b")],
            "state": dict(state),
        }
        await asyncio.wait_for(app(scope, receive, send), timeout=10)
    assert sent[0]["status"] == 413
    assert n_read_bytes <= settings.max_upload_bytes + ENVELOPE_BYTES + 10_000


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ModelUnavailableError("yolo11n-pose", "Do this."), 503, "model-unavailable"),
        (BackendFailedError("yolo11n-pose", "broke"), 503, "detector-failed"),
    ],
)
def test_a_detector_that_cannot_be_had_is_503_and_tried_again_after_a_while(
    client: TestClient,
    factory: Factory,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    code: str,
) -> None:
    factory.error = error
    for _ in range(3):
        response = client.post("/detect", files=upload(picture()))
        assert check_problem(response, status, code) == str(error)
    assert factory.asked == ["mediapipe-full"]
    factory.error = None
    params = {"detector": "mediapipe-lite"}
    assert client.post("/detect", params=params, files=upload(picture())).status_code == 200
    monkeypatch.setattr(on_demand, "RETRY_AFTER_S", 0.0)
    assert client.post("/detect", files=upload(picture())).status_code == 200


def test_other_mistakes_of_clients_are_problems_too(client: TestClient) -> None:
    assert "body.file" in check_problem(client.post("/detect"), 422, "invalid-request")
    check_problem(client.post("/detect", data={"file": "text"}), 422, "invalid-request")
    check_problem(client.get("/nowhere"), 404)
    check_problem(client.get("/detect"), 405)
    headers = {"content-type": "multipart/form-data; boundary=x"}
    check_problem(client.post("/detect", content=b"garbage", headers=headers), 400)


def test_a_defect_is_a_problem_without_a_traceback(settings: Settings, factory: Factory) -> None:
    factory.error = RuntimeError("secret path")
    app = create_app(settings, factory)
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.post("/detect", files=upload(picture()))
    check_problem(response, 500)
    assert "secret" not in response.text


def test_the_openapi_document_names_the_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    paths = document["paths"]
    told = {
        status
        for path in paths.values()
        for route in path.values()
        for status in route["responses"]
    }
    assert {str(kind.status.value) for kind in PROBLEMS.values()} <= told
    responses = paths["/detect"]["post"]["responses"]
    assert all(MEDIA_TYPE in responses[status]["content"] for status in ("413", "415", "422"))


def test_health_tells_what_is_known_of_a_gpu(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = GpuSnapshot(0, "NVIDIA GB10", None, None, "580.1")
    monkeypatch.setattr(api_routes, "read_gpus", lambda: (known,))
    (gpu,) = client.get("/health").json()["gpus"]
    assert gpu == {
        "index": 0,
        "name": "NVIDIA GB10",
        "total_bytes": None,
        "used_bytes": None,
        "driver_version": "580.1",
    }


@pytest.mark.shared_data
def test_mediapipe_finds_the_person_who_squats(shared_data: Path, settings: Settings) -> None:
    clip = shared_data / "videos" / "squat_air_34view_360p24.mp4"
    with av.open(str(clip)) as container:
        frame = next(container.decode(video=0))
        image = frame.to_image()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    here = settings.model_copy(
        update={"model_path": (shared_data / "models",), "max_upload_bytes": 1_000_000}
    )
    with TestClient(create_app(here)) as client:
        params = {"detector": "mediapipe"}
        body = client.post("/detect", params=params, files=upload(buffer.getvalue())).json()
        models = {item["name"]: item["state"] for item in client.get("/health").json()["models"]}
    assert models["mediapipe-full"] == "verified"
    assert body["detector"] == "mediapipe-full"
    assert len(body["people"]) >= 1
    person = body["people"][0]
    assert all(0 <= point["x_px"] <= image.width * 1.1 for point in person["keypoints"])
    knees = [angle for angle in person["angles_3d"] if angle["name"].endswith("knee")]
    assert all(90 < angle["value_deg"] <= 180 for angle in knees)
