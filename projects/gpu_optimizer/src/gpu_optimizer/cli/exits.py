"""How commands end: the table from class of error to exit code."""

from typing import ClassVar, Final

from gpu_optimizer.allocator.config import InvalidAllocatorSettingError
from gpu_optimizer.budgets import InvalidBudgetError
from gpu_optimizer.cli.output import OutputFailedError
from gpu_optimizer.errors import InvalidModelError, UnknownNameError
from gpu_optimizer.machines.registry import InvalidMachineFileError
from gpu_optimizer.plans import InvalidPlanError
from gpu_optimizer.quantization.errors import InvalidTextError
from gpu_optimizer.snapshots.plain_pickle import InvalidSnapshotError
from shared_utils.errors import InvalidSettingError, ProjectError
from shared_utils.exits import ExitCode, ReportingGroup

CANNOT_FIT: Final = 3
"""No plan keeps a run within its budget: an answer, not a failure."""


class Commands(ReportingGroup):
    """The commands of this service."""

    exit_codes: ClassVar = {
        InvalidAllocatorSettingError: ExitCode.UNUSABLE,
        InvalidBudgetError: ExitCode.UNUSABLE,
        InvalidMachineFileError: ExitCode.UNUSABLE,
        InvalidModelError: ExitCode.UNUSABLE,
        InvalidPlanError: ExitCode.UNUSABLE,
        InvalidSettingError: ExitCode.UNUSABLE,
        InvalidSnapshotError: ExitCode.UNUSABLE,
        InvalidTextError: ExitCode.UNUSABLE,
        OutputFailedError: ExitCode.UNUSABLE,
        UnknownNameError: ExitCode.UNUSABLE,
        ProjectError: ExitCode.FAILED,
    }
