"""Whether a changed training step has the gradients and buffers of the plain one.

What changes no arithmetic (offloading, checkpointing) has to give the same bits where the plain
step gives the same bits twice. Some kernels add in any order (atomic additions in attention's and
the embedding's backward pass, in some convolutions); there the changed step may differ from a plain
one as far as plain ones differ from each other, with a factor for how little a few of them tell.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

NOISE_FACTOR: Final = 4.0
# Plain steps that differ by more than this say nothing about the changed one.
_MOST_ALLOWED: Final = 0.25
_N_PLAIN_STEPS: Final = 3
# Gradients far smaller than the model's largest, as that of a bias before a normalization, which is
# zero but for rounding, are measured against this part of it.
_LEAST_SCALE_RATIO: Final = 1e-3
# Compared at once: differences are taken in double precision.
_N_COMPARED: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Parity:
    """A changed step and plain ones from the same state, compared."""

    gradient_difference: float
    """Largest of any element, as part of its tensor's largest; infinite if one lacks a gradient or
    is not a number where the other is."""
    noise_difference: float
    """The same between plain steps: what the kernels themselves do not repeat."""
    buffers_equal: bool
    """To the last bit."""

    @property
    def bit_equal(self) -> bool:
        """Whether nothing differs at all."""
        return self.gradient_difference == 0.0 and self.buffers_equal

    @property
    def allowed_difference(self) -> float:
        """Return how far gradients may differ: not at all where plain steps do not."""
        return min(NOISE_FACTOR * self.noise_difference, _MOST_ALLOWED)

    @property
    def agrees(self) -> bool:
        """Whether nothing differs by more than plain steps may."""
        allowed = self.allowed_difference
        return self.gradient_difference <= allowed and (self.buffers_equal or allowed > 0.0)


class PlainGradients:
    """Gradients of a plain step, kept on the host so that they take no memory of the device.

    Parameters
    ----------
    model
        Has them now.
    """

    def __init__(self, model: nn.Module) -> None:
        gradients = [each.grad for each in model.parameters()]
        largest = [0.0 if each is None else _largest(each) for each in gradients]
        least = _LEAST_SCALE_RATIO * max(largest, default=0.0)
        self._scales = [max(each, least) for each in largest]
        self._kept = [None if each is None else each.to("cpu", copy=True) for each in gradients]

    def difference(self, model: nn.Module) -> float:
        """Return by how much the model's gradients differ now, see `Parity`."""
        worst = 0.0
        for left, parameter, scale in zip(
            self._kept, model.parameters(), self._scales, strict=True
        ):
            right = parameter.grad
            if left is None or right is None:
                if left is not right:
                    return float("inf")
            else:
                worst = max(worst, _difference(left.to(right.device), right, scale))
        return worst


def compare_steps(
    model: nn.Module, step: Callable[[], object], change: Callable[[], object], n_warm_up: int = 1
) -> Parity:
    """Run plain steps, then changed ones, from the same gradients, buffers and random state.

    Gradients, buffers and random state are afterwards as they were.

    Parameters
    ----------
    model
        Plain now.
    step
        Forward and backward pass of one batch, without the optimizer.
    change
        Puts the change into effect.
    n_warm_up
        How many changed steps are run before the one that is compared.
    """
    with restored(model) as restart:
        restart()
        step()
        plain, buffers = PlainGradients(model), _buffers(model)
        noise = 0.0
        for _ in range(_N_PLAIN_STEPS - 1):
            restart()
            step()
            noise = max(noise, plain.difference(model))
        change()
        for _ in range(n_warm_up + 1):
            restart()
            step()
        return Parity(
            gradient_difference=plain.difference(model),
            noise_difference=noise,
            buffers_equal=all(
                torch.equal(one, two) for one, two in zip(buffers, _buffers(model), strict=True)
            ),
        )


@contextmanager
def restored(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Give a function that puts buffers, gradients and random state back; it is called at the end.

    On every call but the last gradients are None.
    """
    buffers = [(each, each.clone()) for each in model.buffers()]
    gradients = [(each, each.grad) for each in model.parameters()]
    devices = sorted({each.get_device() for each in model.parameters() if each.is_cuda})
    random = torch.get_rng_state()
    gpu_random = [torch.cuda.get_rng_state(device) for device in devices]

    def restart() -> None:
        with torch.no_grad():
            for buffer, content in buffers:
                buffer.copy_(content)
        for parameter, _ in gradients:
            parameter.grad = None
        torch.set_rng_state(random)
        for device, state in zip(devices, gpu_random, strict=True):
            torch.cuda.set_rng_state(state, device)

    try:
        yield restart
    finally:
        restart()
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _buffers(model: nn.Module) -> Sequence[Tensor]:
    return [each.clone() for each in model.buffers()]


def _largest(gradient: Tensor) -> float:
    return float(gradient.detach().abs().max()) if gradient.numel() else 0.0


def _difference(one: Tensor, two: Tensor, scale: float) -> float:
    """Return the largest difference of two tensors, in parts of a scale."""
    if torch.equal(one, two):
        return 0.0
    worst = 0.0
    flat = one.flatten(), two.flatten()
    pieces = zip(*(torch.split(each, _N_COMPARED) for each in flat), strict=True)
    for left, right in pieces:
        apart = (left.double() - right.double()).abs()
        # A comparison with NaN is false, so NaN has to be looked for.
        worst = max(worst, float(apart.nan_to_num(nan=float("inf")).max()))
    return worst / max(scale, torch.finfo(one.dtype).tiny)
