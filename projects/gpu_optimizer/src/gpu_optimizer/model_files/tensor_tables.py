"""Names, types and shapes of a model's tensors, without their values."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gpu_optimizer.errors import InvalidModelError

MAX_PARAMETERS: Final = 10**12
"""More than any published model; anything above is refused before something is built from it."""
MAX_NAME_CHARACTERS: Final = 512
_MAX_NAME_PARTS: Final = 64


class TensorRole(StrEnum):
    """What a tensor is in its model."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    INPUT = "input"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as a file describes it."""

    name: str
    dtype: str
    """As PyTorch writes it, without ``torch.``."""
    shape: tuple[int, ...]
    n_bytes: int
    role: TensorRole = TensorRole.PARAMETER
    shares: str | None = None
    """Name of the earlier tensor whose memory this one is; it costs nothing itself."""


@dataclass(frozen=True, slots=True)
class TensorTable:
    """Tensors of one file of weights."""

    source: str
    tensors: tuple[TensorEntry, ...]

    @property
    def total_bytes(self) -> int:
        """What all tensors occupy."""
        return total_bytes(self.tensors)

    def bytes_by_module(self) -> dict[str, int]:
        """Bytes per module, submodules included; the model itself is the empty name."""
        return bytes_by_module(self.tensors)


def total_bytes(tensors: Iterable[TensorEntry]) -> int:
    """What tensors occupy together, shared memory counted once."""
    return sum(tensor.n_bytes for tensor in tensors if tensor.shares is None)


def bytes_by_module(tensors: Iterable[TensorEntry]) -> dict[str, int]:
    """Bytes per module in order of occurrence, submodules included.

    Tensors that share memory count where they occur first.
    """
    sizes: Counter[str] = Counter({"": 0})
    for tensor in tensors:
        if tensor.shares is not None:
            continue
        parts = tensor.name.split(".")
        for depth in range(len(parts)):
            sizes[".".join(parts[:depth])] += tensor.n_bytes
    return dict(sizes)


def count_elements(shape: Iterable[int], source: str, limit: int = MAX_PARAMETERS) -> int:
    """Product of a shape.

    Raises
    ------
    InvalidModelError
        If a size is negative or the product goes beyond the limit.
    """
    sizes = tuple(shape)
    if any(size < 0 for size in sizes):
        raise InvalidModelError(source, "a shape has a negative size.")
    if 0 in sizes:
        return 0
    product = 1
    for size in sizes:
        product *= size
        if product > limit:
            raise InvalidModelError(source, f"a tensor has more than {limit:,} elements.")
    return product


def check_name(name: str, source: str) -> str:
    """Return a tensor's name that is fit to be shown.

    Raises
    ------
    InvalidModelError
        If it is empty, overlong, or holds characters that do not print.
    """
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidModelError(source, "a tensor's name is empty, too long or not printable.")
    if name.count(".") >= _MAX_NAME_PARTS:
        raise InvalidModelError(source, f"a tensor's name has more than {_MAX_NAME_PARTS} parts.")
    return name


def check_parameters(n_parameters: int, source: str) -> None:
    """Refuse a model that is too large to build.

    Raises
    ------
    InvalidModelError
        Above `MAX_PARAMETERS`.
    """
    if n_parameters > MAX_PARAMETERS:
        raise InvalidModelError(
            source, f"{n_parameters:,} parameters; at most {MAX_PARAMETERS:,} are profiled."
        )


def shared_storage(names: Iterable[str], storage: Mapping[str, str]) -> dict[str, str]:
    """Which tensors use the memory of an earlier one.

    Parameters
    ----------
    names
        In order of occurrence.
    storage
        Name of a tensor -> name of the memory that holds it.

    Returns
    -------
    dict of str to str
        Later name -> earliest name with the same memory.
    """
    first: dict[str, str] = {}
    shared: dict[str, str] = {}
    for name in names:
        place = storage.get(name)
        if place is None:
            continue
        if place in first:
            shared[name] = first[place]
        else:
            first[place] = name
    return shared
