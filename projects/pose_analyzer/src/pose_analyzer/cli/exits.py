"""How commands end: the table from class of error to exit code."""

from typing import ClassVar

from pose_analyzer.errors import (
    InvalidExerciseError,
    InvalidFormFileError,
    InvalidFormModelError,
    InvalidReferenceError,
    OutputFailedError,
    UnknownNameError,
    UnreadableSourceError,
)
from shared_utils.errors import InvalidSettingError, ProjectError
from shared_utils.exits import ExitCode, ReportingGroup


class Commands(ReportingGroup):
    """The commands of this service."""

    exit_codes: ClassVar = {
        UnreadableSourceError: ExitCode.UNUSABLE,
        OutputFailedError: ExitCode.UNUSABLE,
        UnknownNameError: ExitCode.UNUSABLE,
        InvalidExerciseError: ExitCode.UNUSABLE,
        InvalidFormFileError: ExitCode.UNUSABLE,
        InvalidFormModelError: ExitCode.UNUSABLE,
        InvalidReferenceError: ExitCode.UNUSABLE,
        InvalidSettingError: ExitCode.UNUSABLE,
        ProjectError: ExitCode.FAILED,
    }
