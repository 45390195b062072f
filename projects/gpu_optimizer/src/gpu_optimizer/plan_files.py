"""Plans as YAML files, checked strictly when read: a typing error must not train another model.

A step is written as its kind and its fields::

    version: 1
    steps:
    - checkpoint: {module: layer1.0, keep: products}
    - precision: {autocast: bf16, grad_scaler: false}
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import TypeAdapter, ValidationError

from gpu_optimizer.errors import UnknownNameError
from gpu_optimizer.plans import PLAN_VERSION, STEP_TYPES, InvalidPlanError, Plan, PlanStep

_NAMES: Final = {kind: name for name, kind in STEP_TYPES.items()}
_MAX_BYTES: Final = 1 << 20


def dump_plan(plan: Plan) -> str:
    """Write a plan as YAML."""
    content = TypeAdapter(Plan).dump_python(plan, mode="json", exclude={"steps"})
    version = content.pop("version")
    steps = [{_NAMES[type(step)]: _fields(step)} for step in plan.steps]
    return yaml.safe_dump({"version": version, **content, "steps": steps}, sort_keys=False)


def load_plan(text: str, source: str = "plan") -> Plan:
    """Read a plan from YAML; unknown fields, kinds and versions are refused.

    Raises
    ------
    InvalidPlanError
        The text is no plan; its message names the place.
    """
    if len(text) > _MAX_BYTES:
        raise InvalidPlanError(source, f"longer than {_MAX_BYTES:,} characters")
    try:
        if any(isinstance(each, yaml.AliasEvent) for each in yaml.parse(text, yaml.SafeLoader)):
            raise InvalidPlanError(source, "aliases are not read")
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidPlanError(source, f"not YAML: {error}") from error
    if not isinstance(content, dict) or "version" not in content:
        raise InvalidPlanError(source, "a plan file has a line 'version: 1'")
    if content["version"] != PLAN_VERSION:
        raise InvalidPlanError(
            source, f"version {content['version']!r}; this release reads version {PLAN_VERSION}"
        )
    written = content.pop("steps", None)
    if not isinstance(written, list):
        raise InvalidPlanError(source, "'steps' must be a list")
    steps = tuple(_step(each, f"{source}: steps.{place}") for place, each in enumerate(written))
    plan: Plan = _checked(Plan, {**content, "steps": ()}, source)
    if plan.explanation and len(plan.explanation) != len(steps):
        raise InvalidPlanError(source, "'explanation' must have one entry for each step")
    return replace(plan, steps=steps)


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan file."""
    path.write_text(dump_plan(plan), encoding="utf-8")


def read_plan(path: Path) -> Plan:
    """Read a plan file; see `load_plan`.

    Raises
    ------
    InvalidPlanError
        The file cannot be read or is no plan.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPlanError(str(path), str(error)) from error
    return load_plan(text, str(path))


def _step(written: object, source: str) -> PlanStep:
    if not isinstance(written, dict) or len(written) != 1:
        raise InvalidPlanError(source, "must be one kind with its fields")
    ((name, fields),) = written.items()
    if name not in STEP_TYPES:
        known = ", ".join(STEP_TYPES)
        raise InvalidPlanError(source, f"unknown kind {name!r}. Known: {known}.")
    step: PlanStep = _checked(STEP_TYPES[name], fields or {}, f"{source}.{name}")
    return step


def _fields(step: PlanStep) -> dict[str, Any]:
    """Return fields as YAML knows them: lists in place of tuples."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(step).items()}


def _checked(kind: type[Any], content: object, source: str) -> Any:  # noqa: ANN401 -- `kind`
    try:
        # JSON's rules: a list may stand for a tuple, a text for an enumerated value; a text is
        # still no number.
        written = json.dumps(content, allow_nan=False)
        return TypeAdapter(kind).validate_json(written, strict=True, extra="forbid")
    except (TypeError, ValueError, UnknownNameError) as error:
        if not isinstance(error, ValidationError):
            raise InvalidPlanError(source, str(error)) from error
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"])
        raise InvalidPlanError(source, f"{place}: {first['msg']}") from error
