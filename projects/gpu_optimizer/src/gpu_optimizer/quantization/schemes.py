"""How many bytes weights and caches take in fewer bits: arithmetic, no PyTorch.

| scheme | a weight | beside the weights |
| --- | --- | --- |
| int8 | 8 bits, symmetric | one fp32 scale per row or group |
| int4 | 4 bits, two to a byte | a bf16 scale and a bf16 zero per row or group |
| nf4 | 4 bits, quantiles of a normal distribution (QLoRA, arXiv 2305.14314) | 8-bit scale per 64 |
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

Scheme = Literal["int8", "int4", "nf4"]
SCHEMES: Final[tuple[Scheme, ...]] = get_args(Scheme)

KERNEL_GROUPS: Final = (256, 128, 64, 32)
"""Group sizes that PyTorch's int4 matrix product (tinygemm) knows."""
KV_BLOCK_TOKENS: Final = 64
"""Tokens of a key's channel that share a scale; KIVI (arXiv 2402.02750) uses 32 to 128."""
KV_PAGE_TOKENS: Final = 512
"""A quantized cache grows by so many tokens."""

_INT8_SCALE_BYTES: Final = 4
_INT4_SCALE_AND_ZERO_BYTES: Final = 4
_NF4_BLOCK: Final = 64
_NF4_OUTER_BLOCK: Final = 256
# Tables of 16 and 256 fp32 values, and the mean of the scales, that bitsandbytes keeps per layer.
_NF4_TABLES_BYTES: Final = 4 * (16 + 256 + 1)


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """How one linear layer's weight is stored."""

    scheme: Scheme
    group_size: int | None = None
    """Weights of a row that share a scale, at most; None: the whole row. nf4 always has 64."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a linear layer's weight takes as it is."""

    name: str
    n_out: int
    n_in: int
    element_bytes: int = 2

    @property
    def n_bytes(self) -> int:
        """Without the bias, which stays as it is."""
        return self.n_out * self.n_in * self.element_bytes


def group_for(n_in: int, group_size: int | None) -> int:
    """Return the group size a row of weights is really cut into.

    The largest size not above the one asked for that divides the row, one that kernels know if
    there is any; the whole row if only single weights would do.
    """
    if group_size is None or group_size >= n_in:
        return n_in
    for size in KERNEL_GROUPS:
        if size <= group_size and n_in % size == 0:
            return size
    divisors = (size for size in range(group_size, 1, -1) if n_in % size == 0)
    return next(divisors, n_in)


def can_hold(n_in: int, scheme: Scheme) -> bool:
    """Say whether rows of this length can be stored so.

    int4 packs pairs. nf4 is kept to whole blocks of a row: bitsandbytes 0.50 counts blocks through
    the whole matrix when it packs, but from each row's beginning when it reads on a CPU, so that
    other rows would come back wrong there.
    """
    if scheme == "nf4":
        return n_in % _NF4_BLOCK == 0
    return scheme == "int8" or n_in % 2 == 0


def weight_bytes(n_out: int, n_in: int, choice: LayerChoice) -> int:
    """Return what a quantized weight takes, its scales and tables included."""
    n_weights = n_out * n_in
    if choice.scheme == "nf4":
        n_blocks = -(-n_weights // _NF4_BLOCK)
        return (
            -(-n_weights // 2)
            + n_blocks
            + 4 * -(-n_blocks // _NF4_OUTER_BLOCK)
            + (_NF4_TABLES_BYTES)
        )
    n_groups = n_out * (n_in // group_for(n_in, choice.group_size))
    if choice.scheme == "int8":
        return n_weights + n_groups * _INT8_SCALE_BYTES
    return n_weights // 2 + n_groups * _INT4_SCALE_AND_ZERO_BYTES


def bytes_of(shapes: Iterable[LayerShape], choices: Mapping[str, LayerChoice]) -> int:
    """Return what the weights of linear layers take.

    Parameters
    ----------
    shapes
        The layers.
    choices
        How layers are stored, by name; a layer that is not named, or cannot be stored so, stays
        as it is.
    """
    total = 0
    for shape in shapes:
        choice = choices.get(shape.name)
        if choice is None or not can_hold(shape.n_in, choice.scheme):
            total += shape.n_bytes
        else:
            total += weight_bytes(shape.n_out, shape.n_in, choice)
    return total


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a model keeps of each token while it generates."""

    n_layers: int
    n_heads: int
    """Of keys and values, which may be fewer than of queries."""
    head_size: int
    element_bytes: int = 2


def kv_cache_bytes(
    shape: CacheShape, n_tokens: int, bits: Literal[4, 8] | None, batch_size: int = 1
) -> int:
    """Return what keys and values of a sequence take.

    Parameters
    ----------
    shape
        Of the model.
    n_tokens
        Cached.
    bits
        None: as they are. Else whole blocks of tokens are quantized, in pages that are allocated
        at once; the last tokens, less than a block, stay as they are.
    batch_size
        Sequences.
    """
    n_rows = 2 * batch_size * shape.n_layers * shape.n_heads
    if bits is None:
        return n_rows * n_tokens * shape.head_size * shape.element_bytes
    n_left = n_tokens % KV_BLOCK_TOKENS
    n_pages = -(-(n_tokens - n_left) // KV_PAGE_TOKENS)
    paged = n_pages * KV_PAGE_TOKENS * shape.head_size
    scales_of_keys = 4 * paged // KV_BLOCK_TOKENS
    scales_of_values = 4 * paged // group_for(shape.head_size, KV_BLOCK_TOKENS)
    return n_rows * (
        paged * bits // 8 + n_left * shape.head_size * shape.element_bytes
    ) + n_rows // 2 * (scales_of_keys + scales_of_values)
