"""References as files: one JSON document each, checked when read.

A document is a few tens of kilobytes of numbers rounded to what keypoints can tell: a tenth of a
degree, a thousandth of the body's length.
"""

import json
import math
import re
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pose_analyzer.errors import InvalidReferenceError, UnknownNameError
from pose_analyzer.form_measures import N_ROWS, PAIRS
from pose_analyzer.form_references import FormReference, Pattern, Scatter
from pose_analyzer.repetition_features import SIGNAL_NAMES
from pose_analyzer.types import View

MAX_FILE_BYTES: Final = 500_000
NAME_PATTERN: Final = r"^[a-z][a-z0-9_-]{0,63}$"
"""Of references; also the names of their files."""
_SUFFIX: Final = ".json"
_N_SIGNALS: Final = len(SIGNAL_NAMES)

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
_Limits = tuple[_Positive, _Positive]
_Row = Annotated[list[_Finite | None], Field(min_length=_N_SIGNALS, max_length=_N_SIGNALS)]
_PositiveRow = Annotated[
    list[_Positive | None], Field(min_length=_N_SIGNALS, max_length=_N_SIGNALS)
]


def _known_signal(name: str) -> str:
    if name not in SIGNAL_NAMES:
        raise ValueError(f"unknown signal {name!r}")
    return name


