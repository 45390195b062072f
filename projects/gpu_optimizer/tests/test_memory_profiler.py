"""Layer tables of modules that no registry knows."""

import io
import json
import threading

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional

from gpu_optimizer.errors import InvalidModelError, NoGpuError, UnknownNameError
from gpu_optimizer.layers.module_spans import Span
from gpu_optimizer.layers.times import sum_up, with_times
from gpu_optimizer.layers.views import own_layers
from gpu_optimizer.memory_profiler import How, profile
from gpu_optimizer.reports.layer_tables import flat_table, tree_table
from gpu_optimizer.types import Mode, Phase


class Tied(nn.Module):
    """Takes a dict, shares a parameter, holds a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.mix = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))
        self.out = nn.Linear(32, 100, bias=False)
        self.out.weight = self.embed.weight
        self.constant = torch.arange(32.0)

    def forward(self, tokens, scale=1.0):
        return self.out(self.mix(self.embed(tokens)) + self.constant * scale)


TOKENS = torch.zeros(4, 16, dtype=torch.int64)
PARAMETER_BYTES = 4 * (100 * 32 + 32 * 128 + 128 + 128 * 32 + 32)


def bytes_of(layer):
    return {each.name: each for each in own_layers(layer)}


def check_sums(result):
    rows = list(own_layers(result.layers))
    totals = result.totals
    assert sum(row.parameter_bytes for row in rows) == pytest.approx(
        totals.parameter_bytes, rel=0.01
    )
    assert sum(row.gradient_bytes for row in rows) == pytest.approx(totals.gradient_bytes, rel=0.01)
    kept = sum(row.activation_bytes for row in rows)
    assert kept == pytest.approx(totals.activation_bytes, rel=0.01)
    assert max(row.peak_bytes for row in rows) == pytest.approx(totals.peak_bytes, rel=0.01)


def test_an_estimate_of_any_module_leaves_it_alone():
    model = Tied().eval()
    weight = model.embed.weight
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    result = profile(model, {"tokens": TOKENS, "scale": 2.0}, optimizer=optimizer)
    assert result.how is How.ESTIMATE
    check_sums(result)
    assert result.totals.parameter_bytes == PARAMETER_BYTES
    assert result.totals.gradient_bytes == PARAMETER_BYTES
    state = result.totals.optimizer_state_bytes
    assert 2 * PARAMETER_BYTES <= state <= 2 * PARAMETER_BYTES + 8 * 5
    # GELU keeps what comes into it, the layer after it what comes out.
    layers = bytes_of(result.layers)
    assert layers["mix.0"].activation_bytes == 4 * 16 * 128 * 4
    assert layers["mix.1"].activation_bytes == 4 * 16 * 128 * 4
    assert model.embed.weight is weight
    assert model.out.weight is weight
    assert torch.equal(weight, before)
    assert weight.grad is None
    assert not model.training
    assert not optimizer.state


def test_inference_keeps_nothing():
    result = profile(Tied(), (TOKENS,), Mode.INFER)
    check_sums(result)
    assert result.totals.activation_bytes == result.totals.gradient_bytes == 0
    assert result.totals.time_s is None


def test_a_loss_may_bring_its_labels_along():
    labels = torch.zeros(4 * 16, dtype=torch.int64)
    plain = profile(Tied(), TOKENS)
    scored = profile(
        Tied(), TOKENS, loss=lambda out: functional.cross_entropy(out.flatten(0, 1), labels)
    )
    check_sums(scored)
    # Cross entropy keeps the log-probabilities.
    assert scored.totals.activation_bytes > plain.totals.activation_bytes + 4 * 16 * 100 * 4 - 1024


def test_autocast_around_the_call_counts():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(4)))
    x = torch.zeros(8192, 64)
    full = profile(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        half = profile(model, x)
    assert half.totals.activation_bytes < full.totals.activation_bytes


def test_models_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    result = profile(models.resnet18(weights=None), torch.zeros(2, 3, 64, 64))
    check_sums(result)
    assert result.totals.parameter_bytes == pytest.approx(4 * 11.69e6, rel=0.01)
    flat = bytes_of(result.layers)
    assert flat["layer4.1.conv2"].parameter_bytes == 4 * 512 * 512 * 9
    assert len(json.loads(result.to_json())["layers"]["children"]) == 10


def test_tables():
    result = profile(Tied(), TOKENS)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tree_table(result.layers))
    console.print(flat_table(result.layers))
    text = console.export_text()
    assert "mix.0" in text
    assert "GELU" in text


def test_what_cannot_be_done_is_said():
    with pytest.raises(UnknownNameError):
        profile(Tied(), TOKENS, "trian")
    model = Tied()
    with pytest.raises(UnknownNameError):
        profile(model, TOKENS, optimizer=torch.optim.Adagrad(model.parameters()))
    model.lock = threading.Lock()
    with pytest.raises(InvalidModelError, match="cannot be copied"):
        profile(model, TOKENS)
    if not torch.cuda.is_available():
        with pytest.raises(NoGpuError, match="needs an NVIDIA GPU"):
            profile(Tied(), TOKENS, how="measure")


def test_times_are_those_between_marks():
    layers = profile(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.zeros(2, 8)).layers
    spans = [
        Span(0, Phase.SETUP),
        Span(0, Phase.FORWARD), Span(1, Phase.FORWARD), Span(2, Phase.FORWARD),
        Span(2, Phase.BACKWARD), Span(1, Phase.BACKWARD), Span(0, Phase.OPTIMIZER),
    ]  # fmt: skip
    own_s = sum_up(spans, [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0], ["", "0", "1"])
    timed = with_times(layers, own_s)
    assert timed.time_s == 15.0
    assert [child.time_s for child in timed.children] == [7.0, 7.0]
    assert [row.time_s for row in own_layers(timed)] == [1.0, 7.0, 7.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_measured_and_estimated_on_a_gpu():
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18(weights=None).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    x = torch.zeros(16, 3, 128, 128)
    measured = profile(model, x, optimizer=optimizer)
    assert measured.how is How.MEASURE
    check_sums(measured)
    assert measured.totals.time_s > 0
    estimated = profile(model, x, optimizer=optimizer, how="estimate")
    for field in ("parameter_bytes", "gradient_bytes", "activation_bytes"):
        assert getattr(measured.totals, field) == pytest.approx(
            getattr(estimated.totals, field), rel=0.03
        )
