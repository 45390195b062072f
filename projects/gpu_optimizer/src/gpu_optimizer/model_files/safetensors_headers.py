"""Reads the header of a safetensors file: which tensors, how large. Never their values."""

from typing import Any, Final

from gpu_optimizer.bounded.byte_sources import ByteSource
from gpu_optimizer.bounded.json import JsonLimits, parse_json
from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.model_files.tensor_tables import (
    TensorEntry,
    TensorTable,
    check_name,
    check_parameters,
    count_elements,
)

_LENGTH_BYTES: Final = 8
HEADER_LIMITS: Final = JsonLimits(n_bytes=16 << 20, n_elements=2_000_000, depth=4)
"""About 100,000 tensors; the format itself allows headers of 100 MB."""
_MAX_RANK: Final = 16

# Format description: github.com/huggingface/safetensors, section "Format"; types as in its
# Rust source (tensor.rs, enum Dtype), sizes in bits.
_DTYPES: Final[dict[str, tuple[str, int]]] = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F4": ("float4_e2m1fn", 4),
    "F6_E2M3": ("float6_e2m3fn", 6),
    "F6_E3M2": ("float6_e3m2fn", 6),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "F32": ("float32", 32),
    "C64": ("complex64", 64),
    "F64": ("float64", 64),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
}


def read_safetensors_header(
    file: ByteSource, source: str, file_bytes: int | None = None
) -> TensorTable:
    """Table of the tensors in a safetensors file, from its header alone.

    Parameters
    ----------
    file
        At its beginning; 8 bytes and the header are read, nothing after it.
    source
        Name to use in messages.
    file_bytes
        Size of the whole file, which must then match the header to the byte; None where only the
        head of a file is at hand.

    Raises
    ------
    InvalidModelError
        If the header is too long or inconsistent: unknown types, shapes that do not match their
        bytes, tensors that overlap or leave holes, duplicate names.
    """
    n_header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if not 2 <= n_header_bytes <= HEADER_LIMITS.n_bytes:
        raise InvalidModelError(
            source,
            f"its safetensors header claims {n_header_bytes:,} bytes; 2 to "
            f"{HEADER_LIMITS.n_bytes:,} are read.",
        )
    data = file.read(n_header_bytes)
    if len(data) < n_header_bytes:
        raise InvalidModelError(source, "it ends within its safetensors header.")
    header = parse_json(data, source, HEADER_LIMITS)
    if not isinstance(header, dict):
        raise InvalidModelError(source, "its safetensors header is not an object.")
    header.pop("__metadata__", None)
    entries = [_entry(name, value, source) for name, value in header.items()]
    end = _check_layout([(begin, stop) for _, begin, stop in entries], source)
    if file_bytes is not None and _LENGTH_BYTES + n_header_bytes + end != file_bytes:
        raise InvalidModelError(
            source,
            f"its header describes {_LENGTH_BYTES + n_header_bytes + end:,} bytes, "
            f"the file has {file_bytes:,}.",
        )
    tensors = tuple(tensor for tensor, _, _ in entries)
    check_parameters(sum(count_elements(tensor.shape, source) for tensor in tensors), source)
    return TensorTable(source, tensors)


def _entry(name: str, value: Any, source: str) -> tuple[TensorEntry, int, int]:  # noqa: ANN401 - any JSON value
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InvalidModelError(source, "a tensor lacks dtype, shape or data_offsets, or has more.")
    check_name(name, source)
    shape, offsets = value["shape"], value["data_offsets"]
    if not (_integers(shape) and _integers(offsets) and len(offsets) == 2):
        raise InvalidModelError(source, f"{name}: shape and data_offsets must be whole numbers.")
    if len(shape) > _MAX_RANK:
        raise InvalidModelError(source, f"{name}: more than {_MAX_RANK} dimensions.")
    if not isinstance(value["dtype"], str) or value["dtype"] not in _DTYPES:
        raise InvalidModelError(source, f"{name}: unknown dtype.")
    dtype, n_bits = _DTYPES[value["dtype"]]
    n_bits *= count_elements(shape, source)
    begin, stop = offsets
    if n_bits % 8 or stop - begin != n_bits // 8:
        raise InvalidModelError(source, f"{name}: its bytes do not match its shape and dtype.")
    return TensorEntry(name, dtype, tuple(shape), stop - begin), begin, stop


def _integers(value: object) -> bool:
    """Whether it is a list of whole numbers, none negative; True and False are not numbers."""
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _check_layout(spans: list[tuple[int, int]], source: str) -> int:
    """End of the last tensor; the format allows neither overlaps nor holes."""
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise InvalidModelError(
                source, "tensors overlap." if begin < end else "there is a hole between tensors."
            )
        end = stop
    return end
