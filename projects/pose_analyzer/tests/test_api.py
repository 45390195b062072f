import asyncio
import io
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import av
import hypothesis
import numpy as np
import pytest
import structlog
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pose_analyzer import on_demand
from pose_analyzer.api import main as api_main
from pose_analyzer.api import routes as api_routes
from pose_analyzer.api.detectors import DetectorPool
from pose_analyzer.api.main import create_app, image_detector
from pose_analyzer.api.problems import PROBLEMS
from pose_analyzer.api.uploads import decode_image
from pose_analyzer.errors import (
    BackendFailedError,
    ModelUnavailableError,
    UnreadableSourceError,
)
from pose_analyzer.ports import PoseDetector
from pose_analyzer.settings import Settings
from pose_analyzer.skeletons import ANGLE_NAMES, KEYPOINT_NAMES
from pose_analyzer.types import Pose
from shared_utils.body_limit import ENVELOPE_BYTES
from shared_utils.gpu import GpuSnapshot
from shared_utils.problems import MEDIA_TYPE


class FakeDetector:
    """Sees one standing person with an unseen left wrist in every image."""

    device = "cpu"

    def __init__(self, name: str) -> None:
        self.name = name
        self.busy = threading.Lock()
        self.images: list[np.ndarray] = []
        self.closed = False

    def detect(
        self, images_bgr: Sequence[np.ndarray], times_s: Sequence[float] | None = None
    ) -> list[list[Pose]]:
        assert self.busy.acquire(blocking=False), "called twice at the same time"
        time.sleep(0.01)
        self.images += images_bgr
        self.busy.release()
        return [[standing()] for _ in images_bgr]

    def close(self) -> None:
        self.closed = True


def standing() -> Pose:
    x_px = [50, 52, 48, 55, 45, 60, 40, 62, 38, 63, 37, 57, 43, 57, 43, 57, 43]
    y_px = [10, 8, 8, 9, 9, 25, 25, 45, 45, 65, 65, 65, 65, 95, 95, 125, 125]
    keypoints_px = np.array([x_px, y_px], dtype=np.float64).T
    confidences = np.full(17, 0.9)
    keypoints_px[9], confidences[9] = np.nan, 0.0
    return Pose(keypoints_px, confidences, np.array([35.0, 5.0, 65.0, 130.0]), 0.9)


