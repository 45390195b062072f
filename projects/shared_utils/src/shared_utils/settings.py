"""What the settings of every service have in common."""

import os
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared_utils.errors import InvalidSettingError


class ProjectSettings(BaseSettings):
    """Frozen settings, read once from the environment in a shell and passed down.

    A misspelt keyword argument is an error; an empty variable counts as not set.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True)


SettingsT = TypeVar("SettingsT", bound=ProjectSettings)


def read_settings(kind: type[SettingsT]) -> SettingsT:
    """Read the environment, for shells.

    Raises
    ------
    InvalidSettingError
        Names each variable that is wrong and what it should be.
    """
    try:
        return kind()
    except ValidationError as error:
        # What was wrong may be a secret: neither values nor the error that quotes them go on.
        problems = tuple(_told(kind, each["loc"], each["msg"]) for each in error.errors())
        raise InvalidSettingError(problems) from None


def _told(kind: type[ProjectSettings], location: tuple[int | str, ...], message: str) -> str:
    """One problem, under the name of the variable that has it."""
    named = {field.validation_alias for field in kind.model_fields.values()}
    first, *within = map(str, location)
    variable = (
        first if first in named else f"{kind.model_config.get('env_prefix', '')}{first.upper()}"
    )
    return ": ".join((variable, *within, message))


def _split_search_path(value: object) -> object:
    if isinstance(value, str):
        return tuple(Path(part) for part in value.split(os.pathsep) if part)
    return value


SearchPath = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split_search_path)]
"""Folders in one variable, separated as in PATH."""


def checkout_dir(package_file: str) -> Path | None:
    """Root of the checkout a module runs from; None when it was installed from a wheel.

    Parameters
    ----------
    package_file
        The ``__file__`` of the asking module.
    """
    for folder in Path(package_file).resolve().parents:
        if (folder / "pixi.toml").is_file() and (folder / "projects").is_dir():
            return folder
    return None
