"""Settings of the memory optimizer, read from ``OPTIMIZER_…`` variables.

| variable | meaning |
| --- | --- |
| OPTIMIZER_MAX_UPLOAD_BYTES | largest model description the service accepts |
| OPTIMIZER_MAX_JOBS, OPTIMIZER_MAX_WAITING_JOBS | profiles at once, and how many may wait |
| OPTIMIZER_JOBS_KEPT | how many finished jobs can still be asked for |
| OPTIMIZER_JOB_MEMORY_BYTES, OPTIMIZER_JOB_WALL_S | what one job may use before it is stopped |
| OPTIMIZER_QUICK_ANSWER_S | for so long a request waits for its result before it becomes a job |
"""

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic_settings import SettingsConfigDict

from shared_utils.settings import ProjectSettings
from shared_utils.units import BYTES_PER_MIB


class Settings(ProjectSettings):
    """Everything a user may set about the memory optimizer."""

    model_config = SettingsConfigDict(env_prefix="OPTIMIZER_")

    max_upload_bytes: PositiveInt = 64 * BYTES_PER_MIB
    max_jobs: PositiveInt = 2
    max_waiting_jobs: PositiveInt = 16
    jobs_kept: PositiveInt = 200
    job_memory_bytes: PositiveInt = 8 * 1024 * BYTES_PER_MIB
    job_wall_s: PositiveFloat = 300.0
    quick_answer_s: NonNegativeFloat = 2.0
