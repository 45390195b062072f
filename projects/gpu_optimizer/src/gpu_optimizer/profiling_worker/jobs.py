"""Which jobs there are: kind -> ``module:function`` inside this package, imported by the child."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

JOBS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "describe": "gpu_optimizer.model_descriptions:describe_upload",
        "predict": "gpu_optimizer.service_jobs:predict_job",
        "profile": "gpu_optimizer.service_jobs:profile_job",
    }
)
