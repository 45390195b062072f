"""Machines from config/machines.yml, checked when loaded, and any GPU by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gpu_optimizer.errors import GpuOptimizerError, UnknownNameError
from gpu_optimizer.machines.gpus import find_gpu, gpu_machine, known_gpus, usual_reserved_bytes
from gpu_optimizer.types import Machine
from shared_utils.settings import checkout_dir

Role = Literal["main", "development", "inference", "testing", "training", "optimization", "backup"]
_Generation = Annotated[int, Field(ge=3, le=99)]
_Revision = Annotated[int, Field(ge=0, le=9)]


class InvalidMachineFileError(GpuOptimizerError):
    """A file of machines that is not readable or contradicts itself."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


@dataclass(frozen=True, slots=True)
class MachineEntry:
    """A machine and what it is used for."""

    machine: Machine
    roles: tuple[Role, ...]
    power_limit_w: float | None
    """None: the card's own."""
    batch_limit: int | None
    """Largest batch it should be asked for; None: what fits."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu: str = Field(min_length=1, max_length=64)
    memory_mib: int | None = Field(None, gt=0)
    compute_capability: tuple[_Generation, _Revision] | None = None
    usable_gib: float | None = Field(None, gt=0, allow_inf_nan=False)
    roles: tuple[Role, ...] = Field(min_length=1)
    power_limit_w: float | None = Field(None, gt=0, allow_inf_nan=False)
    batch_limit: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> "_Entry":
        machine = self.machine("")
        if machine.reserved_bytes < 0:
            raise ValueError("usable_gib exceeds the card's memory")
        return self

    def machine(self, name: str) -> Machine:
        """Facts of the card, from the file where given, else from the table of GPUs."""
        if self.memory_mib is not None and self.compute_capability is not None:
            total_bytes, capability = self.memory_mib << 20, self.compute_capability
        else:
            try:
                known = find_gpu(self.gpu)
            except UnknownNameError as error:
                raise ValueError(f"{error} Or give memory_mib and compute_capability.") from error
            total_bytes = known.total_bytes if self.memory_mib is None else self.memory_mib << 20
            capability = self.compute_capability or known.compute_capability
        if self.usable_gib is None:
            reserved_bytes = usual_reserved_bytes(total_bytes)
        else:
            reserved_bytes = total_bytes - round(self.usable_gib * 2**30)
        return Machine(name, self.gpu, total_bytes, reserved_bytes, capability)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    machines: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], _Entry] = Field(
        min_length=1
    )


def default_machines_file() -> Path:
    """``config/machines.yml`` of the checkout; in a wheel the copy inside the package."""
    checkout = checkout_dir(__file__)
    if checkout is not None:
        return checkout / "config" / "machines.yml"
    return Path(__file__).parents[1] / "data" / "machines.yml"


def load_machines(path: Path) -> dict[str, MachineEntry]:
    """Machines of a file by name.

    Raises
    ------
    InvalidMachineFileError
        If it cannot be read, is not YAML or does not describe machines.
    """
    try:
        file = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidMachineFileError(str(path), f"not readable as YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise InvalidMachineFileError(str(path), f"{where}: {first['msg']}") from error
    return {
        name: MachineEntry(entry.machine(name), entry.roles, entry.power_limit_w, entry.batch_limit)
        for name, entry in file.machines.items()
    }


def find_machine(name: str, machines: Mapping[str, MachineEntry]) -> Machine:
    """Machine by its name in the file, or a GPU by its own name.

    Raises
    ------
    UnknownNameError
        If neither has this name.
    """
    if name in machines:
        return machines[name].machine
    try:
        return gpu_machine(name)
    except UnknownNameError as error:
        known = (*machines, *(gpu.name for gpu in known_gpus()))
        raise UnknownNameError("machine or GPU", name[:64], known) from error
