"""What of a plan a trainer does itself, and what is done to its model."""

from dataclasses import replace
from typing import TypeVar

from gpu_optimizer.plans import (
    Accumulation,
    InvalidPlanError,
    OptimizerState,
    Plan,
    PlanStep,
    Precision,
)

StepT = TypeVar("StepT", bound=PlanStep)


def for_model(plan: Plan) -> Plan:
    """Leave out what the trainer sets: precision, accumulation and the optimizer."""
    theirs = (Precision, Accumulation, OptimizerState)
    kept = tuple(step for step in plan.steps if not isinstance(step, theirs))
    return replace(plan, steps=kept, explanation=())


def only(plan: Plan, kind: type[StepT]) -> StepT | None:
    """Return the plan's step of a kind."""
    return next((step for step in plan.steps if isinstance(step, kind)), None)


def require(source: str, setting: str, found: object, wanted: object) -> None:
    """Refuse a trainer that is set otherwise than the plan says.

    Raises
    ------
    InvalidPlanError
        With what to pass to the trainer.
    """
    if found != wanted:
        problem = f"the plan needs {setting}={wanted!r}, the trainer has {found!r}."
        raise InvalidPlanError(source, problem)
