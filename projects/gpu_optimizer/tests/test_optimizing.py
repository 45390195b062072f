"""From a model and a budget to a plan, its answer in words and numbers, and its check."""

import json
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

import gpu_optimizer
from gpu_optimizer import optimizing
from gpu_optimizer.budgets import InvalidBudgetError, parse_budget
from gpu_optimizer.cli import app
from gpu_optimizer.cli.exits import CANNOT_FIT
from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.optimizing import PREDICTED, Wishes
from gpu_optimizer.own_modules import own_module
from gpu_optimizer.plan_answers import answer_dict
from gpu_optimizer.plan_checks import Bench, PlanCheck, check_plan
from gpu_optimizer.plan_files import read_plan
from gpu_optimizer.plans import (
    Accumulation,
    Budgeted,
    CheckpointRegion,
    Exactness,
    PeakBytes,
    Plan,
    Precision,
)
from gpu_optimizer.reports.pareto import ParetoPoint, draw_pareto

MIB = 1 << 20
GIB = 1 << 30
SMALL_BERT = {
    "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 256, "vocab_size": 500, "max_position_embeddings": 128,
}  # fmt: skip


def loss_of(model, batch):
    return functional.cross_entropy(model(batch["x"]), batch["y"])


def make_model():
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 64))
        for _ in range(4)
    ]
    return nn.Sequential(*blocks, nn.Linear(64, 10))


