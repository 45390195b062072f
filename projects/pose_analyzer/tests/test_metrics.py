"""What Prometheus is told."""

import pytest
from prometheus_client import Histogram as ReferenceHistogram
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from pose_analyzer.metrics import Distribution, Histogram, PrometheusMetrics
from pose_analyzer.stream_types import DropCause, StreamState


def samples(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.mark.parametrize("values", [[], [0.0, 0.1, 0.1000001, 5.0, 1e9], [1.0] * 7])
def test_distributions_are_written_as_the_library_writes_its_own(values: list[float]) -> None:
    bounds = (0.1, 1.0, 2.5)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    distribution = Distribution(bounds)
    ours.register(Histogram("h_seconds", "Text.", {"a": distribution}, label="kind"))
    reference = ReferenceHistogram(
        "h_seconds", "Text.", ["kind"], buckets=bounds, registry=theirs
    ).labels("a")
    for value in values:
        distribution.observe(value)
        reference.observe(value)
    assert samples(ours) == samples(theirs)


def test_frames_streams_and_actions_are_counted() -> None:
    metrics = PrometheusMetrics()
    metrics.answered({"queue": 0.0001, "decode": 0.002}, 0.01, 2)
    metrics.dropped(DropCause.STALE)
    metrics.batch(3)
    metrics.streams({StreamState.ACTIVE: 4})
    metrics.governed("shed")
    metrics.gpu_memory(3, 8)
    found = samples(metrics.registry)
    assert found["pose_frames_total", (("outcome", "answered"),)] == 1
    assert found["pose_frames_total", (("outcome", "stale"),)] == 1
    assert found["pose_frame_latency_seconds_count", ()] == 1
    assert found["pose_stage_seconds_sum", (("stage", "decode"),)] == 0.002
    assert found["pose_batch_frames_bucket", (("le", "4.0"),)] == 1
    assert found["pose_repetitions_total", ()] == 2
    assert found["pose_streams", (("state", "active"),)] == 4
    assert found["pose_streams", (("state", "shed"),)] == 0
    assert found["pose_governor_actions_total", (("action", "shed"),)] == 1
    assert found["pose_gpu_memory_used_bytes", ()] == 3
