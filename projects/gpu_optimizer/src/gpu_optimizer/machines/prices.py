"""What providers asked for their GPUs on a day: a list that comes with the package."""

import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from gpu_optimizer.machines.gpus import usual_reserved_bytes


@dataclass(frozen=True, slots=True)
class GpuPrice:
    """What a provider asked for an instance on a day, without storage, traffic and taxes."""

    provider: str
    instance: str
    gpu: str
    n_gpus: int
    memory_bytes: int
    """Of one GPU, as the driver reports it."""
    usd_per_hour: float
    """For the whole instance."""
    region: str
    """``any`` where the provider has one price."""
    spot: bool
    """Whether the provider may take it back at any time."""
    date: dt.date
    source: str

    @property
    def usable_bytes(self) -> int:
        """What one of its GPUs leaves to programs."""
        return self.memory_bytes - usual_reserved_bytes(self.memory_bytes)


def load_prices(path: Path | None = None) -> tuple[GpuPrice, ...]:
    """Prices of a file, or those shipped with the package.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a list of prices.
    """
    shipped = resources.files("gpu_optimizer").joinpath("data/gpu_prices.json")
    text = (path or shipped).read_text(encoding="utf-8")
    try:
        return tuple(
            GpuPrice(**{**row, "date": dt.date.fromisoformat(row["date"])})
            for row in json.loads(text)["prices"]
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path or 'the shipped file'} is not a list of prices") from error


def dump_prices(prices: Iterable[GpuPrice]) -> str:
    """Text of a file that `load_prices` reads."""
    rows = [
        json.dumps({name: _plain(getattr(price, name)) for name in GpuPrice.__slots__})
        for price in prices
    ]
    return '{"currency": "USD", "prices": [\n' + ",\n".join(rows) + "\n]}\n"


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, dt.date) else value