def make_batch(n_items):
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(n_items, 64, generator=generator),
        "y": torch.randint(10, (n_items,), generator=generator),
    }


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Let the tests say the same on every machine."""
    monkeypatch.setattr(optimizing, "this_gpu", lambda: None)


@pytest.mark.parametrize(
    ("written", "n_bytes"),
    [
        ("7.2GiB", int(7.2 * GIB)), ("7.2 gib", int(7.2 * GIB)), ("8GB", 8_000_000_000),
        ("512 MiB", 512 * MIB), ("90%", int(0.9 * 16 * GIB)), ("1000", 1000), (1000, 1000),
    ],
)  # fmt: skip
def test_budgets_are_read_as_people_write_them(written, n_bytes):
    assert parse_budget(written, 16 * GIB) == n_bytes


@given(st.text(max_size=50))
def test_other_texts_are_no_budget(written):
    with suppress(InvalidBudgetError):
        assert parse_budget(written, GIB) > 0


@pytest.mark.parametrize("written", ["", "lots", "-1GiB", "0", "0%", "nan", "9" * 41, 0, -5])
def test_budgets_that_are_none_are_refused(written):
    with pytest.raises(InvalidBudgetError):
        parse_budget(written, GIB)


def test_an_own_module_is_planned_and_the_plan_applied():
    model, batch = make_model(), make_batch(4096)
    stages = []
    before = [each.clone() for each in model.parameters()]
    found = gpu_optimizer.optimize(
        model,
        loss_of,
        "100MiB",
        inputs=batch,
        wishes=Wishes(budget_of=Budgeted.ALLOCATED, exactness=Exactness.BIT_EQUAL, frontier=True),
        report=stages.append,
    )
    assert found.fits
    assert found.note == PREDICTED
    assert found.plan.predicted_peak.allocated <= 100 * MIB < found.base.predicted_peak.allocated
    assert stages[0].startswith("planning, recording 1")
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    slower = [trade.slowdown_ratio for trade in found.trades]
    assert slower == sorted(slower)
    document = json.loads(json.dumps(answer_dict(found), allow_nan=False))
    assert document["fits"]
    assert document["plan"]["steps"]
    assert len(document["frontier"]) == len(found.trades)

    twin = make_model()
    losses = []
    for each, optimized in ((model, True), (twin, False)):
        optimizer = torch.optim.AdamW(each.parameters())
        if optimized:
            applied = found.apply(each, optimizer)
            small = make_batch(8)
            losses.append(applied.train_step(small, lambda part: loss_of(model, part)).item())
        else:
            loss = loss_of(each, make_batch(8))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[0] == losses[1]
    assert all(
        torch.equal(*pair) for pair in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_what_cannot_fit_is_an_answer_that_cannot_be_applied():
    model = make_model()
    wishes = Wishes(
        budget_of=Budgeted.ALLOCATED, techniques=frozenset({"checkpoint"}), verify=False
    )
    found = gpu_optimizer.optimize(model, loss_of, "1MiB", inputs=make_batch(512), wishes=wishes)
    assert not found.fits
    assert answer_dict(found)["cannot_fit"]["smallest_bytes"] > MIB
    with pytest.raises(InvalidModelError, match="cannot fit"):
        found.apply(model)


def test_a_batch_without_tensors_and_a_step_for_a_name_are_refused():
    with pytest.raises(InvalidModelError, match="inputs"):
        gpu_optimizer.optimize(make_model(), loss_of, "1GiB")
    with pytest.raises(InvalidModelError, match="for modules"):
        gpu_optimizer.optimize("resnet50", loss_of, "1GiB")


class FixedMeter:
    """A device that always says the same."""

    limit_bytes = GIB

    def begin(self):
        pass

    def wait(self):
        pass

    def taken_bytes(self):
        return 0

    def peaks(self):
        return 5, 6

    def is_overfull(self):
        return False

    def release(self):
        return 0


@pytest.mark.parametrize(
    ("steps", "exactness", "is_exact"),
    [
        ((CheckpointRegion("0"), CheckpointRegion("1", "products")), Exactness.BIT_EQUAL, True),
        ((Accumulation(2, 4),), Exactness.NUMERIC, False),
        ((Precision("bf16"),), Exactness.APPROXIMATE, False),
    ],
)
def test_a_plan_is_checked_against_the_plain_run(steps, exactness, is_exact):
    own = own_module(make_model(), loss_of, make_batch(8), None)
    peak = PeakBytes(1, 1, 1)
    plan = Plan(own.workload(), 1, Budgeted.TOTAL, steps, peak, peak, 1.0, 0.0, exactness)
    bench = Bench(torch.device("cpu"), FixedMeter(), "a CPU", lambda: 7)
    check = check_plan(plan, own.real_family(torch.device("cpu")), bench=bench)
    assert check.planned.peak == PeakBytes(5, 6, 13)
    assert check.slowdown_ratio is not None
    assert check.gradients.agrees
    assert (check.gradients.difference_ratio == 0.0) or not is_exact
    assert PlanCheck.from_dict(json.loads(json.dumps(check.as_dict(), allow_nan=False))) == check


def test_a_plan_that_changes_gradients_against_its_word_does_not_agree():
    own = own_module(make_model(), loss_of, make_batch(8), None)
    peak = PeakBytes(1, 1, 1)
    steps = (Precision("bf16"),)
    plan = Plan(own.workload(), 1, Budgeted.TOTAL, steps, peak, peak, 1.0, 0.0, Exactness.BIT_EQUAL)
    bench = Bench(torch.device("cpu"), FixedMeter(), "a CPU", lambda: 7)
    family = own.real_family(torch.device("cpu"))
    assert not check_plan(plan, family, bench=bench).gradients.agrees
    broken = replace(plan, exactness=Exactness.NUMERIC)
    assert not check_plan(broken, family, bench=bench).gradients.agrees


def test_the_command_writes_a_plan_and_draws_the_frontier(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SMALL_BERT))
    out, plot = tmp_path / "plan.yml", tmp_path / "pareto.html"
    arguments = [
        "optimize", str(config), "--batch", "64", "--seq", "128", "--budget-of", "allocated",
        "--gpu", "RTX 3070 Ti", "--exactness", "bit-equal",
    ]  # fmt: skip
    done = CliRunner().invoke(
        app, [*arguments, "--budget", "180MiB", "--out", str(out), "--plot", str(plot)]
    )
    assert done.exit_code == 0, done.output
    assert "The peak is predicted" in done.stdout
    assert "fits a rented" in done.stdout
    plan = read_plan(out)
    assert plan.predicted_peak.allocated <= 180 * MIB
    assert "budget 180.0 MiB" in plot.read_text(encoding="utf-8")
    none = CliRunner().invoke(
        app,
        [*arguments, "--budget", "1MiB", "--without", "offload", "--max-slowdown", "0.01",
         "--no-frontier", "--json"],
    )  # fmt: skip
    assert none.exit_code == CANNOT_FIT, none.output
    assert json.loads(none.stdout)["cannot_fit"]["reason"]
    assert CliRunner().invoke(app, [*arguments, "--budget", "lots"]).exit_code == 2
    assert CliRunner().invoke(app, [*arguments, "--without", "magic"]).exit_code == 2


def test_names_cannot_break_out_of_the_page():
    point = ParetoPoint(GIB, 0.1, "bit-equal", "checkpoint <script>")
    page = draw_pareto([point], "<b>", "&", {"the plan": point}, (GIB, "<i>"))
    assert "checkpoint <script>" not in page
    assert "<h1>&lt;b&gt;</h1>" in page
