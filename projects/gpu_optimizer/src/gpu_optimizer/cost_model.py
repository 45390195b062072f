"""What a run costs on rented GPUs, and which instance is the cheapest that it fits on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gpu_optimizer.machines.prices import GpuPrice

_S_PER_HOUR: Final = 3600.0


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run costs."""

    total_usd: float
    usd_per_epoch: float | None
    """None where no number of epochs was given."""
    usd_per_1000_samples: float | None
    """None where no number of samples was given."""


def cost(
    runtime_s: float,
    price: GpuPrice,
    *,
    n_instances: int = 1,
    n_epochs: float | None = None,
    n_samples: int | None = None,
) -> RunCost:
    """What a run costs at a price.

    Parameters
    ----------
    runtime_s
        How long the instances are rented.
    price
        Of one instance.
    n_instances
        How many of them run all the time.
    n_epochs
        Passes over the data in that time, of all instances together.
    n_samples
        Samples processed in that time, of all instances together.

    Raises
    ------
    ValueError
        If a number is negative, or no samples or epochs are to be divided by.
    """
    if runtime_s < 0 or n_instances < 0:
        raise ValueError("runtime and number of instances cannot be negative")
    if (n_epochs is not None and n_epochs <= 0) or (n_samples is not None and n_samples <= 0):
        raise ValueError("numbers of epochs and samples must be positive")
    total_usd = runtime_s / _S_PER_HOUR * price.usd_per_hour * n_instances
    return RunCost(
        total_usd=total_usd,
        usd_per_epoch=None if n_epochs is None else total_usd / n_epochs,
        usd_per_1000_samples=None if n_samples is None else 1000.0 * total_usd / n_samples,
    )


def offers_that_fit(
    required_bytes: int, prices: Iterable[GpuPrice], *, n_gpus: int = 1, spot: bool = False
) -> tuple[GpuPrice, ...]:
    """Instances on which a run fits, cheapest first.

    Parameters
    ----------
    required_bytes
        What the run takes of each GPU, CUDA context included.
    prices
        To choose from.
    n_gpus
        GPUs the run is spread over; an instance may have more of them.
    spot
        Whether instances count that the provider may take back.
    """
    fitting = (
        price
        for price in prices
        if price.usable_bytes >= required_bytes
        and price.n_gpus >= n_gpus
        and (spot or not price.spot)
    )
    return tuple(
        sorted(fitting, key=lambda price: (price.usd_per_hour, price.provider, price.instance))
    )


def cheapest_that_fits(
    required_bytes: int, prices: Iterable[GpuPrice], *, n_gpus: int = 1, spot: bool = False
) -> GpuPrice | None:
    """Cheapest instance on which a run fits; None: there is none. See `offers_that_fit`."""
    return next(iter(offers_that_fit(required_bytes, prices, n_gpus=n_gpus, spot=spot)), None)
