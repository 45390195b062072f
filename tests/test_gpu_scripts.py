"""The scripts about GPUs: what they write, and what they decide themselves."""

import json

import detect_gpu
import gpu_constraint_profiler
import pytest

from gpu_optimizer.machines import detection
from gpu_optimizer.machines.registry import default_machines_file, load_machines
from gpu_optimizer.types import LayerMemory
from shared_utils.gpu import GpuReader, GpuSnapshot

MIB = 1 << 20


@pytest.fixture
def gpu(monkeypatch):
    """Put a GPU, or none, into this machine."""

    def put(snapshot: GpuSnapshot | None, cuda: str | None, *, usable: bool) -> None:
        monkeypatch.setattr(GpuReader, "read", lambda _: snapshot)
        facts = (cuda, usable, None)
        monkeypatch.setattr(detection, "_torch_facts", lambda: facts)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return put


def test_a_machine_without_a_gpu_is_cpu(gpu, tmp_path, capsys):
    gpu(None, "12.8", usable=False)
    out = tmp_path / "new" / "gpu.json"
    assert detect_gpu.main(["--out", str(out)]) == 0
    assert capsys.readouterr().out == "cpu\n"
    document = json.loads(out.read_text())
    assert document["gpu"] is document["vram_gb"] is document["compute_capability"] is None
    assert document["cuda_version"] == "12.8"
    assert document["pytorch_version"]


@pytest.mark.parametrize(("usable", "device"), [(True, "cuda"), (False, "cpu")])
def test_a_known_card_is_recognised(gpu, tmp_path, capsys, usable, device):
    card = GpuSnapshot(0, "NVIDIA GeForce RTX 3070 Ti", 8192 * MIB, 0, "570.1")
    gpu(card, "12.8", usable=usable)
    out = tmp_path / "gpu.json"
    assert detect_gpu.main(["--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{device}\n"
    assert "pc-3070ti" in printed.err
    document = json.loads(out.read_text())
    assert (document["vram_gb"], document["compute_capability"]) == (8.0, "8.6")
    assert (document["machine"], document["device"]) == ("pc-3070ti", device)


def test_a_hidden_gpu_is_none(gpu, monkeypatch):
    gpu(GpuSnapshot(0, "NVIDIA H200", 143771 * MIB, 0, "570.1"), "12.8", usable=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    host = detection.detect_host(load_machines(default_machines_file()))
    assert (host.gpu, host.device) == (None, "cpu")


def test_a_file_that_cannot_be_written_is_one_line(gpu, tmp_path, capsys):
    gpu(None, None, usable=False)
    assert detect_gpu.main(["--out", str(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_only_large_layers_get_smaller_by_quantization():
    def layer(name: str, kind: str, size: int, *children: LayerMemory) -> LayerMemory:
        return LayerMemory(name, kind, size, 0, 0, 0, children=children)

    model = layer(
        "", "Llama", 3600, layer("embed", "Embedding", 1000), layer("norm", "Norm", 1000),
        layer("block", "Linear", 1600),
    )  # fmt: skip
    assert gpu_constraint_profiler.saved_bytes(model, 16.0) == 0
    assert gpu_constraint_profiler.saved_bytes(model, 8.0) == 800
    assert gpu_constraint_profiler.saved_bytes(model, 4.25) == 1175
    head = layer("", "Llama", 1600, layer("lm_head", "Linear", 1600))
    assert gpu_constraint_profiler.saved_bytes(head, 4.25) == 0
