"""Predictions and profiles through the real worker processes."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save

from gpu_optimizer.api.main import create_app
from gpu_optimizer.models.registered import FAMILIES
from gpu_optimizer.models.registered_names import REGISTERED_NAMES
from gpu_optimizer.settings import Settings

TINY_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "auto_map": {"AutoModel": "evil.Model"},
}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Settings(quick_answer_s=120.0))) as client:
        yield client


def test_the_names_are_those_that_can_be_built() -> None:
    assert set(FAMILIES) == set(REGISTERED_NAMES)


def test_a_configuration_is_predicted(client: TestClient) -> None:
    run = {"model": TINY_LLAMA, "mode": "train", "batch_size": 2, "n_tokens": 32}
    job = client.post("/predict", json=run).json()
    assert job["state"] == "done", job["failure"]
    result = job["result"]
    assert result["model"]["dropped"] == ["auto_map"]
    prediction = result["prediction"]
    assert 0 < prediction["allocated_peak_bytes"] <= prediction["reserved_peak_bytes"]
    assert prediction["reserved_peak_bytes"] < prediction["total_bytes"]
    by_category = prediction["by_category_bytes"]
    assert sum(by_category.values()) == prediction["allocated_peak_bytes"]
    n_parameters = result["model"]["n_parameters"]
    assert by_category["parameter"] == pytest.approx(4 * n_parameters, rel=0.1)
    assert {machine["fits"] for machine in result["machines"]} == {"fits"}
    stages = [event["stage"] for event in job["events"] if "stage" in event]
    assert stages[0].startswith("recording")


def test_a_configuration_is_planned_within_a_budget(client: TestClient) -> None:
    run = {
        "model": TINY_LLAMA, "batch_size": 16, "n_tokens": 128, "gpu": "RTX 3070 Ti",
        "budget": "90%", "verify": True,
    }  # fmt: skip
    job = client.post("/optimize", json=run).json()
    assert job["state"] == "done", job["failure"]
    result = job["result"]
    assert result["fits"]
    assert result["plan"]["predicted_peak"]["total"] <= result["budget_bytes"]
    assert (result["check"] is None) == result["note"].startswith("The peak is predicted")
    assert any("planning" in event.get("stage", "") for event in job["events"])
    refused = client.post("/optimize", json=run | {"mode": "infer"})
    assert refused.status_code == 422


def test_a_registered_model_is_profiled_layer_by_layer(client: TestClient) -> None:
    run = {"model": "unet", "mode": "infer", "batch_size": 1}
    result = client.post("/profile", json=run).json()["result"]
    layers = result["layers"]
    assert layers["name"] == ""
    own = sum(child["parameter_bytes"] for child in layers["children"])
    assert own == layers["parameter_bytes"] > 0


def test_a_file_of_tensors_is_shown_but_cannot_be_run(client: TestClient) -> None:
    content = save({"layer.weight": np.zeros((2, 3), np.float32)})
    shown = client.post("/profile", files={"file": ("a.safetensors", content)}).json()
    assert shown["result"]["model"]["weight_bytes"] == 24
    refused = client.post("/predict", files={"file": ("a.safetensors", content)})
    assert refused.status_code == 422
    assert "config.json" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x04\x95\x00.", "pickle"),
        (json.dumps({"model_type": "llama", "hidden_size": 10**12}).encode(), "hidden_size"),
        (b"PK\x03\x04" + bytes(40), "zip"),
        (b"", ""),
    ],
    ids=["pickle", "huge", "zip", "empty"],
)
def test_hostile_files_are_refused_with_a_reason(
    client: TestClient, content: bytes, words: str
) -> None:
    answer = client.post("/profile", files={"file": ("model.bin", content)})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_what_the_model_cannot_do_is_said(client: TestClient) -> None:
    too_long = {"model": TINY_LLAMA | {"max_position_embeddings": 16}, "n_tokens": 64}
    answer = client.post("/predict", json=too_long)
    assert (answer.status_code, "16 tokens" in answer.json()["detail"]) == (422, True)
    small = client.post("/predict", json={"model": "vit_b_16", "image_size_px": 225})
    assert (small.status_code, "vit_b_16" in small.json()["detail"]) == (422, True)
    unknown = client.post("/predict", json={"model": "unet", "gpu": "Voodoo 2"})
    assert "Voodoo 2" in unknown.json()["detail"]
