"""A script run under the tracer: on the CPU with the allocator's twin, for real where a GPU is."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from gpu_optimizer.cli import app
from gpu_optimizer.memory_tracer import MemoryTracer
from gpu_optimizer.runs.scripts import FirstModelTracer, run_script

from .recorded_allocator import RecordedAllocator

SCRIPT = """
import sys
import torch
from sizes import WIDTH

if __name__ == "__main__":
    device, n_steps = sys.argv[1], int(sys.argv[2])
    print("training")
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.Linear(2 * WIDTH, 1))
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    for _ in range(n_steps):
        torch.nn.MSELoss()(model(torch.ones(4, WIDTH, device=device)), model[0].bias[:1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    raise SystemExit(int(sys.argv[3]))
"""
FIRST_BYTES = (64 * 128 + 128) * 4


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "sizes.py").write_text("WIDTH = 64\n")
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.replace("model[0].bias[:1]", "torch.ones(4, 1, device=device)"))
    return path


def with_parameters(model: nn.Module) -> bool:
    return next(model.parameters(), None) is not None


def test_the_first_model_with_parameters_is_traced_from_its_first_call(script):
    allocator = RecordedAllocator()
    arguments, folders, call = sys.argv, sys.path, nn.Module.__call__
    tracer = FirstModelTracer(lambda model: MemoryTracer(model, history=allocator), with_parameters)
    with allocator, tracer:
        run_script(script, ["cpu", "2", "0"])
    assert tracer.model_kind == "Sequential"
    assert tracer.trace is not None
    assert tracer.trace.missed_bytes == 0
    first = tracer.trace.layers.children[0]
    assert (first.kind, first.parameter_bytes, first.gradient_bytes) == (
        "Linear",
        FIRST_BYTES,
        FIRST_BYTES,
    )
    assert (sys.argv, sys.path, nn.Module.__call__) == (arguments, folders, call)


def test_a_script_that_fails_leaves_its_trace(script):
    allocator = RecordedAllocator()
    tracer = FirstModelTracer(lambda model: MemoryTracer(model, history=allocator), with_parameters)
    with pytest.raises(SystemExit), allocator, tracer:
        run_script(script, ["cpu", "1", "3"])
    assert tracer.trace is not None
    assert len(tracer.trace.timeline) > 0


def test_a_script_without_a_model_has_no_trace(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("import torch\ntorch.nn.ReLU()(torch.ones(1))\n")
    tracer = FirstModelTracer(MemoryTracer)
    with tracer:
        run_script(path, [])
    assert tracer.trace is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_command_traces_a_script_on_a_gpu(script, tmp_path):
    out = tmp_path / "results"
    arguments = ["trace", "--json", "--out", str(out), str(script), "cuda", "2", "0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["missed_bytes"] == 0
    assert document["allocated_peak_bytes"] <= document["reserved_peak_bytes"]
    assert {path.name for path in out.iterdir()} == {"memory.html", "memory.json", "memory.pickle"}
    again = CliRunner().invoke(app, ["fragmentation", str(out / "memory.pickle")])
    assert again.exit_code == 0, again.output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_measured_and_estimated_layers_have_the_same_parameters():
    tables = []
    for extra in ([], ["--measure"]):
        result = CliRunner().invoke(app, ["profile", "resnet50", "--batch", "4", "--json", *extra])
        assert result.exit_code == 0, result.output
        tables.append(json.loads(result.stdout)["layers"])
    estimated, measured = tables
    assert estimated["parameter_bytes"] == measured["parameter_bytes"]
    assert measured["activation_bytes"] == pytest.approx(estimated["activation_bytes"], rel=0.05)
    assert measured["time_s"] > 0
