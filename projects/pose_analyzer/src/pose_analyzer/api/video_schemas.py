"""What the routes about uploaded videos take and answer."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pose_analyzer.api.schemas import Answer, MaybeFloat
from pose_analyzer.storage.models import DeepMode, VideoState
from pose_analyzer.storage.videos import JobRequest, VideoRecord
from pose_analyzer.video_uploads import Announcement

# Names are checked by the rules for uploads, which say more; this only bounds them.
_Name = Annotated[str, Field(max_length=4096)]
_Word = Annotated[str, Field(max_length=64)]


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VideoAnnouncement(_Asked):
    """A video that is going to be uploaded in parts."""

    filename: _Name
    """Without folders; told again, but never used as a path."""
    size_bytes: int = Field(gt=0, lt=2**63)
    sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{64}$")
    """Of the whole file; what arrives must have it."""
    content_type: _Name | None = None
    athlete_id: UUID | None = None
    exercise: _Word | None = None
    """Of the session; by default it is recognised."""
    started_at: AwareDatetime | None = None
    """When it was recorded; by default now."""
    direct: bool = True
    """Send parts to S3 itself where videos are kept there; false: through the service."""

    def told(self) -> Announcement:
        """The same for the application."""
        return Announcement(**self.model_dump())


class AnalysisWishes(_Asked):
    """How an uploaded video is to be analysed."""

    deep_mode: DeepMode = DeepMode.AUTO
    """Which workers may do it."""
    exercise: _Word | None = None
    """By default the one that was announced, else it is recognised."""
    detector: _Word | None = None
    reference: _Word | None = None
    """What form is compared with; by default the general reference of the exercise."""
    language: _Word | None = None
    """Of the report."""
    overlay: bool = False
    """Also draw what was found into the video."""
    sample_fps: float | None = Field(None, gt=0.0, le=1000.0)
    max_width_px: int | None = Field(None, ge=64, le=8192)

    def request(self, announced_exercise: str | None) -> JobRequest:
        """The same for the application; what was not asked for is left out."""
        asked = set(AnalysisWishes.model_fields) - {"deep_mode"}
        wanted: dict[str, Any] = self.model_dump(include=asked, exclude_none=True)
        if announced_exercise is not None:
            wanted.setdefault("exercise", announced_exercise)
        return JobRequest(self.deep_mode, wanted)


class WholeVideo(AnalysisWishes):
    """The fields beside the file of a video that is sent as one form."""

    sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{64}$")
    athlete_id: UUID | None = None
    started_at: AwareDatetime | None = None

    def told(self, filename: str, content_type: str | None, size_bytes: int) -> Announcement:
        """What was told of the video."""
        return Announcement(
            filename=filename,
            size_bytes=size_bytes,
            sha256=self.sha256,
            content_type=content_type,
            athlete_id=self.athlete_id,
            exercise=self.exercise,
            started_at=self.started_at,
        )

    def wishes(self) -> AnalysisWishes:
        """What was told of its analysis."""
        return AnalysisWishes(**self.model_dump(include=set(AnalysisWishes.model_fields)))


class UploadPart(Answer):
    """One part of an upload."""

    number: int
    size_bytes: int
    """It must have exactly so many."""
    stored: bool
    url: str | None
    """Where to PUT it; null if it is there. A path is one of the service."""


class VideoUpload(Answer):
    """What is there of an upload, and where the rest goes."""

    part_bytes: int
    """Of all parts but the last."""
    expires_at: datetime
    """Until when the addresses hold; `GET /videos/{video_id}` gives new ones."""
    parts: list[UploadPart]


class VideoInfo(Answer):
    """An uploaded video."""

    video_id: UUID
    session_id: UUID
    filename: str
    state: VideoState
    size_bytes: int
    sha256: str | None
    duration_s: MaybeFloat
    """Known once it is stored."""
    created_at: datetime
    athlete_id: UUID | None
    exercise: str | None
    job_id: UUID | None
    """Of its latest analysis."""
    refusal: str | None
    """Why it was not kept, if it was refused."""
    upload: VideoUpload | None = None
    """While it is being uploaded; not in lists."""

    @classmethod
    def of(cls, video: VideoRecord, upload: VideoUpload | None = None) -> "VideoInfo":
        """Put a row into words."""
        told = {name: getattr(video, name) for name in cls.model_fields if name != "upload"}
        return cls(**told, upload=upload)


class VideoList(Answer):
    """Videos, the latest first."""

    videos: list[VideoInfo]
