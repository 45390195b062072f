"""Costs follow from time and price; the plan's table comes out to the cent."""

import datetime as dt
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_optimizer.cost_model import cheapest_that_fits, cost, offers_that_fit
from gpu_optimizer.machines import price_catalogue
from gpu_optimizer.machines.gpus import find_gpu
from gpu_optimizer.machines.price_catalogue import PricesUnavailableError, refresh_prices
from gpu_optimizer.machines.prices import GpuPrice, dump_prices, load_prices

PRICES = load_prices()
T4 = next(price for price in PRICES if price.instance == "g4dn.xlarge")
GIB = 1 << 30


@pytest.mark.parametrize(
    ("n_workers", "hours", "usd_per_day"), [(1, 24, 12.62), (3, 8, 12.62), (5, 24, 63.12)]
)
def test_the_plan_s_table_of_costs(n_workers: int, hours: int, usd_per_day: float):
    assert T4.usd_per_hour == 0.526
    assert round(cost(hours * 3600.0, T4, n_instances=n_workers).total_usd, 2) == usd_per_day


def test_a_run_s_cost_per_epoch_and_sample():
    run = cost(7200.0, replace(T4, usd_per_hour=3.0), n_epochs=4.0, n_samples=12_000)
    assert (run.total_usd, run.usd_per_epoch, run.usd_per_1000_samples) == (6.0, 1.5, 0.5)
    assert cost(0.0, T4).usd_per_epoch is None
    for wrong in ({"n_epochs": 0.0}, {"n_samples": 0}, {"n_instances": -1}):
        with pytest.raises(ValueError, match="n"):
            cost(1.0, T4, **wrong)


@given(st.integers(0, 200 * GIB), st.integers(1, 8), st.booleans())
def test_the_cheapest_that_fits_is_no_dearer_than_any_other(required: int, n_gpus: int, spot: bool):
    chosen = cheapest_that_fits(required, PRICES, n_gpus=n_gpus, spot=spot)
    fitting = [
        price
        for price in PRICES
        if price.usable_bytes >= required and price.n_gpus >= n_gpus and price.spot <= spot
    ]
    assert (chosen is None) == (not fitting)
    if chosen is not None:
        assert chosen in fitting
        assert all(chosen.usd_per_hour <= price.usd_per_hour for price in fitting)
    assert len(offers_that_fit(required, PRICES, n_gpus=n_gpus, spot=spot)) == len(fitting)


def test_a_16_gb_run_does_not_fit_a_16_gb_card():
    assert T4 not in offers_that_fit(16 * GIB, PRICES)
    assert T4 in offers_that_fit(14 * GIB, PRICES)


def test_shipped_prices_are_dated_sourced_and_of_known_gpus():
    assert len(PRICES) >= 40
    assert len({(p.provider, p.instance, p.gpu, p.spot) for p in PRICES}) == len(PRICES)
    for price in PRICES:
        assert find_gpu(price.gpu).total_bytes == price.memory_bytes
        assert 0.1 < price.usd_per_hour / price.n_gpus < 20
        assert dt.date(2026, 1, 1) <= price.date <= dt.date(2026, 12, 31)
        assert price.source
        assert price.region


def test_prices_survive_being_written(tmp_path: Path):
    path = tmp_path / "prices.json"
    path.write_text(dump_prices(PRICES))
    assert load_prices(path) == PRICES
    path.write_text('{"prices": [{"gpu": "T4"}]}')
    with pytest.raises(ValueError, match="not a list of prices"):
        load_prices(path)


class HuntError(Exception):
    pass


def item(**changes: object) -> SimpleNamespace:
    return SimpleNamespace(**{
        "provider": "aws", "instance_name": "g4dn.xlarge", "location": "us-east-1", "price": 0.526,
        "gpu_count": 1, "gpu_name": "T4", "gpu_memory": 16.0, "spot": False, **changes,
    })  # fmt: skip


@pytest.fixture
def hunt(monkeypatch: pytest.MonkeyPatch):
    """Stand in for gpuhunt; its catalogue is fetched over the network."""

    def install(items: list[SimpleNamespace] | Exception) -> None:
        class Catalog:
            def __init__(self, auto_reload: bool) -> None:
                assert not auto_reload

            def load(self) -> None:
                if isinstance(items, Exception):
                    raise items

            def query(self, gpu_vendor: str, min_gpu_count: int) -> object:
                assert (gpu_vendor, min_gpu_count) == ("nvidia", 1)
                return items

        module = ModuleType("gpuhunt")
        module.Catalog = Catalog
        module.GPUHuntError = HuntError
        monkeypatch.setitem(sys.modules, "gpuhunt", module)

    return install


def test_a_refresh_keeps_the_cheapest_region(hunt, tmp_path: Path, monkeypatch):
    hunt([
        item(),
        item(location="sa-east-1", price=0.894),
        item(spot=True, price=0.2),
        item(instance_name="x", gpu_name="A100", gpu_memory=80.0, gpu_count=8, price=9.0),
        item(instance_name="y", gpu_name="NEW1", gpu_memory=300.0, price=30.0),
    ])  # fmt: skip
    path = tmp_path / "new" / "prices.json"
    prices = refresh_prices(path)
    assert load_prices(path) == prices
    assert [(p.gpu, p.region, p.usd_per_hour, p.spot) for p in prices] == [
        ("T4", "us-east-1", 0.526, False), ("T4", "us-east-1", 0.2, True),
        ("A100-80GB", "us-east-1", 9.0, False), ("NEW1", "us-east-1", 30.0, False),
    ]  # fmt: skip
    assert prices[0].memory_bytes == T4.memory_bytes
    assert prices[3].memory_bytes == 300 * GIB
    monkeypatch.setattr(price_catalogue, "refreshed_prices_path", lambda: path)
    assert price_catalogue.current_prices() == prices


@pytest.mark.parametrize("failure", [HuntError("no catalog"), OSError("unreachable"), []])
def test_a_failed_refresh_changes_nothing(hunt, tmp_path: Path, failure):
    hunt(failure)
    path = tmp_path / "prices.json"
    with pytest.raises(PricesUnavailableError, match="stay in use"):
        refresh_prices(path)
    assert not path.exists()


def test_a_missing_library_is_named(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "gpuhunt", None)
    with pytest.raises(PricesUnavailableError, match=r"gpu-optimizer\[prices\]"):
        refresh_prices(tmp_path / "prices.json")


def test_a_price_is_a_value():
    assert isinstance(T4, GpuPrice)
    assert hash(T4) == hash(replace(T4))
