"""Weights in 8 or 4 bits: found with the least squared error, packed, and read back.

A group of weights is ``code * scale`` (int8) or ``(code - 8) * scale + zero`` (int4), the form in
which PyTorch's tinygemm kernels read it, so that the same codes serve both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gpu_optimizer.quantization.schemes import LayerChoice, can_hold, group_for

_INT8_MAX: Final = 127
_INT4_MAX: Final = 15
_INT4_MIDDLE: Final = 8
_SMALLEST_SCALE: Final = 1e-8
# The widest range a search begins with is that of the group; narrower ones cut outliers off.
_FIRST_RANGES: Final = (1.0, 0.9, 0.8)
_N_ELEMENTS_AT_ONCE: Final = 1 << 22
"""Bounds what searching and reading back take beside the weights: 16 MiB per fp32 copy."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight matrix in few bits."""

    codes: Int[Tensor, "out in"] | UInt8[Tensor, "out half_in"]
    """int8 values; or two 4-bit values to a byte, the first in the upper half."""
    scales: Float[Tensor, "out groups"]
    zeros: Float[Tensor, "out groups"] | None
    """int4 only."""

    @property
    def bits(self) -> Literal[4, 8]:
        """Of a weight."""
        return 8 if self.zeros is None else 4

    @property
    def n_out(self) -> int:
        """Rows."""
        return int(self.codes.shape[0])

    @property
    def n_in(self) -> int:
        """Weights of a row."""
        return int(self.codes.shape[1]) * (8 // self.bits)

    @property
    def n_bytes(self) -> int:
        """Of codes, scales and zeros."""
        tensors = (self.codes, self.scales, self.zeros)
        return sum(each.nbytes for each in tensors if each is not None)

    def rows(self, start: int, stop: int) -> "PackedWeight":
        """Return some rows, as views."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        return PackedWeight(self.codes[start:stop], self.scales[start:stop], zeros)


def pack(
    weight: Float[Tensor, "out in"],
    choice: LayerChoice,
    importance: Float[Tensor, " in"] | None = None,
    n_refinements: int = 6,
) -> PackedWeight:
    """Quantize a weight matrix to int8 or int4.

    int4 searches scale and zero of every group for the least squared error, each input weighed
    by its importance: from several clipped ranges, codes and the straight line through them are
    fitted in turns. The plain range of the group is among what is tried, so the result is never
    worse than that.

    Parameters
    ----------
    weight
        On any device, in any float type.
    choice
        int8 or int4.
    importance
        Mean square of each input over representative text; None: all alike. What AWQ
        (arXiv 2306.00978) calls salient then keeps its value best.
    n_refinements
        Fits per range.

    Raises
    ------
    ValueError
        nf4, which bitsandbytes packs, or int4 with an odd number of inputs.
    """
    n_out, n_in = weight.shape
    group = group_for(n_in, choice.group_size)
    parts: list[tuple[Tensor, Tensor, Tensor | None]]
    if choice.scheme == "int8":
        parts = [_pack_int8(part, group) for part in _row_blocks(weight)]
    elif choice.scheme == "int4" and can_hold(n_in, "int4"):
        weighed = None if importance is None else _normalised(importance).view(1, -1, group)
        parts = [_pack_int4(part, group, weighed, n_refinements) for part in _row_blocks(weight)]
    else:
        raise ValueError(f"{choice.scheme} cannot pack a weight of {n_out} x {n_in}")
    codes, scales, zeros = zip(*parts, strict=True)
    joined = None if zeros[0] is None else torch.cat([each for each in zeros if each is not None])
    return PackedWeight(torch.cat(codes), torch.cat(scales), joined)


def unpack(packed: PackedWeight, dtype: torch.dtype) -> Float[Tensor, "out in"]:
    """Read a weight matrix back."""
    weight = packed.scales.new_empty((packed.n_out, packed.n_in), dtype=dtype)
    for start, stop in row_spans(packed.n_out, packed.n_in):
        weight[start:stop] = _unpack_rows(packed.rows(start, stop), dtype)
    return weight


def row_spans(n_out: int, n_in: int) -> Iterator[tuple[int, int]]:
    """Cut a matrix into spans of rows that are worked on at once."""
    step = max(1, _N_ELEMENTS_AT_ONCE // max(n_in, 1))
    return ((start, min(start + step, n_out)) for start in range(0, n_out, step))


def pack_pairs(codes: UInt8[Tensor, "*rows n"]) -> UInt8[Tensor, "*rows half"]:
    """Put two 4-bit values into a byte, the first into its upper half."""
    return codes[..., ::2] << 4 | codes[..., 1::2]


def unpack_pairs(pairs: UInt8[Tensor, "*rows half"]) -> UInt8[Tensor, "*rows n"]:
    """Undo `pack_pairs`."""
    return torch.stack((pairs >> 4, pairs & 15), dim=-1).flatten(-2)


def _unpack_rows(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    n_groups = packed.scales.shape[1]
    if packed.zeros is None:
        values = packed.codes.view(packed.n_out, n_groups, -1) * packed.scales.unsqueeze(-1)
        return values.to(dtype).view(packed.n_out, -1)
    codes = unpack_pairs(packed.codes).view(packed.n_out, n_groups, -1)
    # Codes, scales and zeros are all exact in bf16, and the sum is rounded once; in fp16 scales
    # are not, so it gets what fp32 gives.
    exact = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    centred = codes.to(exact).sub_(_INT4_MIDDLE)
    zeros, scales = packed.zeros.to(exact)[..., None], packed.scales.to(exact)[..., None]
    return torch.addcmul(zeros, centred, scales).to(dtype).view(packed.n_out, -1)


def _row_blocks(weight: Tensor) -> Iterator[Tensor]:
    return (weight[start:stop].detach().float() for start, stop in row_spans(*weight.shape))


def _normalised(importance: Tensor) -> Tensor:
    # Inputs that were always zero must not make the fit of their group singular.
    scaled = importance.float() / importance.float().mean().clamp_min(
        torch.finfo(torch.float32).tiny
    )
    return scaled.clamp_min(1e-4)


def _pack_int8(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor | None]:
    values = weight.view(weight.shape[0], -1, group)
    scales = values.abs().amax(-1).div_(_INT8_MAX).clamp_min_(_SMALLEST_SCALE)
    codes = (values / scales.unsqueeze(-1)).round_().clamp_(-_INT8_MAX, _INT8_MAX)
    return codes.to(torch.int8).view_as(weight), scales, None


def _pack_int4(
    weight: Tensor, group: int, importance: Tensor | None, n_refinements: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    values = weight.view(weight.shape[0], -1, group)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    best: _Line | None = None
    for part in _FIRST_RANGES:
        scale = (high - low) * (part / _INT4_MAX)
        line = _Line(values, importance, scale, (low + high) / 2 + scale / 2)
        best = line if best is None else best.better(line)
        for _ in range(n_refinements):
            line = line.refined()
            best = best.better(line)
    if best is None:  # pragma: no cover -- there are ranges to try
        raise ValueError("no range to try")
    codes = best.codes.add_(_INT4_MIDDLE).to(torch.uint8).view_as(weight)
    return pack_pairs(codes), best.scale.squeeze(-1), best.zero.squeeze(-1)


class _Line:
    """Scale and zero of every group, the nearest codes, and the error they leave."""

    def __init__(
        self, values: Tensor, importance: Tensor | None, scale: Tensor, zero: Tensor
    ) -> None:
        self.values = values
        self.importance = importance
        # Errors are those of the numbers as they are stored.
        self.scale = scale.clamp_min(_SMALLEST_SCALE).to(torch.bfloat16)
        self.zero = zero.to(torch.bfloat16)
        wide = self.scale.float()
        shifted = values - self.zero.float()
        self.codes = (shifted / wide).round_().clamp_(-_INT4_MIDDLE, _INT4_MAX - _INT4_MIDDLE)
        left = shifted.sub_(self.codes * wide).square_()
        self.error = (left if importance is None else left * importance).sum(-1, keepdim=True)

    def refined(self) -> "_Line":
        """Least-squares line through the values at their present codes."""
        codes, values = self.codes, self.values
        mean_code, mean_value = self._mean(codes), self._mean(values)
        spread = codes - mean_code
        variance = self._mean(spread.square())
        slope = self._mean(spread * (values - mean_value)) / variance.clamp_min(1e-6)
        scale = torch.where(variance > 1e-6, slope, self.scale.float())
        return _Line(values, self.importance, scale, mean_value - scale * mean_code)

    def better(self, other: "_Line") -> "_Line":
        """Take each group from where its error is smaller."""
        closer = other.error < self.error
        self.codes = torch.where(closer, other.codes, self.codes)
        self.scale = torch.where(closer, other.scale, self.scale)
        self.zero = torch.where(closer, other.zero, self.zero)
        self.error = torch.where(closer, other.error, self.error)
        return self

    def _mean(self, of: Tensor) -> Tensor:
        if self.importance is None:
            return of.mean(-1, keepdim=True)
        return (of * self.importance).sum(-1, keepdim=True) / self.importance.sum(-1, keepdim=True)
