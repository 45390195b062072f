"""A plan in a user's own loop."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gpu_optimizer
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.plan_files import write_plan
from gpu_optimizer.plans import (
    Accumulation,
    Budgeted,
    CheckpointRegion,
    Exactness,
    InvalidPlanError,
    Offload,
    OptimizerState,
    PeakBytes,
    Plan,
    Precision,
    StepEffect,
)

BATCH = {"x": torch.arange(48.0).view(6, 8).sin(), "y": torch.tensor([0, 1, 2, 0, 1, 2])}


def make_plan(*steps):
    peak = PeakBytes(1, 1, 1)
    return Plan(
        workload=Workload("resnet50"),
        budget_bytes=1,
        budget_of=Budgeted.ALLOCATED,
        steps=steps,
        base_peak=peak,
        predicted_peak=peak,
        base_s=1.0,
        slowdown_ratio=0.0,
        exactness=Exactness.NUMERIC,
        explanation=tuple(StepEffect(0, 0.0, Exactness.NUMERIC, "") for _ in steps),
    )


def make_model():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 8))
    return nn.Sequential(block, nn.Linear(8, 3))


def train(plan):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    applied = gpu_optimizer.apply(plan, model, optimizer)
    losses = [
        applied.train_step(
            BATCH, lambda part: functional.cross_entropy(model(part["x"]), part["y"])
        )
        for _ in range(3)
    ]
    assert all(each.grad is None for each in model.parameters())
    return losses, list(model.parameters()), applied


def test_exact_steps_change_nothing():
    losses, parameters, _ = train(make_plan())
    plan = make_plan(
        CheckpointRegion("0", "products"), Offload(("1",), 0), OptimizerState("offload")
    )
    found, moved, applied = train(plan)
    assert found == losses
    assert all(torch.equal(one, two) for one, two in zip(parameters, moved, strict=True))
    applied.undo()
    assert all("forward" not in vars(module) for module in applied.model.modules())


def test_parts_of_a_batch_give_the_same_gradients():
    losses, parameters, _ = train(make_plan())
    found, moved, _ = train(make_plan(Accumulation(2, 3), CheckpointRegion("0")))
    torch.testing.assert_close(found, losses)
    torch.testing.assert_close(moved, parameters, rtol=1e-3, atol=1e-5)


def test_autocast_comes_from_the_plan(tmp_path):
    path = tmp_path / "plan.yaml"
    write_plan(make_plan(Precision("bf16")), path)
    model = make_model()
    applied = gpu_optimizer.apply(path, model)
    with applied.autocast():
        loss = model(BATCH["x"]).sum()
    assert loss.dtype is torch.bfloat16
    applied.backward(loss)
    with pytest.raises(InvalidPlanError, match="no optimizer"):
        applied.step()


def test_a_plan_for_another_model_leaves_this_one_alone():
    model = make_model()
    with pytest.raises(InvalidPlanError, match="no module"):
        gpu_optimizer.apply(make_plan(CheckpointRegion("0"), Offload(("9",))), model)
    with pytest.raises(InvalidPlanError, match="needs the optimizer"):
        gpu_optimizer.apply(make_plan(CheckpointRegion("0"), OptimizerState("offload")), model)
    assert all("forward" not in vars(module) for module in model.modules())
