"""Form over HTTP: exercises, judging keypoints and clips, references."""

import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import structlog
from fastapi.testclient import TestClient

from pose_analyzer.api.main import create_app
from pose_analyzer.reference_files import format_reference

from .builders import FakeDetector, squat_keypoints, squat_progress
from .image_service import Factory, check_problem, small_settings
from .squat_service import squatter
from .test_form_scorer import REFERENCE

NAN_POINT = [None, None, 0.0]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("service")
    chosen = small_settings(folder).model_copy(
        update={"taught_references_dir": folder / "taught", "max_upload_bytes": 4_000_000}
    )
    app = create_app(chosen, Factory(), clip_factory=lambda name, settings: FakeDetector(squatter))
    with structlog.testing.capture_logs(), TestClient(app) as client:
        yield client


def squats(n: int = 3, **changes: object) -> dict[str, object]:
    times_s = np.arange(0.0, 2.0 * n + 2.5, 1 / 25)
    frames = [
        [[x, y, 0.9] for x, y in squat_keypoints(squat_progress(t, n_repetitions=n)).tolist()]
        for t in times_s
    ]
    return {"exercise": "squat", "fps": 25.0, "frames": frames} | changes


def test_exercises_tell_what_they_are_judged_by(client: TestClient) -> None:
    body = client.get("/exercises").json()
    squat = next(one for one in body["exercises"] if one["name"] == "squat")
    assert "squat" in squat["references"]
    assert squat["faults"]["knees_caving_in"] == "Knees caving in"
    assert {"de", "en"} <= set(body["languages"])


def test_each_repetition_of_a_sequence_is_judged(client: TestClient) -> None:
    response = client.post("/analyze-form", json=squats())
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["exercise"], body["n_repetitions"]) == ("squat", 3)
    assert [one["repetition"] for one in body["repetitions"]] == [1, 2, 3]
    assert 0.0 <= body["score"] <= 100.0
    assert body["repetitions"][0]["reference"] == "squat"
    lost = sum(loss["points"] for loss in body["repetitions"][0]["losses"])
    assert lost <= 100.0 - body["repetitions"][0]["score"] + 1e-6


def test_a_clip_is_judged_as_its_keypoints_are(client: TestClient, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(220):
            image = np.zeros((48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    response = client.post(
        "/analyze-form",
        files={"file": ("clip.mp4", clip.read_bytes())},
        data={"exercise": "squat", "language": "de"},
    )
    assert response.status_code == 200, response.text
    assert response.json()["n_repetitions"] == 3
    assert response.json()["score"] == pytest.approx(
        client.post("/analyze-form", json=squats()).json()["score"], abs=3.0
    )


def test_a_taught_reference_is_listed_used_fetched_and_forgotten(client: TestClient) -> None:
    taught = client.post("/references", json=squats(name="maria"))
    assert taught.status_code == 201, taught.text
    assert taught.json()["mode"] == "personal"
    assert "maria" in [one["name"] for one in client.get("/references").json()["references"]]
    judged = client.post("/analyze-form", json=squats(reference="maria")).json()
    assert judged["repetitions"][0]["reference"] == "maria"
    assert judged["score"] > 80.0
    assert client.get("/references/maria").json()["exercise"] == "squat"
    assert client.delete("/references/maria").status_code == 204
    check_problem(client.delete("/references/maria"), 404, "unknown-reference")
    check_problem(client.get("/references/maria"), 404, "unknown-reference")


def test_a_reference_can_be_stored(client: TestClient) -> None:
    document = format_reference(REFERENCE)
    assert client.put("/references/good", content=document).status_code == 200
    check_problem(client.put("/references/other", content=document), 422, "invalid-reference")
    check_problem(client.put("/references/good", content="{}"), 422, "invalid-reference")
    check_problem(client.put("/references/..%2Fx", content=document), 404, None)
    named = json.loads(document) | {"name": "squat"}
    check_problem(client.put("/references/squat", json=named), 422, "invalid-reference")
    assert client.delete("/references/good").status_code == 204
    check_problem(client.delete("/references/squat"), 404, "unknown-reference")


@pytest.mark.parametrize(
    ("changes", "slug"),
    [
        ({"exercise": "yodel"}, "unknown-name"),
        ({"reference": "nobody"}, "unknown-name"),
        ({"language": "tlh"}, "unknown-name"),
        ({"frames": []}, "invalid-request"),
        ({"frames": [[[1.0, 2.0, 0.5]] * 16]}, "invalid-request"),
        ({"fps": None}, "invalid-request"),
        ({"fps": 0.0}, "invalid-request"),
        ({"fps": None, "times_s": [0.0, 0.0], "frames": [[NAN_POINT] * 17] * 2}, "invalid-request"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    client: TestClient, changes: dict[str, object], slug: str
) -> None:
    check_problem(client.post("/analyze-form", json=squats(1) | changes), 422, slug)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff"])
def test_what_is_no_question_is_refused(client: TestClient, body: bytes) -> None:
    check_problem(client.post("/analyze-form", content=body), 422, "invalid-request")


def test_what_is_no_clip_is_refused(client: TestClient) -> None:
    files = {"file": ("clip.mp4", b"not a video")}
    check_problem(client.post("/analyze-form", files=files), 422, "not-a-video")
    check_problem(client.post("/analyze-form", files={"other": b"x"}), 422, "invalid-request")


def test_nothing_known_gets_an_answer(client: TestClient) -> None:
    body = {"fps": 30.0, "frames": [[NAN_POINT] * 17] * 60}
    assert client.post("/analyze-form", json=body).json()["n_repetitions"] == 0
