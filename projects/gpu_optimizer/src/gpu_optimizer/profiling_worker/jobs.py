"""Which jobs there are: kind -> ``module:function`` inside this package, imported by the child."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

JOBS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "describe": "gpu_optimizer.jobs.descriptions:describe_upload",
        "optimize": "gpu_optimizer.jobs.optimizing:optimize_job",
        "predict": "gpu_optimizer.jobs.service:predict_job",
        "profile": "gpu_optimizer.jobs.service:profile_job",
    }
)
