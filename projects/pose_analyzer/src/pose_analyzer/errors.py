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
