"""What a job's owner chose, as it is stored with the job."""

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from pose_analyzer.exercises import AUTO


class JobOptions(BaseModel):
    """How a video is analysed. Stored as JSON; every worker reads the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exercise: str = AUTO
    detector: str
    """A model's own name, so that all workers use the same."""
    sample_fps: PositiveFloat
    max_width_px: PositiveInt
    """Pictures are scaled down to it before people are looked for in them."""
    chunk_s: PositiveFloat
    reference: str | None = Field(None, max_length=64)
    """What form is compared with; None: the general reference of the exercise."""
    language: str = "en"
    overlay: bool = False
    """Whether the video is written again with the skeletons in it."""
