"""Plan files: what is written is what is read, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.plan_files import dump_plan, load_plan, read_plan, write_plan
from gpu_optimizer.plans import (
    STEP_TYPES,
    Accumulation,
    Budgeted,
    CheckpointRegion,
    Exactness,
    InvalidPlanError,
    Offload,
    PeakBytes,
    Plan,
    Precision,
    Quantization,
    StepEffect,
    least_exact,
    step_exactness,
)

PEAK = PeakBytes(allocated=10, reserved=20, total=30)


def make_plan(*steps):
    return Plan(
        workload=Workload("resnet50", batch_size=256, optimizer="sgd"),
        budget_bytes=7 << 30,
        budget_of=Budgeted.TOTAL,
        steps=steps,
        base_peak=PEAK,
        predicted_peak=PEAK,
        base_s=0.116,
        slowdown_ratio=0.08,
        exactness=least_exact(*map(step_exactness, steps)),
        explanation=tuple(StepEffect(1, 0.1, Exactness.BIT_EQUAL, "text") for _ in steps),
    )


SOME = make_plan(
    CheckpointRegion("layer1.0", "products", ("conv3",)),
    Offload(("stem", "layer1")),
    Precision("bf16"),
    Accumulation(64, 4),
)


NAMES = st.lists(st.text(max_size=8), max_size=3).map(tuple)
COUNTS = st.integers(1, 1 << 40)
# Fields, not steps: building those would check types, which is random with lists.
FIELDS = {
    "checkpoint": {
        "module": st.text(),
        "keep": st.sampled_from(["nothing", "products"]),
        "recompute": NAMES,
    },
    "offload": {"modules": NAMES, "min_bytes": COUNTS},
    "precision": {
        "autocast": st.sampled_from(["bf16", "fp16", None]),
        "grad_scaler": st.booleans(),
    },
    "accumulation": {"micro_batch": COUNTS, "n_micro_batches": COUNTS},
    "chunked_loss": {"n_chunks": COUNTS},
    "quantization": {
        "scheme": st.sampled_from(["int8", "int4", "nf4", None]),
        "modules": NAMES,
        "group_size": st.none() | COUNTS,
        "kv_cache_bits": st.sampled_from([None, 4, 8]),
    },
    "optimizer_state": {"kind": st.sampled_from(["plain", "8bit", "offload"])},
    "allocator": {"config": st.text()},
}
written_steps = st.lists(
    st.sampled_from(sorted(FIELDS)).flatmap(
        lambda name: st.tuples(st.just(name), st.fixed_dictionaries(FIELDS[name]))
    ),
    max_size=5,
)


@given(written_steps)
def test_what_is_written_is_read(written):
    plan = make_plan(*(STEP_TYPES[name](**fields) for name, fields in written))
    assert load_plan(dump_plan(plan)) == plan
    assert set(FIELDS) == set(STEP_TYPES)


def test_a_file_holds_a_plan(tmp_path):
    path = tmp_path / "plan.yaml"
    write_plan(SOME, path)
    assert read_plan(path) == SOME
    assert "- checkpoint:\n    module: layer1.0\n    keep: products\n" in path.read_text()
    with pytest.raises(InvalidPlanError, match="nowhere"):
        read_plan(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("keep: products", "kept: products", "checkpoint: kept"),
        ("keep: products", "keep: everything", "checkpoint: keep"),
        ("- offload:", "- unload:", "steps.1: unknown kind 'unload'"),
        ("micro_batch: 64", "micro_batch: '64'", "micro_batch"),
        ("version: 1", "version: 2", "version 2"),
        ("version: 1", "", "version: 1"),
        ("optimizer: sgd", "optimizer: lion", "Unknown optimizer"),
        ("base_s: 0.116", "base_s: .nan", "not JSON"),
        ("budget_bytes: 7516192768", "budget_bytes: 2024-01-01", "date"),
        ("base_peak:", "base_peak: &one", "aliases"),
        ("predicted_peak:\n", "predicted_peak: *one\n#", "aliases"),
        ("steps:", "steps: [", "not YAML"),
        ("- text: text", "- ", "explanation"),
    ],
)
def test_anything_else_is_refused(old, new, said):
    text = dump_plan(SOME)
    if said == "aliases":
        text = text.replace("base_peak:", "base_peak: &one", 1)
        old, new = "budget_of: total", "budget_of: *one"
    assert old in text or said == "explanation"
    text = text.replace(old, new, 1)
    if said == "explanation":
        text = dump_plan(SOME).replace(
            "- accumulation:\n    micro_batch: 64\n    n_micro_batches: 4\n", ""
        )
    with pytest.raises(InvalidPlanError, match=said):
        load_plan(text)


def test_exactness_is_that_of_the_worst_step():
    assert SOME.exactness is Exactness.APPROXIMATE
    assert make_plan(CheckpointRegion("a"), Offload(("b",))).exactness is Exactness.BIT_EQUAL
    assert make_plan(CheckpointRegion("a"), Accumulation(1, 2)).exactness is Exactness.NUMERIC
    assert step_exactness(Quantization("int8")) is Exactness.APPROXIMATE
    assert make_plan().exactness is Exactness.BIT_EQUAL
