"""Prometheus metrics of the service, in base units, with bounded labels."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pose_analyzer.storage.ingestion import IngestionStats
from pose_analyzer.stream_types import DropCause, StreamState

# From a model's time on a GPU to what nobody calls live any more.
_LATENCY_BUCKETS_S: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15,
    0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
_BATCH_BUCKETS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_STAGES: Final = ("queue", "decode", "infer", "postprocess")
_ACTIONS: Final = ("shrink", "grow", "shed", "resume", "refuse")


@dataclass(slots=True)
class Distribution:
    """Counts by bucket. Only the event loop's thread observes, so it needs no lock."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value; a tenth of the time `prometheus_client.Histogram` takes."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus wants them."""
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class Histogram(Collector):
    """Distributions under one name, told apart by at most one label."""

    def __init__(
        self, name: str, text: str, by_label: Mapping[str, Distribution], label: str | None = None
    ) -> None:
        self._name = name
        self._text = text
        self._by_label = by_label
        self._label = label

    def collect(self) -> Iterator[Metric]:
        """What there is now."""
        labels = [] if self._label is None else [self._label]
        family = HistogramMetricFamily(self._name, self._text, labels=labels)
        for value, distribution in self._by_label.items():
            family.add_metric([value] if labels else [], distribution.buckets(), distribution.total)
        yield family


class IngestionCollector(Collector):
    """How far rows of live streams are on their way to the database."""

    def __init__(self, read: Callable[[], IngestionStats]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """What there is now."""
        stats = self._read()
        yield CounterMetricFamily(
            "pose_store_rows_written", "Person-frames in the database.", stats.n_rows_written
        )
        dropped = CounterMetricFamily(
            "pose_store_rows_dropped", "Person-frames given up, by cause.", labels=["cause"]
        )
        for cause, n_rows in stats.n_dropped.items():
            dropped.add_metric([cause], n_rows)
        yield dropped
        for name, text, value in (
            ("queued_records", "Records that wait in memory.", stats.n_queued),
            ("spilled_bytes", "On disk while the database is away.", stats.n_spilled_bytes),
            ("lag_seconds", "Age of the oldest record not in the database.", stats.lag_s),
        ):
            yield GaugeMetricFamily(f"pose_store_{name}", text, value)


class PrometheusMetrics:
    """Implements `ports.StreamMetrics`; each instance has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        frames = Counter(
            "pose_frames",
            "Frames by outcome: answered, or why not.",
            ["outcome"],
            registry=self.registry,
        )
        self._answered = frames.labels("answered")
        self._dropped = {cause: frames.labels(cause.value) for cause in DropCause}
        self._stages = {stage: Distribution(_LATENCY_BUCKETS_S) for stage in _STAGES}
        self._latency = Distribution(_LATENCY_BUCKETS_S)
        self._batches = Distribution(_BATCH_BUCKETS)
        for histogram in (
            Histogram(
                "pose_stage_seconds",
                "Time of an answered frame by stage.",
                self._stages,
                label="stage",
            ),
            Histogram(
                "pose_frame_latency_seconds",
                "From receiving a frame to its answer.",
                {"": self._latency},
            ),
            Histogram("pose_batch_frames", "Frames in a batch.", {"": self._batches}),
        ):
            self.registry.register(histogram)
        self._repetitions = Counter(
            "pose_repetitions", "Repetitions counted in live streams.", registry=self.registry
        )
        streams = Gauge("pose_streams", "Streams by state.", ["state"], registry=self.registry)
        self._streams = {state: streams.labels(state.value) for state in StreamState}
        governor = Counter(
            "pose_governor_actions",
            "What the governor of GPU memory did.",
            ["action"],
            registry=self.registry,
        )
        self._governor = {action: governor.labels(action) for action in _ACTIONS}
        self._gpu_used = Gauge(
            "pose_gpu_memory_used_bytes",
            "GPU memory in use, by all processes.",
            registry=self.registry,
        )
        self._gpu_total = Gauge(
            "pose_gpu_memory_total_bytes", "GPU memory there is.", registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def watch_ingestion(self, read: Callable[[], IngestionStats]) -> None:
        """Tell how rows get to the database, too."""
        self.registry.register(IngestionCollector(read))

    def answered(self, stages_s: dict[str, float], total_s: float, n_new_repetitions: int) -> None:
        """One frame was answered; seconds by stage, and from received to answered."""
        self._answered.inc()
        for stage, duration_s in stages_s.items():
            self._stages[stage].observe(duration_s)
        self._latency.observe(total_s)
        if n_new_repetitions:
            self._repetitions.inc(n_new_repetitions)

    def dropped(self, cause: DropCause) -> None:
        """One frame will get no answer."""
        self._dropped[cause].inc()

    def batch(self, n_frames: int) -> None:
        """A batch was begun."""
        self._batches.observe(float(n_frames))

    def streams(self, by_state: dict[StreamState, int]) -> None:
        """How many streams there are now."""
        for state, gauge in self._streams.items():
            gauge.set(by_state.get(state, 0))

    def governed(self, action: str) -> None:
        """The governor acted: ``shrink``, ``grow``, ``shed``, ``resume`` or ``refuse``."""
        self._governor[action].inc()

    def gpu_memory(self, used_bytes: int, total_bytes: int) -> None:
        """The governor's latest reading."""
        self._gpu_used.set(used_bytes)
        self._gpu_total.set(total_bytes)
