"""``gpu-optimizer cost``: what a run costs on rented GPUs, and the cheapest it fits on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from gpu_optimizer.cli.options import Json, Quiet, RunOptions, with_run_options
from gpu_optimizer.cli.output import print_json, result_console, say, steps
from gpu_optimizer.cli.runs import USUAL_GPU, machine_for, model_run, read_model, run_words
from gpu_optimizer.cost_model import cost, offers_that_fit
from gpu_optimizer.errors import UnknownNameError
from gpu_optimizer.machines.gpus import find_gpu
from gpu_optimizer.machines.price_catalogue import current_prices, refresh_prices
from gpu_optimizer.machines.prices import GpuPrice
from gpu_optimizer.runs.fitting import predict_on
from shared_utils.exits import ExitCode
from shared_utils.units import format_bytes

_S_PER_HOUR: Final = 3600.0
_N_ROWS: Final = 12


@dataclass(frozen=True, slots=True)
class _Span:
    """How long is rented, and what is done in that time."""

    runtime_s: float
    n_epochs: float | None
    n_samples: int | None


@with_run_options
def show_cost(  # noqa: PLR0913 - one parameter per option of the command
    *,
    run: RunOptions,
    hours: Annotated[float | None, typer.Option(min=0.0, help="How long it runs.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.0, help="The same in seconds.")] = None,
    needs: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Only where this run fits; its options as in predict."),
    ] = None,
    gib: Annotated[
        float | None, typer.Option(min=0.0, help="Only where each GPU has so much, GiB.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Only this GPU.")] = None,
    instance: Annotated[str | None, typer.Option(help="Only this instance.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs the run is spread over.")] = 1,
    spot: Annotated[
        bool, typer.Option("--spot", help="Also instances the provider may take back.")
    ] = False,
    epochs: Annotated[float | None, typer.Option(help="Epochs done in that time.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples processed in that time.")] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Fetch today's prices first (needs the network).")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="All offers, not only the cheapest.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare what a run costs on rented GPUs, cheapest first; exit code 1 if it fits on none."""
    span = _span(hours, seconds, epochs, samples)
    with steps(quiet=quiet or as_json) as progress:
        if refresh:
            progress.say("fetching prices")
        prices = [
            price
            for price in (refresh_prices() if refresh else current_prices())
            if instance in {None, price.instance} and _is_gpu(price, gpu)
        ]
        required_bytes = 0 if gib is None else round(gib * 2**30)
        if needs is not None:
            progress.say("predicting the memory of the run")
            required_bytes = max(required_bytes, _needed_bytes(needs, run, gpu))
    offers = offers_that_fit(required_bytes, prices, n_gpus=gpus, spot=spot)
    if as_json:
        print_json(
            {
                "required_bytes": required_bytes,
                "runtime_s": span.runtime_s,
                "offers": [_offer_dict(offer, span) for offer in offers],
            }
        )
    elif not quiet:
        if needs is not None:
            say(f"{run_words(needs, model_run(read_model(needs), run))}")
        _print_offers(offers if every else offers[:_N_ROWS], len(offers), span, required_bytes)
    if not offers:
        raise typer.Exit(ExitCode.FAILED)


def _span(
    hours: float | None, seconds: float | None, epochs: float | None, samples: int | None
) -> _Span:
    if (hours is None) == (seconds is None):
        raise typer.BadParameter("give the time with --hours or with --seconds")
    if (epochs is not None and epochs <= 0) or (samples is not None and samples <= 0):
        raise typer.BadParameter("numbers of epochs and samples must be positive")
    runtime_s = seconds if seconds is not None else (hours or 0.0) * _S_PER_HOUR
    return _Span(runtime_s, epochs, samples)


def _is_gpu(price: GpuPrice, gpu: str | None) -> bool:
    if gpu is None:
        return True
    try:
        return find_gpu(price.gpu).name == find_gpu(gpu).name
    except UnknownNameError:
        return price.gpu.casefold() == gpu.casefold()


def _needed_bytes(model: str, run: RunOptions, gpu: str | None) -> int:
    """What the run takes at most of a GPU, by prediction."""
    machine = machine_for(gpu or USUAL_GPU)
    prediction = predict_on(model_run(read_model(model), run), machine, run.allocator)
    return prediction.total_bytes + int(prediction.total_bytes * prediction.error_ratio)


def _print_offers(
    offers: tuple[GpuPrice, ...], n_offers: int, span: _Span, required_bytes: int
) -> None:
    if required_bytes:
        say(f"Needs {format_bytes(required_bytes)} of each GPU.")
    if not offers:
        say("No offer fits.")
        return
    result_console().print(_table(offers, span))
    if n_offers > len(offers):
        say(f"and {n_offers - len(offers):,} dearer ones (--all)")
    best = offers[0]
    total_usd = cost(span.runtime_s, best).total_usd
    say(
        f"Cheapest: {best.provider} {best.instance}, {total_usd:,.2f} USD. "
        f"Prices of {min(offer.date for offer in offers)} or later, without storage and traffic."
    )


def _table(offers: tuple[GpuPrice, ...], span: _Span) -> Table:
    optional: list[tuple[str, Callable[[GpuPrice], str]]] = []
    if span.n_epochs is not None:
        optional.append(
            ("per epoch", lambda offer: f"{_cost(offer, span)['usd_per_epoch']:,.3f} USD")
        )
    if span.n_samples is not None:
        optional.append(
            ("per 1,000", lambda offer: f"{_cost(offer, span)['usd_per_1000_samples']:,.4f} USD")
        )
    table = Table("provider", "instance", "GPU", "usable", "region", "per hour", "the run")
    for title, _ in optional:
        table.add_column(title)
    for column in (table.columns[3], *table.columns[5:]):
        column.justify = "right"
    for offer in offers:
        table.add_row(
            offer.provider,
            offer.instance + (" (spot)" if offer.spot else ""),
            offer.gpu if offer.n_gpus == 1 else f"{offer.n_gpus} x {offer.gpu}",
            format_bytes(offer.usable_bytes),
            offer.region,
            f"{offer.usd_per_hour:,.3f} USD",
            f"{_cost(offer, span)['total_usd']:,.2f} USD",
            *(write(offer) for _, write in optional),
        )
    return table


def _cost(offer: GpuPrice, span: _Span) -> dict[str, float | None]:
    found = cost(span.runtime_s, offer, n_epochs=span.n_epochs, n_samples=span.n_samples)
    return {
        "total_usd": found.total_usd,
        "usd_per_epoch": found.usd_per_epoch,
        "usd_per_1000_samples": found.usd_per_1000_samples,
    }


def _offer_dict(offer: GpuPrice, span: _Span) -> dict[str, Any]:
    return {
        "provider": offer.provider,
        "instance": offer.instance,
        "gpu": offer.gpu,
        "n_gpus": offer.n_gpus,
        "usable_bytes": offer.usable_bytes,
        "usd_per_hour": offer.usd_per_hour,
        "region": offer.region,
        "spot": offer.spot,
        "date": offer.date.isoformat(),
        "source": offer.source,
        **_cost(offer, span),
    }
