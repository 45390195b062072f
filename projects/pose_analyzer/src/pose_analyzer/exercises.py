"""Exercises as data: one YAML file each, checked when loaded."""

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pose_analyzer.errors import InvalidExerciseError, UnknownNameError
from pose_analyzer.movement_features import FEATURE_NAMES
from pose_analyzer.repetition_evidence import Condition, Statistic, Where
from pose_analyzer.temporal_analyzer import Movement

AUTO = "auto"


def _known_feature(name: str) -> str:
    if name not in FEATURE_NAMES:
        raise ValueError(f"unknown feature {name!r}; known: {', '.join(FEATURE_NAMES)}")
    return name


FeatureName = Annotated[str, BeforeValidator(_known_feature)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ConditionSpec(_Strict):
    """Bounds on one feature; see `temporal_analyzer.Condition`."""

    feature: FeatureName
    at: Where = "full"
    statistic: Statistic = "mean"
    min: float = -math.inf
    max: float = math.inf

    @model_validator(mode="after")
    def _bounded(self) -> "ConditionSpec":
        if not self.min < self.max or (math.isinf(self.min) and math.isinf(self.max)):
            raise ValueError("give min, max or both, min below max")
        return self


class AlternativesSpec(_Strict):
    """Several conditions of which one suffices."""

    any: tuple[ConditionSpec, ...] = Field(min_length=2)


class SignalSpec(_Strict):
    """The feature along which a repetition moves."""

    feature: FeatureName
    start: float
    full: float
    enter_start: float = Field(0.3, ge=0.0, lt=1.0)
    enter_full: float = Field(0.7, gt=0.0, le=1.0)

    @model_validator(mode="after")
    def _ordered(self) -> "SignalSpec":
        if self.start == self.full:
            raise ValueError("start and full must differ")
        if self.enter_start >= self.enter_full:
            raise ValueError("enter_start must lie below enter_full")
        return self


class Exercise(_Strict):
    """One exercise as its YAML file describes it."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    description: str
    first_phase: Literal["eccentric", "concentric"]
    signal: SignalSpec
    min_repetition_s: float = Field(0.4, gt=0.0)
    min_travel_s: float = Field(0.03, ge=0.0)
    max_travel_s: float = Field(15.0, gt=0.0)
    recognise_after: int = Field(1, ge=1)
    requires: tuple[ConditionSpec | AlternativesSpec, ...] = ()
    main_angles: tuple[str, ...] = ()
    """Angles a coach looks at first, as in `skeletons.ANGLE_NAMES` without the side."""

    @cached_property
    def movement(self) -> Movement:
        """The same for the pure core."""
        return Movement(
            exercise=self.name,
            feature=self.signal.feature,
            start=self.signal.start,
            full=self.signal.full,
            first_phase=self.first_phase,
            enter_start=self.signal.enter_start,
            enter_full=self.signal.enter_full,
            min_s=self.min_repetition_s,
            min_travel_s=self.min_travel_s,
            max_travel_s=self.max_travel_s,
            recognise_after=self.recognise_after,
            conditions=tuple(
                tuple(
                    Condition(**condition.model_dump())
                    for condition in (r.any if isinstance(r, AlternativesSpec) else (r,))
                )
                for r in self.requires
            ),
        )


def load_exercise(path: Path) -> Exercise:
    """Read one exercise file.

    Raises
    ------
    InvalidExerciseError
        If the file is not YAML or does not describe an exercise.
    """
    try:
        return Exercise.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidExerciseError(str(path), f"not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise InvalidExerciseError(str(path), f"{where}: {first['msg']}") from error


def load_exercises(folder: Path) -> dict[str, Exercise]:
    """All exercises of a folder by name, in alphabetical order.

    Raises
    ------
    InvalidExerciseError
        If a file is invalid, two files describe the same name, or there is none.
    """
    exercises: dict[str, Exercise] = {}
    for path in sorted(folder.glob("*.yml")):
        exercise = load_exercise(path)
        if exercise.name in exercises:
            raise InvalidExerciseError(str(path), f"{exercise.name} is described twice")
        exercises[exercise.name] = exercise
    if not exercises:
        raise InvalidExerciseError(str(folder), "no exercise file (*.yml) in this folder")
    return exercises


def select_exercises(exercises: dict[str, Exercise], name: str) -> tuple[Exercise, ...]:
    """The named exercise, or all of them for ``auto``.

    Raises
    ------
    UnknownNameError
        If there is no such exercise.
    """
    if name == AUTO:
        return tuple(exercises.values())
    if name not in exercises:
        raise UnknownNameError("exercise", name, (AUTO, *exercises))
    return (exercises[name],)
