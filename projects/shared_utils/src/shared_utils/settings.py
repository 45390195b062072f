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
    prefix = kind.model_config.get("env_prefix", "")
    try:
        return kind()
    except ValidationError as error:
        raise InvalidSettingError(
            tuple(
                f"{prefix}{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}"
                for problem in error.errors()
            )
        ) from error


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