class Factory:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.made: list[FakeDetector] = []
        self.error: Exception | None = None

    def __call__(self, name: str, settings: Settings) -> PoseDetector:
        self.asked.append(name)
        if self.error:
            raise self.error
        self.made.append(FakeDetector(name))
        return self.made[-1]


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """The default configuration renders the locals of every frame of a traceback."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        model_path=(),
        model_dir=tmp_path / "models",
        cache_dir=tmp_path / "cache",
        max_upload_bytes=100_000,
        max_image_pixels=1_000_000,
    )


@pytest.fixture
def factory() -> Factory:
    return Factory()


@pytest.fixture
def client(settings: Settings, factory: Factory) -> Iterator[TestClient]:
    with TestClient(create_app(settings, factory)) as client:
        yield client


def picture(width_px: int = 100, height_px: int = 140, kind: str = "PNG", **save: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width_px, height_px), (200, 100, 50)).save(buffer, kind, **save)
    return buffer.getvalue()


def upload(content: bytes) -> dict[str, tuple[str, bytes]]:
    return {"file": ("picture.png", content)}


def check_problem(response: Any, status: int, code: str | None = None) -> str:
    assert response.status_code == status
    assert response.headers["content-type"] == MEDIA_TYPE
    body = response.json()
    assert {"type", "title", "status", "detail", "instance"} <= body.keys()
    assert body["status"] == status
    if code:
        assert body["type"].endswith(f":{code}")
    assert "Traceback" not in response.text
    detail: str = body["detail"]
    return detail


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


async def test_while_a_model_loads_the_others_work(settings: Settings) -> None:
    download = threading.Event()
    made = []

    def factory(name: str, _: Settings) -> PoseDetector:
        if name == "mediapipe-lite":
            assert download.wait(10)
        made.append(name)
        return FakeDetector(name)

    pool = DetectorPool(settings, factory)
    image_bgr = np.zeros((4, 4, 3), np.uint8)
    await pool.detect("auto", image_bgr)
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(pool.detect, "mediapipe-lite", image_bgr)
        await anyio.sleep(0.05)
        with anyio.fail_after(5):
            await pool.detect("auto", image_bgr)
            await pool.detect("mediapipe-heavy", image_bgr)
        download.set()
    assert made == ["mediapipe-full", "mediapipe-heavy", "mediapipe-lite"]
    await pool.close()
    assert pool.loaded == ()


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
    paths = client.get("/openapi.json").json()["paths"]
    told = {
        status
        for path in paths.values()
        for route in path.values()
        for status in route["responses"]
    }
    assert {str(kind.status.value) for kind in PROBLEMS.values()} <= told
    responses = paths["/detect"]["post"]["responses"]
    assert all(MEDIA_TYPE in responses[status]["content"] for status in ("413", "415", "422"))


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held in portrait
    image_bgr = decode_image(picture(40, 20, "JPEG", exif=exif), "a.jpg", 10_000)
    assert image_bgr.shape == (40, 20, 3)
    for orientation in range(9):
        exif[0x0112] = orientation
        content = picture(40, 20, "JPEG", exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        rgb = decode_image(content, "a.jpg", 10_000)[:, :, ::-1]
        np.testing.assert_array_equal(rgb, np.asarray(expected))
    with pytest.raises(UnreadableSourceError, match=r"^a\.txt"):
        decode_image(b"text", "a.txt", 10_000)


def test_grey_of_16_bits_is_scaled_to_8() -> None:
    grey = np.array([[0, 300, 0x8000, 0xFFFF]], dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    image_bgr = decode_image(buffer.getvalue(), "a.png", 100)
    assert image_bgr.tolist() == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]


# As TIFF writes them: tag, type, number of values, then the value or where it is.
exif_entries = st.lists(
    st.tuples(
        st.sampled_from([0x0100, 0x010F, 0x0112, 0x011A, 0x0132, 0x8769, 0x8825, 0xA005]),
        st.integers(0, 14),
        st.sampled_from([0, 1, 2, 5, 0xFFFFFFFF]),
        st.binary(min_size=4, max_size=4),
    ),
    max_size=4,
)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the EXIF
@hypothesis.settings(max_examples=150, deadline=None)
@given(entries=exif_entries, kind=st.sampled_from(["JPEG", "PNG", "WEBP"]))
@hypothesis.example(entries=[(0x010F, 0, 6, b"make"), (0x0112, 3, 1, b"\0\6\0\0")], kind="JPEG")
@hypothesis.example(entries=[(0x0100, 2, 5, b"\0\0\0\0"), (0x0112, 3, 1, b"\0\6\0\0")], kind="PNG")
def test_an_image_is_read_whatever_its_exif_says(
    entries: list[tuple[int, int, int, bytes]], kind: str
) -> None:
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries))
    exif += b"".join(struct.pack(">HHI4s", *entry) for entry in entries) + bytes(4)
    image_bgr = decode_image(picture(40, 20, kind, exif=exif), "a", 10_000)
    assert sorted(image_bgr.shape) == [3, 20, 40]


# An EXIF block with an orientation and one with a place of its own for its value.
EXIF = b"Exif\0\0MM\0*\0\0\0\10\0\2\1\17\0\2\0\0\0\6\0\0\0&\1\22\0\3\0\0\0\1\0\6\0\0\0\0\0\0maker\0"
ORIGINALS = [picture(40, 20, kind, exif=EXIF) for kind in ("JPEG", "PNG", "WEBP")]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_images_are_never_a_defect(settings: Settings, factory: Factory) -> None:
    changes = st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
    )

    @hypothesis.settings(max_examples=300, deadline=None)
    @given(
        original=st.sampled_from(ORIGINALS),
        changes=changes,
        kept_ratio=st.just(1.0) | st.floats(0.5, 1.0),
    )
    def check(original: bytes, changes: list[tuple[float, int]], kept_ratio: float) -> None:
        content = bytearray(original)
        for place, value in changes:
            # Half of them in the first eighth, where the headers are.
            content[int(place**3 * len(content))] = value
        n_kept = round(len(content) * kept_ratio)
        response = client.post("/detect", files=upload(bytes(content[:n_kept])))
        assert response.status_code in {200, 413, 415}

    app = create_app(settings, factory)
    with TestClient(app, raise_server_exceptions=False) as client:
        check()


def test_only_mediapipe_is_told_a_number_of_people(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def create(name: str, *_: object, n_people: int | None, **__: object) -> PoseDetector:
        asked[name] = n_people
        return FakeDetector(name)

    monkeypatch.setattr(api_main, "create_detector", create)
    monkeypatch.setattr(api_main, "locate_model", lambda *_: None)
    for name in ("mediapipe", "yolo", "/srv/own-pose.onnx"):
        image_detector(name, settings)
    assert asked == {"mediapipe-full": 6, "yolo11n-pose": None, "/srv/own-pose.onnx": None}


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


def test_a_client_cannot_make_the_service_download_other_models(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(
        api_main, "create_detector", lambda name, *_, **__: made.append(name) or FakeDetector(name)
    )
    for name in ("yolo", "yolo26x-pose", "mediapipe-heavy"):
        with pytest.raises(ModelUnavailableError):
            image_detector(name, settings)
    for name in ("auto", "mediapipe", "mediapipe-full"):
        image_detector(name, settings)
    assert made == ["mediapipe-full"] * 3


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
