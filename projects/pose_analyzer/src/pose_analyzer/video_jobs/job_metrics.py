"""Prometheus metrics of workers and of their queue, in base units, with bounded labels."""

import math
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pose_analyzer.storage.jobs import QueueDepth

CHUNKS_PER_WORKER: Final = 5
"""Queued chunks for which one worker is wanted; what the number of workers follows."""

_CHUNK_BUCKETS_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_JOB_BUCKETS_S: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_OUTCOMES: Final = ("completed", "retried", "failed", "abandoned")


class WorkerMetrics:
    """What one worker has done.

    Parameters
    ----------
    kind
        ``chunk`` or ``aggregation``: what the worker does, and how its metrics begin.
    """

    def __init__(self, kind: str, registry: CollectorRegistry) -> None:
        buckets = _CHUNK_BUCKETS_S if kind == "chunk" else _JOB_BUCKETS_S
        self._seconds = Histogram(
            f"pose_{kind}_seconds",
            "From claimed to completed.",
            buckets=buckets,
            registry=registry,
        )
        counter = Counter(
            f"pose_{kind}_attempts", "Attempts by outcome.", ["outcome"], registry=registry
        )
        self._outcomes = {outcome: counter.labels(outcome) for outcome in _OUTCOMES}

    def completed(self, seconds: float) -> None:
        """One was done."""
        self._seconds.observe(seconds)
        self._outcomes["completed"].inc()

    def ended(self, outcome: str) -> None:
        """One ended otherwise: ``retried``, ``failed`` for good, or ``abandoned``."""
        self._outcomes[outcome].inc()


class QueueMetrics:
    """What waits in the database, for dashboards and for whoever adds and removes workers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        chunks = Gauge(
            "pose_chunks",
            "Chunks of unfinished jobs by status; failed: of the last day.",
            ["status"],
            registry=registry,
        )
        self._chunks = {name: chunks.labels(name) for name in ("queued", "processing", "failed")}
        self._aggregations = Gauge(
            "pose_waiting_aggregations",
            "Jobs whose chunks are complete and not put together yet.",
            registry=registry,
        )
        self._oldest_s = Gauge(
            "pose_oldest_queued_chunk_seconds",
            "Since when the job of the oldest queued chunk has been there.",
            registry=registry,
        )
        self._wanted = Gauge(
            "pose_chunk_workers_wanted",
            f"Workers for the chunks there are, one for {CHUNKS_PER_WORKER}.",
            registry=registry,
        )

    def depth(self, depth: QueueDepth) -> None:
        """Tell what waits now."""
        self._chunks["queued"].set(depth.queued_chunks)
        self._chunks["processing"].set(depth.processing_chunks)
        self._chunks["failed"].set(depth.failed_chunks)
        self._aggregations.set(depth.waiting_aggregations)
        self._oldest_s.set(depth.oldest_queued_s)
        unfinished = depth.queued_chunks + depth.processing_chunks
        self._wanted.set(math.ceil(unfinished / CHUNKS_PER_WORKER))
