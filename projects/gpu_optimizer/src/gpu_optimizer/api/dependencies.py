"""What routes ask for; HTTPConnection, so that WebSocket routes can ask for the same."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from gpu_optimizer.dashboard import PrometheusMetrics
from gpu_optimizer.jobs.store import JobStore
from gpu_optimizer.settings import Settings


def _settings(connection: HTTPConnection) -> Settings:
    settings: Settings = connection.state.settings
    return settings


def _jobs(connection: HTTPConnection) -> JobStore:
    jobs: JobStore = connection.state.jobs
    return jobs


def _metrics(connection: HTTPConnection) -> PrometheusMetrics:
    metrics: PrometheusMetrics = connection.state.metrics
    return metrics


SettingsDep = Annotated[Settings, Depends(_settings)]
JobsDep = Annotated[JobStore, Depends(_jobs)]
MetricsDep = Annotated[PrometheusMetrics, Depends(_metrics)]
