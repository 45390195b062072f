"""Faults and what a coach says about them as YAML files, checked when loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pose_analyzer.errors import InvalidFormFileError, UnknownNameError
from pose_analyzer.fault_measures import MEASURES
from pose_analyzer.form_coach import CoachTexts
from pose_analyzer.form_faults import FaultRule, Part, Statistic

DEFAULT_LANGUAGE: Final = "en"
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
_Text = Annotated[str, Field(min_length=1, max_length=200)]
_Read = TypeVar("_Read", bound=BaseModel)


def _known_measure(name: str) -> str:
    if name not in MEASURES:
        raise ValueError(f"unknown measure {name!r}; known: {', '.join(MEASURES)}")
    return name


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RuleSpec(_Strict):
    """A bound on one measure; see `form_faults.FaultRule`."""

    exercises: tuple[_Name, ...] = Field(min_length=1)
    joint: _Name
    measure: Annotated[str, BeforeValidator(_known_measure)]
    part: Part
    statistic: Statistic
    mild: float = Field(allow_inf_nan=False)
    clear: float = Field(allow_inf_nan=False)
    versus: Literal["other_side"] | None = None

    @model_validator(mode="after")
    def _apart(self) -> "RuleSpec":
        if self.mild == self.clear:
            raise ValueError("mild and clear must differ")
        return self


class FaultSpec(_Strict):
    """One named fault, why it is one, and how it shows."""

    name: _Name
    title: _Text
    priority: int = Field(ge=1, le=100)
    source: str = Field(min_length=10)
    """Literature or guideline."""
    rules: tuple[RuleSpec, ...] = Field(min_length=1)

    def rules_for(self, exercise: str) -> tuple[FaultRule, ...]:
        """Those of one exercise."""
        return tuple(
            FaultRule(
                fault=self.name,
                joint=rule.joint,
                measure=rule.measure,
                part=rule.part,
                statistic=rule.statistic,
                mild=rule.mild,
                clear=rule.clear,
                priority=self.priority,
                versus=rule.versus,
            )
            for rule in self.rules
            if exercise in rule.exercises
        )


class _CoachingFile(_Strict):
    language: Annotated[str, Field(pattern=r"^[a-z]{2}(-[A-Z]{2})?$")]
    corrections: dict[_Name, _Text]
    praise: dict[_Name, _Text]
    sides: dict[str, _Text]


def load_faults(folder: Path) -> dict[str, FaultSpec]:
    """All faults of a folder by name.

    Raises
    ------
    InvalidFormFileError
        If a file is invalid, or two describe the same fault.
    """
    faults: dict[str, FaultSpec] = {}
    for path in sorted(folder.glob("*.yml")):
        fault = _read(path, FaultSpec)
        if fault.name in faults:
            raise InvalidFormFileError(str(path), f"{fault.name} is described twice")
        faults[fault.name] = fault
    return faults


def rules_for(faults: Mapping[str, FaultSpec], exercise: str) -> tuple[FaultRule, ...]:
    """What to look for in an exercise."""
    return tuple(rule for fault in faults.values() for rule in fault.rules_for(exercise))


def load_coaching(folder: Path) -> dict[str, CoachTexts]:
    """Texts by language.

    Raises
    ------
    InvalidFormFileError
        If a file is invalid, or two are of the same language.
    """
    texts: dict[str, CoachTexts] = {}
    for path in sorted(folder.glob("*.yml")):
        read = _read(path, _CoachingFile)
        if read.language in texts:
            raise InvalidFormFileError(str(path), f"{read.language} is described twice")
        texts[read.language] = CoachTexts(read.corrections, read.praise, read.sides)
    return texts


def select_language(texts: Mapping[str, CoachTexts], language: str) -> CoachTexts:
    """Texts of a language.

    Raises
    ------
    UnknownNameError
        If there are none.
    """
    if language not in texts:
        raise UnknownNameError("language", language, tuple(texts))
    return texts[language]


def _read(path: Path, kind: type[_Read]) -> _Read:
    try:
        return kind.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidFormFileError(str(path), f"cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise InvalidFormFileError(str(path), f"{where}: {first['msg']}") from error
