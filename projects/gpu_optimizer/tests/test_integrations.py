"""Plans in trainers of other libraries, and in tracking tools."""

import struct

import numpy as np
import pytest
import torch
from torch import nn

from gpu_optimizer.integrations.tracking import (
    allocated_curve,
    log_to_tensorboard,
    log_to_wandb,
    plan_figures,
)
from gpu_optimizer.plans import Accumulation, CheckpointRegion, InvalidPlanError, Precision

from .test_applying import make_plan
from .timelines import timeline

PLAN = make_plan(CheckpointRegion("block", "products"), Accumulation(2, 3))
DATA = torch.arange(96.0).view(12, 8).sin()


def make_block():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 8))


@pytest.mark.filterwarnings("ignore")
def test_lightning_applies_and_takes_away(tmp_path):
    pytest.importorskip("lightning")
    from lightning.pytorch import LightningModule, Trainer

    from gpu_optimizer.integrations.lightning_callback import PlanCallback, trainer_options

    class Learner(LightningModule):
        def __init__(self):
            super().__init__()
            self.block = make_block()
            self.seen = []

        def training_step(self, batch):
            self.seen.append("forward" in vars(self.block))
            return self.block(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(callbacks, **options):
        learner = Learner()
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", logger=False, callbacks=callbacks,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, **options,
        )  # fmt: skip
        trainer.fit(learner, torch.utils.data.DataLoader(DATA, batch_size=2))
        return learner

    options = trainer_options(PLAN)
    assert options == {"accumulate_grad_batches": 3}
    plain, planned = fit([], **options), fit([PlanCallback(PLAN)], **options)
    assert all(planned.seen)
    assert not any(plain.seen)
    assert "forward" not in vars(planned.block)
    for one, two in zip(plain.parameters(), planned.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(InvalidPlanError, match="accumulate_grad_batches=3"):
        fit([PlanCallback(PLAN)])


@pytest.mark.filterwarnings("ignore")
def test_transformers_trainer_applies_and_takes_away(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    from gpu_optimizer.integrations.transformers_callback import (
        PlanTrainerCallback,
        training_options,
    )

    class Learner(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = make_block()
            self.seen = []

        def forward(self, x):
            self.seen.append("forward" in vars(self.block))
            return {"loss": self.block(x).square().mean()}

    def fit(callbacks, **options):
        learner = Learner()
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True,
            save_strategy="no", disable_tqdm=True, remove_unused_columns=False, **options,
        )  # fmt: skip
        Trainer(
            learner, arguments, train_dataset=[{"x": row} for row in DATA], callbacks=callbacks
        ).train()
        return learner

    options = training_options(PLAN)
    assert options == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    assert training_options(make_plan(Precision("bf16"))) == {"bf16": True}
    plain, planned = fit([], **options), fit([PlanTrainerCallback(PLAN)], **options)
    assert all(planned.seen)
    assert "forward" not in vars(planned.block)
    for one, two in zip(plain.parameters(), planned.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(InvalidPlanError, match="gradient_accumulation_steps=3"):
        fit([PlanTrainerCallback(PLAN)], per_device_train_batch_size=2)


def test_curves_keep_peaks():
    rows = [(number, 100) for number in range(2500)] + [(number, -100) for number in range(2500)]
    points = list(allocated_curve(timeline(rows)))
    assert len(points) <= 1000
    assert max(size for _, size in points) == 250_000
    assert np.all(np.diff([event for event, _ in points]) > 0)


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_run_holds_the_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_to_tensorboard(tmp_path, PLAN, timeline([(0, 512), (1, 1024), (0, -512)]))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name, value in plan_figures(PLAN).items():
        assert events.Scalars(name)[0].value == value
    assert [each.value for each in events.Scalars("memory/allocated_bytes")] == [512, 1536, 1024]


@pytest.mark.filterwarnings("ignore")
def test_wandb_run_is_written_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = log_to_wandb(tmp_path, "memory", PLAN, timeline([(0, 512), (0, -512)]))
    (written,) = run.glob("*.wandb")
    magic = written.read_bytes()[:4]
    assert struct.unpack("4s", magic)[0] == b":W&B"
    assert run.name.startswith("offline-run-")
