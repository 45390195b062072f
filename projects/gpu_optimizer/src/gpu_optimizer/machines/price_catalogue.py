"""Refreshes the list of cloud prices through gpuhunt, when the user asks for it."""

import datetime as dt
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import platformdirs

from gpu_optimizer.errors import GpuOptimizerError, UnknownNameError
from gpu_optimizer.machines.gpus import find_gpu
from gpu_optimizer.machines.prices import GpuPrice, dump_prices, load_prices

_FILE: Final = "gpu_prices.json"


class PricesUnavailableError(GpuOptimizerError):
    """No newer prices can be had; those at hand stay in use."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} The prices at hand stay in use.")
        self.reason = reason


def refreshed_prices_path() -> Path:
    """Where a refreshed list of prices is kept for this user."""
    return platformdirs.user_data_path("gpu-optimizer") / _FILE


def current_prices() -> tuple[GpuPrice, ...]:
    """Refreshed prices if there are any, else those shipped with the package."""
    path = refreshed_prices_path()
    return load_prices(path if path.is_file() else None)


def refresh_prices(path: Path | None = None) -> tuple[GpuPrice, ...]:
    """Fetch the providers' prices and keep them: of each instance in its cheapest region.

    Parameters
    ----------
    path
        File to write; `refreshed_prices_path` unless given.

    Raises
    ------
    PricesUnavailableError
        If gpuhunt is not installed, no catalogue can be reached, or it is empty. The file is then
        left as it was.
    """
    items = _fetch()
    today = dt.datetime.now(tz=dt.UTC).date()
    prices = _cheapest_regions(
        _price(item, today)
        for item in items
        if item.gpu_count and item.gpu_name and item.gpu_memory
    )
    if not prices:
        raise PricesUnavailableError("The catalogue holds no prices of NVIDIA GPUs.")
    path = path or refreshed_prices_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(dump_prices(prices), encoding="utf-8")
    os.replace(unfinished, path)  # noqa: PTH105 - says that it overwrites
    return prices


def _fetch() -> list[Any]:
    try:
        gpuhunt: Any = importlib.import_module("gpuhunt")
    except ImportError as error:
        raise PricesUnavailableError(
            "Refreshing prices needs gpuhunt: install gpu-optimizer[prices]."
        ) from error
    try:
        catalogue = gpuhunt.Catalog(auto_reload=False)
        catalogue.load()
        items: list[Any] = catalogue.query(gpu_vendor="nvidia", min_gpu_count=1)
    except (gpuhunt.GPUHuntError, OSError) as error:
        raise PricesUnavailableError(
            f"The price catalogue cannot be reached ({error}); is this machine online?"
        ) from error
    return items


def _price(item: Any, today: dt.date) -> GpuPrice:  # noqa: ANN401 - untyped library
    memory_gib = float(item.gpu_memory)
    name, memory_bytes = _known(str(item.gpu_name), memory_gib)
    return GpuPrice(
        provider=str(item.provider),
        instance=str(item.instance_name),
        gpu=name,
        n_gpus=int(item.gpu_count),
        memory_bytes=memory_bytes,
        usd_per_hour=float(item.price),
        region=str(item.location),
        spot=bool(item.spot),
        date=today,
        source="https://github.com/dstackai/gpuhunt",
    )


def _known(name: str, memory_gib: float) -> tuple[str, int]:
    """Name and size of a GPU: as the driver reports them where it is known, else as listed."""
    for candidate in (f"{name}-{memory_gib:g}GB", name):
        try:
            gpu = find_gpu(candidate)
        except UnknownNameError:
            continue
        # A known name may have a variant of another size.
        if abs(gpu.total_bytes / 2**30 / memory_gib - 1.0) < 0.1:
            return gpu.name, gpu.total_bytes
    return name, int(memory_gib * 2**30)


def _cheapest_regions(prices: Iterable[GpuPrice]) -> tuple[GpuPrice, ...]:
    best: dict[tuple[str, str, str, bool], GpuPrice] = {}
    for price in prices:
        key = (price.provider, price.instance, price.gpu, price.spot)
        if key not in best or price.usd_per_hour < best[key].usd_per_hour:
            best[key] = price
    return tuple(best.values())
