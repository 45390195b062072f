"""Plans for the service, in processes of their own: as JSON."""

from collections.abc import Callable, Mapping
from typing import Any

from gpu_optimizer.jobs.descriptions import describe
from gpu_optimizer.jobs.service import asked_run, model_spec
from gpu_optimizer.optimizing import Wishes, optimize_run
from gpu_optimizer.plan_answers import answer_dict
from gpu_optimizer.plans import STEP_TYPES, Budgeted, Exactness
from gpu_optimizer.runs.asked import run_dict

Report = Callable[[Mapping[str, Any]], None]


def optimize_job(payload: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    """Job ``optimize``: a plan within a budget, or why there is none.

    Parameters
    ----------
    payload
        Fields of `api.schemas.OptimizeRequest`; for an upload also ``path``, ``name``,
        ``complete``.
    report
        Told the stages.

    Raises
    ------
    InvalidBudgetError, InvalidModelError, UnknownNameError
        It cannot be planned as asked, or is no model one can run.
    """
    spec = model_spec(payload)
    run = asked_run(spec, payload)
    constraints = payload["constraints"]
    techniques = constraints["techniques"]
    wishes = Wishes(
        gpu=payload["gpu"],
        budget_of=Budgeted(payload["budget_of"]),
        max_slowdown_ratio=constraints["max_slowdown_ratio"],
        exactness=Exactness(constraints["exactness"]),
        techniques=frozenset(STEP_TYPES if techniques is None else techniques),
        verify=bool(payload["verify"]),
        frontier=bool(payload["frontier"]),
    )
    found = optimize_run(
        run,
        payload["budget"],
        wishes,
        lambda text: report({"stage": text}),
        # This process was started for nothing else, and takes nothing of the GPU before.
        in_this_process=True,
    )
    return {"model": describe(spec), "run": run_dict(run), **answer_dict(found)}
