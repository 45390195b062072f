"""A changed step is told from a plain one, and from what kernels do not repeat."""

import pytest
import torch
from torch import nn

from gpu_optimizer.gradient_parity import Parity, compare_steps


class Noisy:
    """A step whose gradients are off a little more in each call, and by an error once changed."""

    def __init__(self, noise=0.0, error=0.0):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.inputs = torch.randn(8, 4)
        self.noises = [0.0, noise, -noise, noise, noise]
        self.error = error
        self.is_changed = False
        self.n_steps = 0

    def step(self):
        error = self.error if self.is_changed else 0.0
        factor = 1.0 + self.noises[self.n_steps] + error
        self.n_steps += 1
        (self.model(self.inputs).square().sum() + self.model[1].weight.sum() * factor).backward()

    def change(self):
        self.is_changed = True

    def compared(self):
        return compare_steps(self.model, self.step, self.change)


def test_the_same_bits_are_asked_for_where_plain_steps_have_them():
    assert Noisy().compared().bit_equal
    slightly = Noisy(error=1e-5).compared()
    assert slightly.noise_difference == 0.0
    assert not slightly.agrees


def test_what_plain_steps_do_not_repeat_is_allowed_and_no_more():
    noisy = Noisy(noise=1e-4).compared()
    assert noisy.noise_difference > 0.0
    assert not noisy.bit_equal
    assert noisy.agrees
    assert not Noisy(noise=1e-4, error=1e-2).compared().agrees


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_what_is_not_finite_never_agrees(error):
    assert not Noisy(error=error).compared().agrees
    assert not Parity(float("inf"), float("inf"), buffers_equal=True).agrees


def test_rounding_in_a_gradient_that_is_zero_does_not_hide_errors_elsewhere():
    """The bias before a normalization has no gradient but for rounding."""
    case = Noisy(error=1e-2)
    plain = case.step

    def step():
        plain()
        case.model[0].bias.grad += 1e-7 * torch.randn(4, generator=noise)

    noise = torch.Generator().manual_seed(0)
    case.step = step
    parity = case.compared()
    assert 0.0 < parity.noise_difference < 1e-3
    assert not parity.agrees


def test_the_model_is_left_as_it_was():
    case = Noisy()
    before = [each.clone() for each in case.model.buffers()]
    gradient = torch.ones_like(case.model[0].weight)
    case.model[0].weight.grad = gradient
    state = torch.get_rng_state()
    case.compared()
    assert case.model[0].weight.grad is gradient
    assert case.model[0].bias.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    after = case.model.buffers()
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
