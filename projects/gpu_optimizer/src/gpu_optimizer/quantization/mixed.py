"""Which layers keep more bits: pure choice from measured errors, no PyTorch."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpu_optimizer.quantization.errors import CannotFitError
from gpu_optimizer.quantization.schemes import LayerChoice


@dataclass(frozen=True, slots=True)
class LayerOption:
    """One way to store one layer."""

    choice: LayerChoice | None
    """None: as it is."""
    n_bytes: int
    damage: float
    """What it costs in quality, in any unit that adds up over layers, such as nats of loss."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One layer's change to an option with more bytes and less damage."""

    layer: str
    to: LayerOption
    more_bytes: int
    less_damage: float


def smallest(options: Mapping[str, Sequence[LayerOption]]) -> dict[str, LayerOption]:
    """Return each layer's option with the fewest bytes."""
    return {
        layer: min(each, key=lambda option: (option.n_bytes, option.damage))
        for layer, each in options.items()
    }


def upgrades(options: Mapping[str, Sequence[LayerOption]]) -> tuple[Upgrade, ...]:
    """Return the order in which layers should get more bytes: most damage avoided per byte first.

    Only options on the lower convex hull of damage over bytes are used, so a layer's upgrades come
    in the order of its sizes, and every prefix is the best choice for the bytes that it takes.
    """
    begun = smallest(options)
    queue = [
        (-_slope(hull[0], hull[1]), layer, hull)
        for layer, each in sorted(options.items())
        if len(hull := _hull(begun[layer], each)) > 1
    ]
    heapq.heapify(queue)
    order = []
    while queue:
        _, layer, hull = heapq.heappop(queue)
        now, then, *_ = hull
        order.append(Upgrade(layer, then, then.n_bytes - now.n_bytes, now.damage - then.damage))
        if len(hull) > 2:
            heapq.heappush(queue, (-_slope(hull[1], hull[2]), layer, hull[1:]))
    return tuple(order)


def choose_within(
    options: Mapping[str, Sequence[LayerOption]], budget_bytes: int
) -> dict[str, LayerOption]:
    """Choose each layer's option with the least damage within a number of bytes.

    Parameters
    ----------
    options
        What each layer may be stored as.
    budget_bytes
        For all layers together.

    Raises
    ------
    CannotFitError
        Even the smallest options are too large.
    """
    chosen = smallest(options)
    left = budget_bytes - sum(each.n_bytes for each in chosen.values())
    if left < 0:
        raise CannotFitError(budget_bytes, budget_bytes - left)
    stopped: set[str] = set()
    for upgrade in upgrades(options):
        if upgrade.layer in stopped:
            continue
        if upgrade.more_bytes > left:
            # A later step of this layer would presume this one; other layers may still be helped.
            stopped.add(upgrade.layer)
            continue
        chosen[upgrade.layer] = upgrade.to
        left -= upgrade.more_bytes
    return chosen


def after(options: Mapping[str, Sequence[LayerOption]], n_upgrades: int) -> dict[str, LayerOption]:
    """Return the choice that the first so many of `upgrades` lead to."""
    chosen = smallest(options)
    for upgrade in upgrades(options)[:n_upgrades]:
        chosen[upgrade.layer] = upgrade.to
    return chosen


def _hull(first: LayerOption, options: Sequence[LayerOption]) -> tuple[LayerOption, ...]:
    hull = [first]
    for option in sorted(options, key=lambda each: (each.n_bytes, each.damage)):
        if option.n_bytes == hull[-1].n_bytes or option.damage >= hull[-1].damage:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return tuple(hull)


def _slope(less: LayerOption, more: LayerOption) -> float:
    return (less.damage - more.damage) / (more.n_bytes - less.n_bytes)
