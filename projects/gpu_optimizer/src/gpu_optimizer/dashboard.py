"""What the service tells of itself and of its GPUs: Prometheus metrics and live telemetry."""

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gpu_optimizer.jobs.store import Job
from shared_utils.gpu import GpuActivity

ReadActivity = Callable[[], tuple[GpuActivity, ...]]

_JOB_BUCKETS_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


class GpuCollector(Collector):
    """Reads the GPUs when Prometheus asks.

    Parameters
    ----------
    read
        How they are read.
    """

    def __init__(self, read: ReadActivity) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """What they are doing now; what the driver does not tell is left out."""
        used = GaugeMetricFamily(
            "vram_used_bytes", "GPU memory in use, by all processes.", labels=["gpu"]
        )
        total = GaugeMetricFamily("vram_total_bytes", "GPU memory there is.", labels=["gpu"])
        busy = GaugeMetricFamily(
            "gpu_utilisation_ratio", "Part of the time in which a kernel ran.", labels=["gpu"]
        )
        warm = GaugeMetricFamily("gpu_temperature_celsius", "Of the GPU.", labels=["gpu"])
        power = GaugeMetricFamily("gpu_power_watts", "Drawn by the board.", labels=["gpu"])
        for one in self._read():
            gpu = str(one.gpu.index)
            for family, value in (
                (used, one.gpu.used_bytes),
                (total, one.gpu.total_bytes),
                (busy, one.utilisation_ratio),
                (warm, one.temperature_c),
                (power, one.power_w),
            ):
                if value is not None:
                    family.add_metric([gpu], value)
        yield from (used, total, busy, warm, power)


class PrometheusMetrics:
    """Metrics of one service; each instance has a registry of its own.

    Parameters
    ----------
    read
        How the GPUs are read.
    """

    def __init__(self, read: ReadActivity) -> None:
        self.registry = CollectorRegistry()
        self._jobs = Counter(
            "vram_jobs",
            "Ended jobs by kind and outcome.",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self._durations = Histogram(
            "vram_job_seconds",
            "How long jobs took.",
            ["kind"],
            buckets=_JOB_BUCKETS_S,
            registry=self.registry,
        )
        self._waiting = Gauge(
            "vram_unfinished_jobs", "Jobs that run or wait.", registry=self.registry
        )
        self.registry.register(GpuCollector(read))
        ProcessCollector(registry=self.registry)

    def job_ended(self, job: Job) -> None:
        """Count a job that has ended."""
        if job.result is None:
            return
        failure = job.result.failure
        outcome = "done" if failure is None else failure.reason.value
        self._jobs.labels(job.kind, outcome).inc()
        self._durations.labels(job.kind).observe(job.result.wall_s)

    def unfinished(self, n_jobs: int) -> None:
        """Tell how many jobs run or wait."""
        self._waiting.set(n_jobs)
