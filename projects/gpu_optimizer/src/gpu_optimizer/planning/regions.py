"""Modules that could be computed again, and what each of them would free and cost."""

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float64

from gpu_optimizer.checkpointing.cuts import Cut, ForwardOperation, cheapest_cut
from gpu_optimizer.planning.repeats import Repeats, repeats
from gpu_optimizer.planning.values import ForwardAccess
from gpu_optimizer.plans import CheckpointRegion
from gpu_optimizer.steps.graphs import StepGraph

MAX_OPERATIONS = 1500
"""Of one call: the cut through a larger one takes seconds to find."""
_MAX_PRODUCTS = 8
_MAX_FREE = 4
_LAYER_NUMBER = re.compile(r"\d+\.")


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A region and what is known of it."""

    region: CheckpointRegion
    spans: tuple[tuple[int, int], ...]
    """First and last operation of each call, the last exclusive."""
    repeats: tuple[Repeats, ...]
    recompute_s: float

    @property
    def most_bytes(self) -> int:
        """Most that repeating it takes for itself."""
        return max(int(each.burst_bytes.max(initial=0)) for each in self.repeats)

    @property
    def n_repeated(self) -> int:
        """How many operations are run again."""
        return sum(len(each.operations) for each in self.repeats)


class RegionFinder:
    """Makes candidates of modules; what is alike is worked out once.

    Parameters
    ----------
    graph
        The recorded step.
    access
        The same by operation.
    operation_s
        Estimated time of each operation.
    """

    def __init__(
        self,
        graph: StepGraph,
        access: ForwardAccess,
        operation_s: Float64[np.ndarray, "operations"],
    ) -> None:
        self._graph = graph
        self._access = access
        self._operation_s = operation_s
        self._cuts: dict[Hashable, Cut] = {}
        self._names = graph.recording.timeline.modules
        self._spans = _spans(graph)

    def candidate(self, region: CheckpointRegion) -> Candidate | None:
        """Describe a region; None: it would free nothing, or cannot be repeated."""
        spans = self._spans.get(region.module, ())
        if not spans or any(last - first > MAX_OPERATIONS for first, last in spans):
            return None
        may_repeat = self._may_repeat(region)
        found = [repeats(self._graph, self._access, span, may_repeat, self._cut) for span in spans]
        # Only the first call of all does not know yet what need not be kept.
        later = [each and replace(each, first_call_bytes=0) for each in found[1:]]
        present = tuple(each for each in [*found[:1], *later] if each is not None)
        if not present:
            return None
        seconds = sum(float(self._operation_s[each.operations].sum()) for each in present)
        return Candidate(region, spans, present, seconds)

    def all(self) -> Iterator[Candidate]:
        """List the regions worth a look, outer modules before their parts."""
        for module in self._spans:
            if not module:
                continue
            for region in self._variants(module):
                candidate = self.candidate(region)
                if candidate is not None:
                    yield candidate

    def _variants(self, module: str) -> Iterator[CheckpointRegion]:
        """From all products kept to all repeated."""
        kinds = self._products(module)
        for chosen in _subsets(len(kinds)):
            if len(chosen) < len(kinds):
                repeated = tuple(name for kind in chosen for name in kinds[kind])
                yield CheckpointRegion(module, "products", repeated)
        yield CheckpointRegion(module)

    def _products(self, module: str) -> list[list[str]]:
        """Submodules without parts that compute products, by results per time of computing.

        The same part of several layers stands together.
        """
        made: Counter[str] = Counter()
        spent: Counter[str] = Counter()
        alike: dict[str, list[str]] = {}
        prefix = f"{module}."
        for name, spans in self._spans.items():
            if not name.startswith(prefix) or self._has_parts(name):
                continue
            numbers = [number for span in spans for number in self._products_in(span)]
            if numbers:
                within = name.removeprefix(prefix)
                kind = _LAYER_NUMBER.sub("#.", within)
                alike.setdefault(kind, []).append(within)
                made[kind] += sum(self._made_bytes(number) for number in numbers)
                # Whole nanoseconds, so that counts stay counts.
                spent[kind] += round(float(self._operation_s[numbers].sum()) * 1e9)
        ranked = sorted(alike, key=lambda kind: -made[kind] / max(spent[kind], 1))
        return [alike[kind] for kind in ranked[:_MAX_PRODUCTS]]

    def _products_in(self, span: tuple[int, int]) -> list[int]:
        first, last = span
        found: list[int] = (np.flatnonzero(self._graph.operations.is_product[first:last])).tolist()
        return [first + number for number in found]

    def _made_bytes(self, operation: int) -> int:
        sizes = self._access.blocks.size_bytes
        return sum(int(sizes[block]) for block in self._access.makes.get(operation, []))

    def _has_parts(self, name: str) -> bool:
        prefix = f"{name}."
        return any(other.startswith(prefix) for other in self._spans)

    def _may_repeat(self, region: CheckpointRegion) -> Bool[np.ndarray, "operations"]:
        operations = self._graph.operations
        may = operations.is_repeatable.copy()
        if region.keep == "nothing":
            return may
        may &= ~operations.is_product
        for name in region.recompute:
            for first, last in self._spans.get(f"{region.module}.{name}", ()):
                may[first:last] = operations.is_repeatable[first:last]
        return may

    def _cut(
        self,
        operations: Sequence[ForwardOperation],
        kept_bytes: Sequence[int | None],
        needed: Sequence[int],
    ) -> Cut:
        key = (
            tuple((e.reads, e.makes, e.moved_bytes, e.repeatable) for e in operations),
            tuple(kept_bytes),
            tuple(needed),
        )
        if key not in self._cuts:
            self._cuts[key] = cheapest_cut(operations, kept_bytes, needed)
        return self._cuts[key]


def _subsets(n_kinds: int) -> Iterator[tuple[int, ...]]:
    """All choices among a few, of many only the first ones."""
    if n_kinds <= _MAX_FREE:
        for size in range(n_kinds + 1):
            yield from combinations(range(n_kinds), size)
    else:
        yield from (tuple(range(size)) for size in range(n_kinds + 1))


def _spans(graph: StepGraph) -> Mapping[str, tuple[tuple[int, int], ...]]:
    names = graph.recording.timeline.modules
    spans: dict[str, list[tuple[int, int]]] = {}
    for module, first, last in zip(
        graph.calls.module.tolist(),
        graph.calls.first_operation.tolist(),
        graph.calls.last_operation.tolist(),
        strict=True,
    ):
        if last > first:
            spans.setdefault(names[module], []).append((first, last))
    return {name: tuple(each) for name, each in spans.items()}
