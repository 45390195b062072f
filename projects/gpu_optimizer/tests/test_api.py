"""The service: what it accepts, what becomes a job, and what it refuses."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from gpu_optimizer.api.main import PROBLEMS, create_app
from gpu_optimizer.jobs.store import JobState
from gpu_optimizer.profiling_worker import JobLimits, WorkerConfig
from gpu_optimizer.settings import Settings

JOBS = dict.fromkeys(("optimize", "predict", "profile"), "service_test_jobs:echo")
WORKER = WorkerConfig(
    jobs=JOBS, limits=JobLimits(wall_s=20.0), python_path=(Path(__file__).parent,)
)
RUN = {"model": "resnet50", "mode": "infer"}


@pytest.fixture
def client() -> Iterator[TestClient]:
    chosen = Settings(quick_answer_s=10.0, max_jobs=1, max_waiting_jobs=1)
    with TestClient(create_app(chosen, WORKER)) as client:
        yield client


@pytest.fixture
def patient() -> Iterator[TestClient]:
    """A service that makes a job of everything."""
    chosen = Settings(quick_answer_s=0.0, max_jobs=1, max_waiting_jobs=1)
    with TestClient(create_app(chosen, WORKER)) as client:
        yield client


def kind_of(answer) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()["type"].rpartition(":")[2]


def test_the_service_is_healthy_without_a_gpu(client: TestClient) -> None:
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert health["versions"]["torch"].startswith("2.")
    assert client.get("/gpus").status_code == 200
    assert "resnet50" in client.get("/models").json()["models"]


def test_a_quick_job_is_answered_at_once(client: TestClient) -> None:
    answer = client.post("/predict", json=RUN)
    assert answer.status_code == 200
    job = answer.json()
    assert (job["kind"], job["state"], job["failure"]) == ("predict", "done", None)
    assert job["result"]["payload"]["model"] == "resnet50"
    assert client.get(f"/jobs/{job['job_id']}").json() == job


def test_a_long_job_can_be_followed(patient: TestClient) -> None:
    answer = patient.post("/profile", json=RUN | {"batch_size": 2})
    assert answer.status_code == 202
    job_id = answer.json()["job_id"]
    assert answer.headers["location"] == f"/jobs/{job_id}"
    text = patient.get(f"/jobs/{job_id}/events").text
    events = [json.loads(data) for data in re.findall(r"event: progress\ndata: (.*)\n", text)]
    assert [event["step"] for event in events if "step" in event] == [0, 1, 2]
    (last,) = re.findall(r"event: end\ndata: (.*)\n", text)
    assert json.loads(last)["state"] == "done"


def test_a_job_can_be_cancelled(patient: TestClient) -> None:
    job_id = patient.post("/profile", json=RUN | {"batch_size": 3}).json()["job_id"]
    job = patient.delete(f"/jobs/{job_id}").json()
    assert (job["state"], job["failure_reason"]) == (JobState.CANCELLED, "cancelled")
    assert patient.delete(f"/jobs/{job_id}").json() == job


def test_too_many_jobs_are_refused_until_one_has_ended(patient: TestClient) -> None:
    slow = RUN | {"batch_size": 3}
    jobs = [patient.post("/profile", json=slow) for _ in range(2)]
    busy = patient.post("/profile", json=slow)
    assert (busy.status_code, kind_of(busy)) == (503, "busy")
    assert int(busy.headers["retry-after"]) > 0
    for job in jobs:
        patient.delete(f"/jobs/{job.json()['job_id']}")
    assert patient.post("/profile", json=RUN).status_code == 202


@pytest.mark.parametrize(
    ("batch_size", "status"), [(4, 422), (5, 200)], ids=["impossible", "crashes"]
)
def test_a_job_that_fails_leaves_the_service_up(
    client: TestClient, batch_size: int, status: int
) -> None:
    answer = client.post("/profile", json=RUN | {"batch_size": batch_size})
    assert answer.status_code == status
    if status == 422:
        assert kind_of(answer) == "invalid-run"
        assert "cannot be run like this" in answer.json()["detail"]
    else:
        assert answer.json()["failure_reason"] == "crashed"
    assert client.get("/health").status_code == 200


def test_a_file_is_handed_to_the_job_and_removed(client: TestClient) -> None:
    content = save({"weight": np.zeros((2, 3), np.float32)})
    answer = client.post(
        "/profile",
        files={"file": ("../model.safetensors", io.BytesIO(content))},
        data={"request": json.dumps({"mode": "infer"}), "head": "true"},
    )
    payload = answer.json()["result"]["payload"]
    assert (payload["name"], payload["complete"]) == ("model.safetensors", False)
    assert not Path(payload["path"]).exists()


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"", 422, "invalid-model"),
        (b"{", 422, "invalid-model"),
        (b"[" * 100_000, 422, "invalid-model"),
        (b'{"model": "resnet50", "batch_size": NaN}', 422, "invalid-model"),
        (b'{"model": "resnet50", "batch_size": 1e400}', 422, "invalid-model"),
        (b'{"model": "resnet50", "batch_size": 1000000000000}', 422, "invalid-request"),
        (b'{"model": "resnet50", "batch_size": -1}', 422, "invalid-request"),
        (b'{"model": "resnet50", "dtype": "int4"}', 422, "invalid-request"),
        (b'{"model": "resnet50", "trust_remote_code": true}', 422, "invalid-request"),
        (b"{}", 422, "invalid-request"),
        (b"[]", 422, "invalid-request"),
        (b"null", 422, "invalid-request"),
        (b"\x80\x04\x95", 422, "invalid-model"),
    ],
)
def test_bodies_that_are_not_requests_are_refused(
    client: TestClient, body: bytes, status: int, kind: str
) -> None:
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, kind_of(answer)) == (status, kind)


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget": "lots"},
        {"budget": 0},
        {"budget": "1GiB", "constraints": {"max_slowdown_ratio": -1}},
        {"budget": "1GiB", "constraints": {"techniques": ["magic"]}},
        {"budget": "1GiB", "constraints": {"exactness": "very"}},
        {"budget": "1GiB", "unknown": 1},
    ],
)
def test_wishes_that_make_no_sense_are_refused(client: TestClient, wrong: dict) -> None:
    answer = client.post("/optimize", json={"model": "resnet50", **wrong})
    assert (answer.status_code, kind_of(answer)) == (422, "invalid-request")


def test_a_plan_is_a_job_with_all_that_was_wished_for(client: TestClient) -> None:
    wished = {"model": "resnet50", "budget": "7.2GiB", "verify": True}
    job = client.post("/optimize", json=wished).json()
    assert (job["kind"], job["state"]) == ("optimize", "done")
    payload = job["result"]["payload"]
    assert payload["budget"] == "7.2GiB"
    assert payload["constraints"] == {
        "max_slowdown_ratio": None, "exactness": "numeric", "techniques": None,
    }  # fmt: skip
    assert client.post("/predict", json=wished).status_code == 422


def test_other_content_types_and_forms_without_a_file_are_refused(client: TestClient) -> None:
    text = client.post("/predict", content=b"x", headers={"Content-Type": "text/plain"})
    assert text.status_code == 415
    assert kind_of(client.post("/predict", files={"other": b"x"})) == "invalid-request"
    both = client.post("/predict", files={"file": b"x"}, data={"request": json.dumps(RUN)})
    assert kind_of(both) == "invalid-request"
    torn = client.post(
        "/predict", content=b"x", headers={"Content-Type": "multipart/form-data; boundary=a"}
    )
    assert torn.status_code in {400, 422}


def test_too_large_an_upload_is_refused() -> None:
    with TestClient(create_app(Settings(max_upload_bytes=1000), WORKER)) as client:
        answer = client.post("/profile", files={"file": bytes(100_000)})
        assert answer.status_code == 413


def test_unknown_jobs_are_not_found(client: TestClient) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        answer = client.request(method, f"/jobs/nothing{path}")
        assert (answer.status_code, kind_of(answer)) == (404, "unknown-job")


def test_telemetry_comes_until_the_client_leaves(client: TestClient) -> None:
    with client.websocket_connect("/telemetry") as socket:
        message = socket.receive_json()
        assert set(message) == {"time_s", "gpus"}


def test_metrics_count_jobs(client: TestClient) -> None:
    client.post("/predict", json=RUN)
    client.post("/predict", json=RUN | {"batch_size": 5})
    text = client.get("/metrics").text
    assert 'vram_jobs_total{kind="predict",outcome="done"} 1.0' in text
    assert 'vram_jobs_total{kind="predict",outcome="crashed"} 1.0' in text
    assert "vram_unfinished_jobs 0.0" in text


def test_the_openapi_document_describes_requests_and_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {"OptimizeRequest", "RunRequest"} <= set(document["components"]["schemas"])
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    told = {
        status
        for path in document["paths"].values()
        for route in path.values()
        for status in route["responses"]
    }
    assert {str(kind.status.value) for kind in PROBLEMS.values()} <= told


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda part: (
        st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=12), part, max_size=3)
    ),
    max_leaves=8,
)
fields = st.sampled_from([*RUN, "batch_size", "n_tokens", "dtype", "gpu", "optimizer", "__class__"])


@given(
    body=st.binary(max_size=200)
    | st.dictionaries(fields, json_values, max_size=5).map(lambda value: json.dumps(value).encode())
)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_body_breaks_the_service(client: TestClient, body: bytes) -> None:
    for path in ("/predict", "/profile", "/optimize"):
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in {200, 202, 422, 503}
