"""The tracer on a real CPU run, whose allocations a twin of the CUDA allocator records."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpu_optimizer.errors import NoGpuError
from gpu_optimizer.layers.module_spans import ModuleSpans, Span
from gpu_optimizer.memory_tracer import MemoryTracer, TraceMode
from gpu_optimizer.snapshots.files import read_snapshot
from gpu_optimizer.types import CATEGORIES, PHASES, Category, Phase

from .recorded_allocator import MIB, RecordedAllocator


class Block(nn.Module):
    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.widen = nn.Linear(64, 256)
        self.act = nn.Tanh()
        self.narrow = nn.Linear(256, 64)
        self.checkpointed = checkpointed

    def inner(self, x):
        return self.narrow(self.act(self.widen(x)))

    def forward(self, x):
        inner = (
            checkpoint(self.inner, x, use_reentrant=False) if self.checkpointed else self.inner(x)
        )
        return x + inner


class Net(nn.Module):
    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.blocks = nn.Sequential(Block(checkpointed), Block(checkpointed))
        self.head = nn.Linear(64, 10)
        self.register_buffer("scale", torch.ones(16))

    def forward(self, x):
        return self.head(self.blocks(self.first(x)))


def train(model, optimizer, n_steps=2):
    for _ in range(n_steps):
        optimizer.zero_grad(set_to_none=True)
        model(torch.ones(128, 32)).square().mean().backward()
        optimizer.step()


def traced(mode="history", checkpointed=False, n_steps=2, hide=0):
    model = Net(checkpointed)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    allocator = RecordedAllocator((*model.parameters(), *model.buffers()), hide)
    with allocator, MemoryTracer(model, optimizer, mode, allocator) as tracer:
        train(model, optimizer, n_steps)
    return model, tracer.trace


def totals(trace, category, phase=None):
    timeline = trace.timeline
    chosen = (timeline.size_bytes > 0) & (timeline.category == CATEGORIES.index(category))
    if phase is not None:
        chosen &= timeline.phase == PHASES.index(phase)
    names = [timeline.modules[index] for index in timeline.module[chosen]]
    return list(zip(names, timeline.size_bytes[chosen].tolist(), strict=True))


def own_parameter_bytes(model):
    return {
        name: sum(p.numel() * 4 for p in module.parameters(recurse=False))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("mode", list(TraceMode))
def test_every_byte_is_accounted_for(mode):
    _, trace = traced(mode)
    assert trace.missed_bytes == 0
    live = int(trace.timeline.size_bytes.sum())
    assert live == trace.after.allocated_bytes
    peak = int(np.cumsum(trace.timeline.size_bytes)[trace.n_before :].max())
    assert peak == trace.allocated_peak_bytes
    assert trace.reserved_bytes[-1] == sum(segment.size_bytes for segment in trace.segments)


def test_a_missed_allocation_is_noticed():
    _, trace = traced(hide=1)
    assert trace.missed_bytes > 0


@pytest.mark.parametrize("mode", list(TraceMode))
def test_parameters_gradients_and_state_belong_to_their_modules(mode):
    model, trace = traced(mode)
    own = own_parameter_bytes(model)
    parameters = totals(trace, Category.PARAMETER)
    assert sum(size for _, size in parameters) == sum(own.values()) + 16 * 4
    gradients = totals(trace, Category.GRADIENT)
    for name, size in own.items():
        assert sum(each for module, each in gradients if module == name) == 2 * size
    state = sum(size for _, size in totals(trace, Category.OPTIMIZER_STATE))
    # Two moments and a step counter for each parameter.
    assert state == 2 * sum(own.values()) + 4 * len(list(model.parameters()))
    assert sum(size for _, size in totals(trace, Category.INPUT)) == 2 * 128 * 32 * 4


def test_activations_are_what_each_module_left_for_the_backward_pass():
    _, trace = traced(n_steps=1)
    kept = dict(totals(trace, Category.ACTIVATION, Phase.FORWARD))
    assert kept["blocks.0.act"] == 128 * 256 * 4
    assert kept["blocks.1.act"] == 128 * 256 * 4
    assert kept["first"] == 128 * 64 * 4
    # Tanh keeps its result, so nobody keeps what comes into it.
    assert "blocks.0.widen" not in kept
    every = totals(trace, Category.ACTIVATION, Phase.FORWARD)
    assert trace.layers.activation_bytes == sum(size for _, size in every)


def test_recomputed_activations_belong_to_the_backward_pass():
    _, trace = traced(checkpointed=True, n_steps=1)
    in_forward = dict(totals(trace, Category.ACTIVATION, Phase.FORWARD))
    in_backward = dict(totals(trace, Category.ACTIVATION, Phase.BACKWARD))
    assert "blocks.0.act" not in in_forward
    assert in_backward["blocks.0.act"] == 128 * 256 * 4


def test_backward_is_told_by_block_or_by_leaf():
    def temporaries(mode):
        _, trace = traced(mode, n_steps=1)
        return {name for name, _ in totals(trace, Category.WORKSPACE, Phase.BACKWARD)}

    assert "blocks.1" in temporaries("history")
    assert "blocks.1.act" not in temporaries("history")
    assert "blocks.1.act" in temporaries("exact")


def test_phases_come_in_order():
    _, trace = traced(n_steps=2)
    phases = trace.timeline.phase[trace.n_before :]
    changes = [
        PHASES[phases[0]],
        *(PHASES[after] for before, after in pairwise(phases) if before != after),
    ]
    assert changes == [
        Phase.SETUP, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER,
        Phase.SETUP, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER,
    ]  # fmt: skip


def test_inference_leaves_its_result():
    model = Net().eval()
    allocator = RecordedAllocator((*model.parameters(), *model.buffers()))
    with allocator, MemoryTracer(model, history=allocator) as tracer, torch.no_grad():
        result = model(torch.ones(128, 32))
    assert result.shape == (128, 10)
    assert totals(tracer.trace, Category.ACTIVATION) == []
    assert (("head", 128 * 10 * 4)) in totals(tracer.trace, Category.OTHER)


def run_out(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_an_exception_in_the_middle_leaves_a_trace_and_a_clean_model():
    model = Net()
    allocator = RecordedAllocator((*model.parameters(), *model.buffers()))
    before = dict(model.blocks[1].__dict__)

    handle = model.blocks[1].act.register_forward_pre_hook(run_out)
    tracer = MemoryTracer(model, history=allocator)
    with allocator, pytest.raises(torch.OutOfMemoryError), tracer:
        model(torch.ones(128, 32))
    handle.remove()
    assert tracer.trace.missed_bytes == 0
    assert not allocator.running
    assert model.blocks[1].__dict__ == before
    assert "forward" not in vars(model.blocks[0].act)


def test_spans_know_where_memory_ran_out():
    model = Net()
    labels = []
    with ModuleSpans(model, labels.append) as spans:
        model.blocks[1].act.register_forward_pre_hook(run_out)
        with pytest.raises(torch.OutOfMemoryError):
            model(torch.ones(128, 32))
        place = spans.span(spans.failed_at)
    assert (spans.modules[place.module], place.phase) == ("blocks.1", Phase.FORWARD)
    assert labels[-2:] == ["f0", ""]
    assert {spans.span(label) for label in ("epoch 3", "b900", "x")} == {Span(0, Phase.SETUP)}


def test_compiled_modules_are_left_alone():
    model = Net()
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    model.head.compile(backend="eager")
    allocator = RecordedAllocator((*model.parameters(), *model.buffers()))
    with allocator, MemoryTracer(model, history=allocator) as tracer:
        assert "forward" in vars(model.blocks[1].act)
        assert "forward" not in vars(model.head)
        assert "forward" not in vars(model.blocks[0]._orig_mod.act)
    assert tracer.trace.missed_bytes == 0


def test_exports(tmp_path):
    _, trace = traced(n_steps=1)
    trace.to_html(tmp_path / "trace.html", "A </script><b> run")
    page = (tmp_path / "trace.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2
    assert "%DATA%" not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["events"] == len(trace.timeline) - trace.n_before
    live = sum(
        size
        for size, dies in zip(data["size"], data["dies"], strict=True)
        if dies >= data["events"]
    )
    assert live == trace.after.allocated_bytes
    trace.to_json(tmp_path / "trace.json")
    columns = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    assert columns["size_bytes"] == trace.timeline.size_bytes.tolist()
    for name in ("trace.pickle", "snapshot.json"):
        trace.to_snapshot(tmp_path / name)
        again = read_snapshot(tmp_path / name)
        assert again.timeline.size_bytes.tolist() == trace.timeline.size_bytes.tolist()
        assert again.timeline.category.tolist() == trace.timeline.category.tolist()


def test_without_a_gpu_one_sentence_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(NoGpuError, match="needs an NVIDIA GPU"):
        MemoryTracer(Net())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("mode", list(TraceMode))
def test_on_a_gpu(mode):
    model = Net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

    def steps():
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            model(torch.ones(128, 32, device="cuda")).square().mean().backward()
            optimizer.step()

    steps()
    with MemoryTracer(model, optimizer, mode) as tracer:
        steps()
    trace = tracer.trace
    assert trace.missed_bytes == 0
    own = own_parameter_bytes(model)
    gradients = totals(trace, Category.GRADIENT)
    for name, size in own.items():
        # The gradients of the steps before are among them.
        assert sum(each for module, each in gradients if module == name) == 3 * size
    assert dict(totals(trace, Category.ACTIVATION, Phase.FORWARD))["blocks.0.act"] == 128 * 256 * 4
    assert trace.device_peak_bytes > 100 * MIB
    assert trace.layers.peak_bytes <= trace.allocated_peak_bytes
