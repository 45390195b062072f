"""Explanations of running out of memory; runs on the CPU, recorded by the allocator's twin."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gpu_optimizer.errors import NoGpuError
from gpu_optimizer.oom_report import oom_report
from gpu_optimizer.remedies.out_of_memory import FixKind, Situation, rank_fixes, repeated_blocks
from gpu_optimizer.types import Category, LayerMemory, Phase

from .recorded_allocator import MIB, RecordedAllocator


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(64, 256)
        self.act = nn.Tanh()
        self.narrow = nn.Linear(256, 64)
        self.fails = False

    def forward(self, x):
        x = self.act(self.widen(x))
        if self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return self.narrow(x)


def make():
    model = nn.Sequential(*(Block() for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters())
    return model, optimizer, RecordedAllocator(tuple(model.parameters()))


def step(model, optimizer):
    optimizer.zero_grad(set_to_none=True)
    model(torch.ones(4096, 64)).square().mean().backward()
    optimizer.step()


def run_out(watch, allocator, model, optimizer):
    with watch:
        step(model, optimizer)
        model[3].fails = True
        allocator.oom_bytes = 20 * MIB
        step(model, optimizer)


def test_the_report_names_layer_request_holders_and_fixes():
    model, optimizer, allocator = make()
    watch = oom_report(model, optimizer, allocator)
    with allocator, pytest.raises(torch.OutOfMemoryError) as caught:
        run_out(watch, allocator, model, optimizer)
    report = watch.report
    assert caught.value.oom_report is report
    assert (report.module, report.phase) == ("3", Phase.FORWARD)
    assert report.requested_bytes == 20 * MIB
    assert report.unallocated_bytes == report.largest_free_bytes == 2 * MIB
    assert report.outside_bytes == 900 * MIB
    n_parameter_bytes = sum(p.numel() * 4 for p in model.parameters())
    held = report.by_category_bytes
    assert held[Category.PARAMETER] == n_parameter_bytes
    assert held[Category.OPTIMIZER_STATE] >= 2 * n_parameter_bytes
    # Of the first three blocks what Tanh and the next layer keep; of the last what Tanh made.
    assert (
        sum(held.get(key, 0) for key in (Category.ACTIVATION, Category.OTHER, Category.WORKSPACE))
        >= 4 * 4096 * 256 * 4
    )
    assert {holder.module for holder in report.holders} >= {"0.act", "1.act", "2.act"}
    kinds = [fix.kind for fix in report.fixes]
    assert {FixKind.CHECKPOINTING, FixKind.SMALLER_BATCH, FixKind.OFFLOAD, FixKind.SGD} <= {*kinds}
    (note,) = caught.value.__notes__
    assert "Out of memory in 3, forward phase: 20.0 MiB more" in note
    assert not allocator.running


def test_other_errors_and_good_runs_go_through():
    model, optimizer, allocator = make()
    with allocator, oom_report(model, optimizer, allocator) as watch:
        step(model, optimizer)
    assert watch.report is None
    with (
        allocator,
        pytest.raises(KeyError) as caught,
        oom_report(model, history=allocator) as watch,
    ):
        raise KeyError("x")
    assert watch.report is None
    assert not hasattr(caught.value, "__notes__")


def test_without_a_gpu_one_sentence_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(NoGpuError, match="needs an NVIDIA GPU"):
        oom_report(nn.Linear(2, 2))


def layer(name, kind, activation_bytes, *children):
    return LayerMemory(name, kind, 0, 0, activation_bytes, 0, children=children)


LEAF = layer("x", "Linear", 0)
ONE = (layer("one.0", "Block", 300, LEAF), layer("one.1", "Block", 200, LEAF))
TWO = (layer("two.0", "Block", 200, LEAF), layer("two.1", "Block", 200, LEAF))
STAGES = layer(
    "", "Net", 900, layer("one", "Sequential", 500, *ONE), layer("two", "Sequential", 400, *TWO)
)


def test_blocks_are_found_inside_of_containers():
    assert [block.name for block in repeated_blocks(STAGES)] == ["one.0", "one.1", "two.0", "two.1"]


@given(
    sizes=st.fixed_dictionaries({category: st.integers(0, 10**11) for category in Category}),
    missing_bytes=st.integers(1, 10**11),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_no_fix_gives_more_than_there_is(sizes, missing_bytes, flags):
    training, full_precision, expandable = flags
    situation = Situation(
        by_category_bytes=sizes,
        layers=STAGES,
        largest_activation_bytes=sizes[Category.ACTIVATION] // 3,
        unallocated_bytes=7,
        outside_bytes=11,
        missing_bytes=missing_bytes,
        training=training,
        full_precision=full_precision,
        expandable_segments=expandable,
    )
    fixes = rank_fixes(situation)
    assert all(0 < fix.gain_bytes <= max(sum(sizes.values()), 900) + 18 for fix in fixes)
    verdicts = [fix.enough for fix in fixes]
    assert verdicts == sorted(verdicts, reverse=True)
    assert all(fix.enough == (fix.gain_bytes >= missing_bytes) for fix in fixes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu():
    model = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(4))).cuda()

    def grow(watch):
        with watch:
            for power in range(14, 28):
                model(torch.ones(2**power, 4096, device="cuda")).sum().backward()

    watch = oom_report(model)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        grow(watch)
    assert caught.value.oom_report is watch.report
    assert watch.report.requested_bytes > 0
    assert watch.report.by_category_bytes[Category.PARAMETER] == 4 * 4096 * 4097 * 4
    assert watch.report.fixes
    torch.cuda.empty_cache()
