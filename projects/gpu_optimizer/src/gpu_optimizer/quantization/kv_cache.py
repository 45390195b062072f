"""A key-value cache in 8 or 4 bits, for generation with transformers.

The library's own `QuantizedCache` needs quanto or HQQ, reads everything back and quantizes it again
whenever its window is full. Here each token is quantized once: keys by channel over blocks of
tokens, values by token, as in KIVI (arXiv 2402.02750).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from gpu_optimizer.quantization.packing import pack_pairs, unpack_pairs
from gpu_optimizer.quantization.schemes import KV_BLOCK_TOKENS, KV_PAGE_TOKENS, group_for

KvBits = Literal[4, 8]
_SMALLEST_SCALE: Final = 1e-7


def quantized_cache(n_layers: int, bits: KvBits) -> Cache:
    """Make an empty cache, to be handed to a model as ``past_key_values``.

    Parameters
    ----------
    n_layers
        Of the model: ``config.num_hidden_layers``.
    bits
        Of a key or value.
    """
    return Cache(layers=[QuantizedCacheLayer(bits) for _ in range(n_layers)])


def cache_bytes(cache: Cache) -> int:
    """Return what a cache from `quantized_cache` holds in memory."""
    return sum(each.n_bytes for each in cache.layers if isinstance(each, QuantizedCacheLayer))


@dataclass(frozen=True, slots=True)
class _Codes:
    """Tensors of one page, of keys or of values."""

    codes: UInt8[Tensor, "*rows n"]
    scales: Float[Tensor, "*rows groups"]
    zeros: Float[Tensor, "*rows groups"]

    @classmethod
    def empty(cls, like: Tensor, rows: tuple[int, ...], n: int, group: int, bits: int) -> "_Codes":
        # The scales' type must hold the cache's range; fp32 caches are rare and lose little.
        scale_dtype = torch.bfloat16 if like.dtype == torch.bfloat16 else torch.float16
        return cls(
            torch.empty((*rows, n * bits // 8), dtype=torch.uint8, device=like.device),
            torch.empty((*rows, n // group), dtype=scale_dtype, device=like.device),
            torch.empty((*rows, n // group), dtype=scale_dtype, device=like.device),
        )

    def narrowed(self, dim: int, start: int, stop: int, n: int) -> "_Codes":
        """Return the part of elements `start` to `stop` of `n` along a dimension, as views."""
        parts = []
        for each in (self.codes, self.scales, self.zeros):
            size = each.shape[dim]
            parts.append(each.narrow(dim, start * size // n, (stop - start) * size // n))
        return _Codes(*parts)

    def write(self, values: Float[Tensor, "*rows n"], bits: int) -> None:
        n_groups = self.scales.shape[-1]
        grouped = values.float().view(*values.shape[:-1], n_groups, -1)
        low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        scale = ((high - low) / (2**bits - 1)).clamp_min(_SMALLEST_SCALE).to(self.scales.dtype)
        zero = low.to(self.zeros.dtype)
        codes = ((grouped - zero.float()) / scale.float()).round_().clamp_(0, 2**bits - 1)
        flat = codes.to(torch.uint8).flatten(-2)
        self.codes.copy_(pack_pairs(flat) if bits == 4 else flat)
        self.scales.copy_(scale.squeeze(-1))
        self.zeros.copy_(zero.squeeze(-1))

    def read(self, bits: int, dtype: torch.dtype) -> Float[Tensor, "*rows n"]:
        codes = unpack_pairs(self.codes) if bits == 4 else self.codes
        grouped = codes.view(*self.scales.shape, -1).to(dtype)
        values = torch.addcmul(
            self.zeros.to(dtype).unsqueeze(-1), grouped, self.scales.to(dtype).unsqueeze(-1)
        )
        return values.flatten(-2)


class QuantizedCacheLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer.

    Whole blocks of tokens live in pages of a fixed size, allocated as they are needed and never
    moved; the latest tokens, less than a block, stay as they came.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, bits: KvBits = 8) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bits = bits
        self._clear()

    def _clear(self) -> None:
        self._key_pages: list[_Codes] = []
        self._value_pages: list[_Codes] = []
        self._n_paged = 0
        self.keys = self.values = None
        self.is_initialized = False

    @property
    def n_bytes(self) -> int:
        """What is held in memory, unused ends of pages included."""
        pages = (*self._key_pages, *self._value_pages)
        tensors = [getattr(page, field.name) for page in pages for field in fields(page)]
        left = [each for each in (self.keys, self.values) if each is not None]
        return sum(each.nbytes for each in (*tensors, *left))

    def update(
        self,
        key_states: Float[Tensor, "batch heads new size"],
        value_states: Float[Tensor, "batch heads new size"],
        *_args: Any,  # noqa: ANN401 -- what else the library hands over is not needed
        **_kwargs: Any,  # noqa: ANN401
    ) -> tuple[Float[Tensor, "batch heads all size"], Float[Tensor, "batch heads all size"]]:
        """Add tokens; return all keys and values, the new ones exactly, older ones read back."""
        if self.keys is None or self.values is None:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            recent_keys, recent_values = key_states, value_states
        else:
            recent_keys = torch.cat((self.keys, key_states), dim=-2)
            recent_values = torch.cat((self.values, value_states), dim=-2)
        everything = (
            self._all(self._key_pages, recent_keys, keys=True),
            self._all(self._value_pages, recent_values, keys=False),
        )
        n_new = recent_keys.shape[-2] // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS
        self._store(recent_keys[..., :n_new, :], recent_values[..., :n_new, :])
        # Clones, since a view would keep the whole prompt alive.
        self.keys, self.values = (
            recent_keys[..., n_new:, :].clone(),
            recent_values[..., n_new:, :].clone(),
        )
        return everything

    def get_seq_length(self) -> int:
        """Tokens cached."""
        return self._n_paged + (0 if self.keys is None else int(self.keys.shape[-2]))

    def reset(self) -> None:
        """Forget everything."""
        self._clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Quantized tokens cannot be taken back."""
        if tokens_to_remove != 0:
            raise NotImplementedError("a quantized cache cannot be cropped; use a plain one")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put sequences into another order, for beam search."""
        self._on_batch(lambda each: each.index_select(0, beam_idx.to(each.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence."""
        self._on_batch(lambda each: each.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences."""
        self._on_batch(lambda each: each[indices, ...])

    def offload(self) -> None:
        """Refuse: pages are not moved."""
        raise NotImplementedError("a quantized cache is not offloaded; use a plain one for that")

    def _on_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.keys is None or self.values is None:
            return
        self.keys, self.values = change(self.keys), change(self.values)
        for pages in (self._key_pages, self._value_pages):
            pages[:] = [_Codes(change(p.codes), change(p.scales), change(p.zeros)) for p in pages]

    def _store(self, keys: Tensor, values: Tensor) -> None:
        n_new, done = keys.shape[-2], 0
        while done < n_new:
            at = self._n_paged % KV_PAGE_TOKENS
            if at == 0:
                self._add_page(keys)
            n = min(KV_PAGE_TOKENS - at, n_new - done)
            of_keys = self._key_pages[-1].narrowed(-1, at, at + n, KV_PAGE_TOKENS)
            of_values = self._value_pages[-1].narrowed(-2, at, at + n, KV_PAGE_TOKENS)
            of_keys.write(keys[..., done : done + n, :].transpose(-1, -2), self.bits)
            of_values.write(values[..., done : done + n, :], self.bits)
            done += n
            self._n_paged += n

    def _add_page(self, keys: Tensor) -> None:
        batch, heads, _, size = keys.shape
        value_group = group_for(size, KV_BLOCK_TOKENS)
        make = _Codes.empty
        self._key_pages.append(
            make(keys, (batch, heads, size), KV_PAGE_TOKENS, KV_BLOCK_TOKENS, self.bits)
        )
        self._value_pages.append(
            make(keys, (batch, heads, KV_PAGE_TOKENS), size, value_group, self.bits)
        )

    def _all(self, pages: list[_Codes], recent: Tensor, *, keys: bool) -> Tensor:
        if not pages:
            return recent
        batch, heads, n_recent, size = recent.shape
        whole = recent.new_empty(batch, heads, self._n_paged + n_recent, size)
        for number, page in enumerate(pages):
            start = number * KV_PAGE_TOKENS
            n = min(KV_PAGE_TOKENS, self._n_paged - start)
            part = page.narrowed(-1 if keys else -2, 0, n, KV_PAGE_TOKENS)
            read = part.read(self.bits, recent.dtype)
            whole[..., start : start + n, :] = read.transpose(-1, -2) if keys else read
        whole[..., self._n_paged :, :] = recent
        return whole
