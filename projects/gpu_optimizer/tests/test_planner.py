"""Plans against steps that are really recorded, on random small networks."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.fake_recorders import fake_recorders
from gpu_optimizer.kernels.attention import CudaTarget
from gpu_optimizer.machines.speeds import gpu_speed
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.planner import Planner, PlanOptions
from gpu_optimizer.planning.blocks import rounded_bytes
from gpu_optimizer.planning.integer_program import optimal_choice
from gpu_optimizer.planning.peak_model import PeakModel
from gpu_optimizer.planning.proposals import Allowed
from gpu_optimizer.planning.regions import RegionFinder
from gpu_optimizer.planning.search import RegionSearch
from gpu_optimizer.planning.times import calibrated, measured_ratios, step_times
from gpu_optimizer.plans import (
    Accumulation,
    Budgeted,
    CheckpointRegion,
    Exactness,
    Offload,
    Plan,
    PlanFailure,
)
from gpu_optimizer.steps.recorder import record_step
from gpu_optimizer.types import Mode

from .made_up_steps import chain
from .random_networks import N_ITEMS, family, recipes

MIB = 1 << 20
ADA = CudaTarget((8, 9))
WORKLOAD = Workload("random", batch_size=N_ITEMS, optimizer="sgd")
DEEP = [("residual", ["norm", "wide"]), ("plain", ["relu in place"])] * 3
some = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


def recorders(recipe):
    return fake_recorders(ADA, family(recipe))


def finder_of(graph):
    model = PeakModel(graph)
    return model, RegionFinder(
        graph, model.access, step_times(graph, gpu_speed("H200")).operation_s
    )


def peak_of(recording):
    sizes = recording.timeline.size_bytes
    return int(np.cumsum(np.sign(sizes) * rounded_bytes(np.abs(sizes))).max())


def planner(recipe=DEEP, workload=WORKLOAD, **allowed):
    options = PlanOptions(gpu="RTX 4090", budget_of=Budgeted.ALLOCATED, allowed=Allowed(**allowed))
    return Planner(workload, options, recorders(recipe))


def test_recording_operations_changes_nothing_in_what_is_recorded():
    plain = record_step(WORKLOAD, ADA, family(DEEP)).timeline
    graph = recorders(DEEP).graph(WORKLOAD, ())
    np.testing.assert_array_equal(graph.recording.timeline.size_bytes, plain.size_bytes)
    assert PeakModel(graph).base_bytes == peak_of(graph.recording)


@some
@given(recipes, st.randoms(use_true_random=False), st.sampled_from([None, "bf16"]))
def test_the_model_gives_the_peak_of_the_applied_regions(recipe, random, autocast):
    workload = Workload("random", batch_size=N_ITEMS, optimizer="adamw", autocast=autocast)
    graph = recorders(recipe).graph(workload, ())
    model, finder = finder_of(graph)
    chosen, taken = [], set()
    for name in random.choices(graph.recording.timeline.modules[1:], k=6):
        each = finder.candidate(CheckpointRegion(name, random.choice(["nothing", "products"])))
        operations = {number for span in each.spans for number in range(*span)} if each else set()
        if operations and not operations & taken:
            chosen.append(each)
            taken |= operations
    applied = recorders(recipe).step(workload, [each.region for each in chosen])
    # Matrix products with a bias that are run again take a workspace of cuBLASLt's.
    assert abs(model.peak_bytes(chosen) - peak_of(applied)) <= 1.1 * MIB


@pytest.mark.slow
@settings(some, max_examples=3)
@given(recipes)
def test_a_lower_budget_never_gives_a_higher_peak(recipe):
    made = planner(recipe, techniques=frozenset({"checkpoint"}))
    base = made.base.predicted_peak.allocated
    peaks = []
    for percent in (100, 80, 60, 40):
        found = made.plan(base * percent // 100)
        plan = found if isinstance(found, Plan) else found.smallest
        assert isinstance(found, PlanFailure) != plan.fits
        assert len(plan.explanation) == len(plan.steps)
        peaks.append(plan.predicted_peak.allocated)
        recorded = recorders(recipe).step(WORKLOAD, plan.steps)
        assert abs(peak_of(recorded) - peaks[-1]) <= MIB
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] == base


def test_doing_nothing_comes_first():
    made = planner()
    plan = made.plan(made.base.predicted_peak.allocated)
    assert isinstance(plan, Plan)
    assert plan.steps == ()
    assert plan.slowdown_ratio == 0.0


def test_every_step_of_a_plan_is_worth_something():
    made = planner(techniques=frozenset({"checkpoint"}))
    plan = made.plan(made.base.predicted_peak.allocated * 6 // 10)
    assert isinstance(plan, Plan)
    assert plan.exactness is Exactness.BIT_EQUAL
    assert plan.regions() == plan.steps
    for effect in plan.explanation:
        assert effect.gained_bytes >= 0
        assert effect.added_s >= 0
        assert effect.text


def test_what_cannot_fit_says_why_and_what_would():
    made = planner(techniques=frozenset({"checkpoint"}))
    failure = made.plan(MIB)
    assert isinstance(failure, PlanFailure)
    assert "parameters" in failure.reason
    smaller = made.plan(failure.smallest_bytes)
    assert isinstance(smaller, Plan)
    assert smaller.predicted_peak.allocated <= failure.smallest_bytes


def test_a_limit_on_time_is_kept():
    recipe = [("plain", ["linear", "gelu", "linear"])] * 4
    free = planner(recipe, techniques=frozenset({"checkpoint"}))
    budget = free.base.predicted_peak.allocated * 6 // 10
    plan = free.plan(budget)
    assert isinstance(plan, Plan)
    assert plan.slowdown_ratio > 0
    options = PlanOptions(
        gpu="RTX 4090",
        budget_of=Budgeted.ALLOCATED,
        allowed=Allowed(frozenset({"checkpoint"})),
        max_slowdown_ratio=plan.slowdown_ratio / 2,
    )
    failure = Planner(WORKLOAD, options, recorders(recipe)).plan(budget)
    assert isinstance(failure, PlanFailure)
    assert "longer" in failure.reason
    assert failure.smallest.slowdown_ratio <= plan.slowdown_ratio / 2


def test_parts_of_a_batch_are_used_only_where_results_may_move():
    exact = planner(exactness=Exactness.BIT_EQUAL)
    budget = exact.base.predicted_peak.allocated * 3 // 10
    found = exact.plan(budget)
    plan = found if isinstance(found, Plan) else found.smallest
    assert plan.exactness is Exactness.BIT_EQUAL
    loose = planner(exactness=Exactness.NUMERIC).plan(budget)
    assert isinstance(loose, Plan)
    assert any(isinstance(step, Accumulation) for step in loose.steps)
    assert loose.exactness is Exactness.NUMERIC


def test_parts_of_a_batch_are_no_same_batch_to_a_batch_norm():
    recipe = [("plain", ["batch norm", "linear"])] * 2
    found = planner(recipe, exactness=Exactness.NUMERIC).plan(40 * MIB)
    plan = found if isinstance(found, Plan) else found.smallest
    assert not any(isinstance(step, Accumulation) for step in plan.steps)


def test_offloading_names_modules_and_stays_bit_equal():
    recipe = [("plain", ["wide", "norm"])] * 4
    made = planner(recipe, techniques=frozenset({"offload"}))
    found = made.plan(made.base.predicted_peak.allocated * 9 // 10)
    plan = found if isinstance(found, Plan) else found.smallest
    assert {type(step) for step in plan.steps} <= {Offload}
    assert plan.predicted_peak.allocated <= made.base.predicted_peak.allocated
    assert plan.exactness is Exactness.BIT_EQUAL


def test_trades_go_down_in_memory_and_up_in_time():
    trades = planner(techniques=frozenset({"checkpoint"})).trades()
    assert len(trades) > 2
    peaks = [each.peak_bytes for each in trades]
    times = [each.slowdown_ratio for each in trades]
    assert peaks == sorted(peaks, reverse=True)
    assert times == sorted(times)


def test_only_training_is_planned():
    with pytest.raises(InvalidModelError, match="training"):
        planner(workload=Workload("random", Mode.INFER))


def test_a_chain_by_hand():
    # Five results of 1 KiB. The two in the middle are made and kept within the region.
    graph = chain([1024] * 5, ["", "m", "m", "m", ""])
    model, finder = finder_of(graph)
    # All results, and the loss's gradient.
    assert model.base_bytes == 6 * 1024
    candidate = finder.candidate(CheckpointRegion("m"))
    assert candidate is not None
    (call,) = candidate.repeats
    # What operations 1 and 2 make; the region's result counts as kept, its input is held.
    assert call.operations.tolist() == [1, 2]
    curve = model.curve([candidate])
    forward_end = curve[model.clock.before[5]]
    assert forward_end == 3 * 1024
    # In the first call everything is there at the region's end.
    assert curve[model.clock.before[4]] == 4 * 1024
    # When the loss's gradient has gone back to the region: its input, a gradient, and both.
    assert curve[call.burst_moment[0]] == (1 + 1 + 2) * 1024
    assert model.peak_bytes([candidate]) == 5 * 1024


def test_a_solver_and_the_search_both_reach_a_target():
    model, finder = finder_of(recorders(DEEP).graph(WORKLOAD, ()))
    search = RegionSearch(model, list(finder.all()))
    target = model.base_bytes * 6 // 10
    greedy, optimal = search.greedy(target), optimal_choice(search, target)
    assert optimal is not None
    assert max(greedy.peak_bytes, optimal.peak_bytes) <= target
    assert greedy.repeated_s <= 2 * optimal.repeated_s
    assert optimal_choice(search, 1) is None


def test_times_follow_the_card_and_what_was_measured():
    graph = recorders(DEEP).graph(WORKLOAD, ())
    fast, slow = (step_times(graph, gpu_speed(name)) for name in ("NVIDIA H200", "RTX 3060"))
    assert slow.step_s > 3 * fast.step_s
    assert fast.longer_s(1.0, 0) == pytest.approx(fast.step_s + 1.0)
    names = graph.recording.timeline.modules
    estimated = np.bincount(graph.operations.module, fast.operation_s, minlength=len(names))
    layer_s = {name: 2 * seconds for name, seconds in zip(names, estimated, strict=True)}
    ratios = measured_ratios(graph, fast, layer_s)
    assert calibrated(graph, fast, ratios).operation_s.sum() == pytest.approx(
        2 * fast.operation_s.sum()
    )
