"""Memory budgets as people write them: ``7.2 GiB``, ``8GB``, ``90%``."""

import math
import re
from typing import Final

from gpu_optimizer.errors import GpuOptimizerError

_WRITTEN: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z%]*)\s*", re.IGNORECASE)
_UNITS: Final = {
    "": 1, "b": 1,
    "kb": 1_000, "mb": 1_000**2, "gb": 1_000**3, "tb": 1_000**4,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip
_MAX_CHARACTERS: Final = 40


class InvalidBudgetError(GpuOptimizerError):
    """A budget that is no amount of memory."""

    def __init__(self, written: str) -> None:
        super().__init__(
            f"{written[:_MAX_CHARACTERS]!r} is no budget. Write it like 7.2GiB, 8GB or 90%."
        )
        self.written = written


def parse_budget(written: str | int, card_bytes: int) -> int:
    """Read a budget, bytes.

    Parameters
    ----------
    written
        A number of bytes, or a text with a unit: GB and its like are powers of 1,000, GiB of 1,024,
        as the standards have it (IEC 80000-13); ``%`` is of the card.
    card_bytes
        Memory of the card, as its driver reports it.

    Raises
    ------
    InvalidBudgetError
        If it is none, or nothing.
    """
    if isinstance(written, int):
        if written <= 0:
            raise InvalidBudgetError(str(written))
        return written
    found = _WRITTEN.fullmatch(written) if len(written) <= _MAX_CHARACTERS else None
    unit = found[2].lower() if found else "none"
    if found is None or (unit != "%" and unit not in _UNITS):
        raise InvalidBudgetError(written)
    scale = card_bytes / 100 if unit == "%" else _UNITS[unit]
    n_bytes = float(found[1]) * scale
    if not math.isfinite(n_bytes) or n_bytes < 1:
        raise InvalidBudgetError(written)
    return int(n_bytes)
