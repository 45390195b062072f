"""Errors of the pose analyzer: structured fields, one message that says what to do next."""

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
