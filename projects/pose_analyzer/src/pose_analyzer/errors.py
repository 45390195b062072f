"""Errors of the pose analyzer: structured fields, one message that says what to do next."""

from uuid import UUID

from shared_utils.errors import ProjectError


class PoseAnalyzerError(ProjectError):
    """Root of this package's errors."""


class UnreadableSourceError(PoseAnalyzerError):
    """A video or image that cannot be analysed at all."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason


class NotAVideoError(UnreadableSourceError):
    """A file the service was asked to read as a stream, and cannot."""


class ModelUnavailableError(PoseAnalyzerError):
    """A model file that is neither here nor to be had."""

    def __init__(self, model: str, remedy: str) -> None:
        super().__init__(f"Model {model} is not available. {remedy}")
        self.model = model
        self.remedy = remedy


class VoiceUnavailableError(PoseAnalyzerError):
    """A voice that cannot speak here."""

    def __init__(self, voice: str, remedy: str) -> None:
        super().__init__(f"The voice {voice} is not available. {remedy}")
        self.voice = voice
        self.remedy = remedy


class ClipUnavailableError(PoseAnalyzerError):
    """A sample clip that is neither here nor to be had."""

    def __init__(self, clip: str, remedy: str) -> None:
        super().__init__(f"Clip {clip} is not available. {remedy}")
        self.clip = clip
        self.remedy = remedy


class UnknownNameError(PoseAnalyzerError):
    """A name that is not in a list of known ones (detector, exercise, model)."""

    def __init__(self, kind: str, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"Unknown {kind} {name!r}. Known: {', '.join(known)}.")
        self.kind = kind
        self.name = name
        self.known = known


class InvalidExerciseError(PoseAnalyzerError):
    """An exercise file that does not describe an exercise."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class InvalidFormModelError(PoseAnalyzerError):
    """A file that holds no form models of this version."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}. Write it anew with scripts/train_form_models.py.")
        self.path = path
        self.reason = reason


class InvalidReferenceError(PoseAnalyzerError):
    """A reference file that does not describe a reference, or a reference that cannot be made."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason


class InvalidChunkFileError(PoseAnalyzerError):
    """A stored chunk, or plan of chunks, that is not one of this version."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Not a chunk file of this version: {reason}. Analyse the video anew.")
        self.reason = reason


class InvalidFormFileError(PoseAnalyzerError):
    """A file of faults or of a coach's texts that is not one."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class OutputFailedError(PoseAnalyzerError):
    """Results that could not be written."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"Cannot write {path}: {reason}. Name another folder with --out.")
        self.path = path
        self.reason = reason


class BackendFailedError(PoseAnalyzerError):
    """A detector that could not be started or broke while running."""

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(f"Detector {backend} failed: {reason}")
        self.backend = backend
        self.reason = reason


class UnknownStreamError(PoseAnalyzerError):
    """A stream that was never started, has ended, or was left alone for too long."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(f"There is no stream {stream_id}. Start one with POST /stream/start.")
        self.stream_id = stream_id


class NoCapacityError(PoseAnalyzerError):
    """A stream for which there is no room at present."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class SourceNotFoundError(PoseAnalyzerError):
    """A file the service might read for its clients, but that is not there."""

    def __init__(self, source: str) -> None:
        super().__init__(
            f"There is no file {source!r} in the folders the service may read. Name one by its path"
            " within such a folder."
        )
        self.source = source


class SourceNotAllowedError(PoseAnalyzerError):
    """A file or camera the service may not read for its clients."""

    def __init__(self, source: str) -> None:
        super().__init__(
            f"The service may not read {source!r}. Whoever runs it can allow a folder or a "
            "camera's address in POSE_ALLOWED_SOURCES."
        )
        self.source = source


class UnknownAthleteError(PoseAnalyzerError):
    """An athlete nobody has entered, or whose data was deleted."""

    def __init__(self, athlete_id: UUID) -> None:
        super().__init__(f"There is no athlete {athlete_id}. GET /athletes lists them.")
        self.athlete_id = athlete_id


class UnknownSessionError(PoseAnalyzerError):
    """A session that was never recorded, or was deleted."""

    def __init__(self, session_id: UUID) -> None:
        super().__init__(f"There is no session {session_id}. GET /sessions lists them.")
        self.session_id = session_id


class NothingThereError(PoseAnalyzerError):
    """A part of a session in which there is nothing of the kind."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"There is no {what} in it. {remedy}")
        self.what = what
        self.remedy = remedy


class TooMuchAskedError(PoseAnalyzerError):
    """More of a session than one answer may hold."""

    def __init__(self, what: str, most: int, remedy: str) -> None:
        super().__init__(f"That would be more than {most} {what}. {remedy}")
        self.what = what
        self.most = most
        self.remedy = remedy


class DatabaseUnavailableError(PoseAnalyzerError):
    """A database that cannot be reached or started at present."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"The database {where} is not available: {reason}")
        self.where = where
        self.reason = reason


class InvalidDatabaseUrlError(PoseAnalyzerError):
    """A DATABASE_URL that names no PostgreSQL server."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"DATABASE_URL is wrong: {reason}. Write postgresql://USER:PASSWORD@HOST:PORT/NAME, "
            "with special characters of the password as %XX; or leave it out, and the service "
            "starts a database of its own."
        )
        self.reason = reason


class SchemaVersionError(PoseAnalyzerError):
    """Tables of another version than this program works with."""

    def __init__(self, found: str | None, wanted: str, remedy: str) -> None:
        super().__init__(
            f"The database's tables are of version {found or 'none'}, this program works with "
            f"{wanted}. {remedy}"
        )
        self.found = found
        self.wanted = wanted
        self.remedy = remedy


class UnknownJobError(PoseAnalyzerError):
    """A job that is not there."""

    def __init__(self, job_id: object) -> None:
        super().__init__(f"There is no job {job_id}; GET /jobs lists them.")
        self.job_id = str(job_id)


class ResultNotReadyError(PoseAnalyzerError):
    """A result that has not been made, or was not asked for."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"There is no {what} yet. {remedy}")
        self.what = what
        self.remedy = remedy


class GpuWorkersDisabledError(PoseAnalyzerError):
    """A job for workers with a GPU, where the settings allow none."""

    def __init__(self) -> None:
        super().__init__(
            "Workers with a GPU are switched off here (GPU_PROCESSING_ENABLED); "
            "ask for deep_mode cpu or auto."
        )
