"""Settings of storage and of recorded videos; names without a prefix are shared by the workers.

| variable | meaning |
| --- | --- |
| DATABASE_URL | PostgreSQL server; without it the service starts one of its own |
| POSE_DATA_DIR | folder of that database and of stored files |
| S3_COACH_VIDEOS_BUCKET, AWS_REGION | store files in S3 instead of the data folder |
| S3_ENDPOINT_URL | S3-compatible server other than Amazon's |
| CHUNK_SECONDS, SAMPLE_FPS, MAX_WIDTH | how recorded videos are cut, sampled and scaled |
| GPU_PROCESSING_ENABLED | whether jobs may ask for workers with a GPU |
| APP_SECRET_KEY | signs upload addresses |
| POSE_MAX_VIDEO_BYTES, POSE_MAX_VIDEO_SECONDS | largest and longest video accepted |
| POSE_VIDEO_QUOTA_BYTES | all stored videos together |
| POSE_STORE_FRAMES | whether live streams are written to the database |
| POSE_SPILL_BYTES | frames kept on disk while the database is away |
| POSE_LOCAL_WORKERS | workers for recorded videos that the service starts beside itself |
"""

from pathlib import Path
from typing import Final

import platformdirs
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr
from pydantic_settings import SettingsConfigDict

from pose_analyzer.settings import CHECKOUT_DIR
from shared_utils.settings import ProjectSettings
from shared_utils.units import BYTES_PER_GIB, BYTES_PER_MIB

DEFAULT_CHUNK_S: Final = 30.0
DEFAULT_SAMPLE_FPS: Final = 10.0


def _data_dir() -> Path:
    if CHECKOUT_DIR is not None:
        return CHECKOUT_DIR / "data" / "store"
    return platformdirs.user_data_path("pose_analyzer", appauthor=False)


class StorageSettings(ProjectSettings):
    """Where sessions, videos and results are kept, and how recorded videos are processed."""

    model_config = SettingsConfigDict(env_prefix="POSE_", populate_by_name=True)

    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    data_dir: Path = Field(default_factory=_data_dir)
    s3_bucket: str | None = Field(None, validation_alias="S3_COACH_VIDEOS_BUCKET")
    s3_region: str = Field("us-east-1", validation_alias="AWS_REGION")
    s3_endpoint_url: str | None = Field(None, validation_alias="S3_ENDPOINT_URL")

    chunk_s: PositiveFloat = Field(DEFAULT_CHUNK_S, validation_alias="CHUNK_SECONDS")
    sample_fps: PositiveFloat = Field(DEFAULT_SAMPLE_FPS, validation_alias="SAMPLE_FPS")
    max_width_px: PositiveInt = Field(640, validation_alias="MAX_WIDTH")
    gpu_processing_enabled: bool = Field(True, validation_alias="GPU_PROCESSING_ENABLED")
    app_secret_key: SecretStr | None = Field(None, validation_alias="APP_SECRET_KEY")

    max_video_bytes: PositiveInt = 4 * BYTES_PER_GIB
    max_video_seconds: PositiveFloat = 2 * 3600.0
    video_quota_bytes: PositiveInt = 100 * BYTES_PER_GIB

    store_frames: bool = True
    spill_bytes: PositiveInt = 512 * BYTES_PER_MIB

    local_workers: NonNegativeInt = 1

    def as_environment(self) -> dict[str, str]:
        """The same settings as variables, for processes that are started from this one."""
        variables: dict[str, str] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value is not None:
                alias = field.validation_alias
                variable = alias if isinstance(alias, str) else f"POSE_{name.upper()}"
                secret = isinstance(value, SecretStr)
                variables[variable] = value.get_secret_value() if secret else str(value)
        return variables