_Signal = Annotated[str, AfterValidator(_known_signal)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _ScatterFile(_Strict):
    offsets: _PositiveRow
    courses: Annotated[list[_PositiveRow], Field(min_length=N_ROWS, max_length=N_ROWS)]
    ranges: _PositiveRow
    asymmetry: Annotated[
        list[_Positive | None], Field(min_length=len(PAIRS), max_length=len(PAIRS))
    ]
    log_duration: _Positive
    smoothness: _Positive
    deviation_limits: _Limits
    symmetry_limits: _Limits


class _PatternFile(_Strict):
    view: View
    yaw_deg: Annotated[float, Field(ge=0.0, le=90.0)]
    n_people: Annotated[int, Field(ge=1)]
    n_repetitions: Annotated[int, Field(ge=1)]
    mean: Annotated[list[_Row], Field(min_length=N_ROWS, max_length=N_ROWS)]
    log_duration: _Finite
    smoothness: _Finite | None
    returns_only: bool = False
    scatter: _ScatterFile
    own_scatter: _ScatterFile | None


class _ReferenceFile(_Strict):
    format: Literal[1]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    exercise: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
    mode: Literal["personal", "general"]
    provenance: dict[str, str]
    signals: Annotated[tuple[_Signal, ...], Field(min_length=1)]
    columns: tuple[str, ...]
    """Of every row of numbers; `repetition_features.SIGNAL_NAMES`."""
    patterns: Annotated[list[_PatternFile], Field(min_length=1, max_length=8)]


def check_name(name: str) -> None:
    """Whether a reference may be called this; its name is also that of its file.

    Raises
    ------
    InvalidReferenceError
        If not.
    """
    if re.fullmatch(NAME_PATTERN, name) is None:
        reason = "give a name of lower-case letters, digits, - and _, a letter first, at most 64"
        raise InvalidReferenceError(repr(name), reason)


def load_reference(path: Path) -> FormReference:
    """Read one reference.

    Raises
    ------
    InvalidReferenceError
        If the file cannot be read, is too large, or is no reference of this version.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidReferenceError(str(path), f"larger than {MAX_FILE_BYTES} bytes")
        text = path.read_bytes()
    except OSError as error:
        raise InvalidReferenceError(str(path), error.strerror or str(error)) from error
    return parse_reference(text, str(path))


def parse_reference(text: str | bytes, source: str) -> FormReference:
    """Read one reference from its document; `source` is what messages call it.

    Raises
    ------
    InvalidReferenceError
        If it is no reference of this version.
    """
    try:
        document = _ReferenceFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:4]) or "file"
        raise InvalidReferenceError(source, f"{where}: {first['msg']}") from error
    if document.columns != SIGNAL_NAMES:
        raise InvalidReferenceError(source, "its columns are not those of this version")
    return FormReference(
        name=document.name,
        exercise=document.exercise,
        mode=document.mode,
        provenance=document.provenance,
        signals=document.signals,
        patterns=tuple(_pattern(one) for one in document.patterns),
    )


def format_reference(reference: FormReference) -> str:
    """Write a reference as its document; `parse_reference` reads it back."""
    document = {
        "format": 1,
        "name": reference.name,
        "exercise": reference.exercise,
        "mode": reference.mode,
        "provenance": dict(reference.provenance),
        "signals": reference.signals,
        "columns": SIGNAL_NAMES,
        "patterns": [_pattern_document(pattern) for pattern in reference.patterns],
    }
    _ReferenceFile.model_validate(document)
    return json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n"


def save_reference(folder: Path, reference: FormReference) -> Path:
    """Write a reference under its name, whole or not at all.

    Raises
    ------
    InvalidReferenceError
        If the name is no plain one.
    OSError
        If the folder cannot be written to.
    """
    path = folder / f"{reference.name}{_SUFFIX}"
    try:
        text = format_reference(reference)
    except ValidationError as error:
        raise InvalidReferenceError(reference.name, error.errors()[0]["msg"]) from error
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_references(*folders: Path) -> dict[str, FormReference]:
    """All references of the folders by name; where a name comes twice, the later folder's.

    A folder that is not there holds none.

    Raises
    ------
    InvalidReferenceError
        If a file is invalid.
    """
    return {
        reference.name: reference
        for folder in folders
        for path in sorted(folder.glob(f"*{_SUFFIX}"))
        for reference in [load_reference(path)]
    }


def delete_reference(folder: Path, name: str) -> None:
    """Forget a reference of this folder.

    Raises
    ------
    UnknownNameError
        If there is none of this name.
    """
    known = {path.stem: path for path in folder.glob(f"*{_SUFFIX}")}
    if name not in known:
        raise UnknownNameError("reference", name, tuple(sorted(known)))
    known[name].unlink()


def select_reference(
    references: dict[str, FormReference], exercise: str, name: str | None = None
) -> FormReference | None:
    """The named reference, or the general one of the exercise; None if it has none.

    Raises
    ------
    UnknownNameError
        If there is no such reference of this exercise.
    """
    fitting = {r.name: r for r in references.values() if r.exercise == exercise}
    if name is not None:
        if name not in fitting:
            raise UnknownNameError("reference", name, tuple(fitting))
        return fitting[name]
    return next((r for r in fitting.values() if r.mode == "general"), None)


def _pattern(document: _PatternFile) -> Pattern:
    return Pattern(
        view=document.view,
        yaw_deg=document.yaw_deg,
        n_people=document.n_people,
        n_repetitions=document.n_repetitions,
        mean=_array(document.mean),
        log_duration=document.log_duration,
        smoothness=math.nan if document.smoothness is None else document.smoothness,
        returns_only=document.returns_only,
        scatter=_scatter(document.scatter),
        own_scatter=None if document.own_scatter is None else _scatter(document.own_scatter),
    )


def _scatter(document: _ScatterFile) -> Scatter:
    return Scatter(
        offsets=_array(document.offsets),
        courses=_array(document.courses),
        ranges=_array(document.ranges),
        asymmetry=_array(document.asymmetry),
        log_duration=document.log_duration,
        smoothness=document.smoothness,
        deviation_limits=document.deviation_limits,
        symmetry_limits=document.symmetry_limits,
    )


def _array(values: object) -> np.ndarray:
    """Numbers of the document; null is NaN."""
    return np.array(values, dtype=np.float64)


# Decimals kept of each column.
_DECIMALS: Final = [1 if name.endswith("_deg") else 4 for name in SIGNAL_NAMES]
_PAIR_DECIMALS: Final = [_DECIMALS[left] for left, _ in PAIRS]


def _rounded(row: np.ndarray, decimals: list[int]) -> list[float | None]:
    return [
        round(value, n) if math.isfinite(value) else None
        for value, n in zip(row.tolist(), decimals, strict=True)
    ]


def _pattern_document(pattern: Pattern) -> dict[str, object]:
    return {
        "view": pattern.view.value,
        "yaw_deg": round(pattern.yaw_deg, 1),
        "n_people": pattern.n_people,
        "n_repetitions": pattern.n_repetitions,
        "mean": [_rounded(row, _DECIMALS) for row in pattern.mean],
        "log_duration": round(pattern.log_duration, 3),
        "smoothness": round(pattern.smoothness, 3) if math.isfinite(pattern.smoothness) else None,
        "returns_only": pattern.returns_only,
        "scatter": _scatter_document(pattern.scatter),
        "own_scatter": None
        if pattern.own_scatter is None
        else _scatter_document(pattern.own_scatter),
    }


def _scatter_document(scatter: Scatter) -> dict[str, object]:
    return {
        "offsets": _rounded(scatter.offsets, _DECIMALS),
        "courses": [_rounded(row, _DECIMALS) for row in scatter.courses],
        "ranges": _rounded(scatter.ranges, _DECIMALS),
        "asymmetry": _rounded(scatter.asymmetry, _PAIR_DECIMALS),
        "log_duration": round(scatter.log_duration, 4),
        "smoothness": round(scatter.smoothness, 4),
        "deviation_limits": [round(value, 4) for value in scatter.deviation_limits],
        "symmetry_limits": [round(value, 4) for value in scatter.symmetry_limits],
    }
