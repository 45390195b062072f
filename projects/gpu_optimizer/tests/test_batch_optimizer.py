"""Batch sizes found in other processes: what is handed over, what may happen there, what is kept.

The processes run real steps on the CPU; the memory of their device is simulated.
"""

import importlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from gpu_optimizer import batch_optimizer
from gpu_optimizer.batch_optimizer import (
    BatchAnswer,
    BatchOptions,
    ModuleUse,
    SearchRules,
    StopReason,
    auto_batch_size,
    case_of,
    find_batch_size,
    find_in_processes,
    predict_batch_size,
)
from gpu_optimizer.batch_probing.answers import fingerprint
from gpu_optimizer.batch_probing.cases import (
    RepeatedBatch,
    WorkloadCase,
    build_case,
    pack,
    refers_to_script,
    unpack,
)
from gpu_optimizer.batch_probing.child import INSIDE_VARIABLE
from gpu_optimizer.batch_probing.errors import ProbeFailedError
from gpu_optimizer.batch_probing.hints import hint_for
from gpu_optimizer.batch_probing.prediction import predicted_batch
from gpu_optimizer.batch_probing.process import ProbeJob, ProbeProcess
from gpu_optimizer.batch_probing.results import ProbeRequest, ProbeResult
from gpu_optimizer.batch_probing.trials import MemoryCap, means_out_of_memory, try_batch_size
from gpu_optimizer.cli import app
from gpu_optimizer.cli import batch_size as cli_batch_size
from gpu_optimizer.errors import NoGpuError
from gpu_optimizer.machines.gpus import gpu_machine
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.steps.builder import Step
from gpu_optimizer.types import Mode

HERE = Path(__file__).parent
# The other processes look for modules where this one does.
sys.path.append(str(HERE))
simulated_probes = importlib.import_module("simulated_probes")
MIB = 1 << 20
SGD = partial(torch.optim.SGD, lr=0.1)
EXACT = BatchOptions(
    rules=SearchRules(tolerance_ratio=0.0, max_rise_ratio=1e9), raise_until_s=1e9, cache=False
)

SMALL_BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 500,
    "max_position_embeddings": 64,
}


def job(maker: str, **payload) -> ProbeJob:
    return ProbeJob(maker, payload, wall_s=60.0)


def module_case(**use):
    settings = {"make_optimizer": SGD, **use}
    return case_of(simulated_probes.Squares(), torch.randn(4, 256), ModuleUse(**settings))


def simulated(case, **more) -> ProbeJob:
    memory = {"limit_bytes": 100 * MIB, "fixed_bytes": 30 * MIB, "item_bytes": MIB, **more}
    return job("simulated_probes:make_try", case=pack(case), **memory)


def test_a_module_is_tried_in_one_process_and_verified_in_another():
    found = find_in_processes(simulated(module_case()), EXACT, lambda _: 68)
    assert (found.batch_size, found.stop, found.verified) == (70, StopReason.MEMORY, True)
    assert (found.predicted, found.n_processes, found.failure) == (68, 2, "")
    assert found.peak_reserved_bytes == found.limit_bytes == 100 * MIB
    # The first step takes memory, six more take none.
    assert (found.n_verified_steps, found.steady) == (7, True)
    assert [(each.batch_size, each.ran) for each in found.checked] == [(70, True), (71, False)]
    assert found.n_trials == len(found.searched) + 2
    assert found.item_s is not None
    assert found.item_s > 0.0


def test_not_even_one_item_is_a_value():
    found = find_in_processes(job("troubled_probes:make_limited", first=0, later=0), EXACT)
    assert (found.batch_size, found.stop, found.verified) == (0, StopReason.MEMORY, False)


@pytest.mark.parametrize(
    ("verified", "tried", "answer"),
    [
        (297, [300, 299, 297, 298], 297),
        (302, [300, 301, 302, 303], 302),
        (310, range(300, 304), 303),
    ],
)
def test_what_decides_near_the_limit_is_the_fresh_process(verified, tried, answer):
    limited = job("troubled_probes:make_limited", first=300, later=300, verified=verified)
    found = find_in_processes(limited, EXACT, lambda _: 296)
    assert [each.batch_size for each in found.checked] == list(tried)
    assert (found.batch_size, found.verified, found.n_processes) == (answer, True, 2)
    assert found.stop is StopReason.MEMORY


@pytest.mark.parametrize(
    ("settled", "tried", "answer"),
    [(298, [300, 299, 297, 298], 298), (100, [300, 299, 297, 293, 285], 300)],
)
def test_a_size_that_does_not_settle_is_the_last_choice(settled, tried, answer):
    limited = job("troubled_probes:make_limited", first=300, later=300, settled=settled)
    found = find_in_processes(limited, EXACT, lambda _: 296)
    assert [each.batch_size for each in found.checked] == tried
    assert (found.batch_size, found.steady) == (answer, settled == answer)


def test_no_larger_size_is_tried_again_when_time_is_up():
    limited = job("troubled_probes:make_limited", first=30, later=30, verified=99)
    found = find_in_processes(limited, replace(EXACT, raise_until_s=0.0))
    assert (found.batch_size, len(found.checked)) == (30, 1)


def test_a_first_size_is_tried_while_it_is_predicted():
    with ProbeProcess(simulated(module_case())) as process:
        process.begin(ProbeRequest(4))
        while process.is_busy():
            time.sleep(0.01)
        assert process.probe(ProbeRequest(4)).ran
        process.begin(ProbeRequest(5))
        # Something else is asked for: what was begun is not taken for its answer.
        assert process.probe(ProbeRequest(6)).batch_size == 6


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_a_process_that_ends_or_hangs_is_an_answer_and_is_replaced(how):
    trouble = ProbeJob("troubled_probes:make_trouble", {"from": 20, "how": how}, wall_s=5.0)
    with ProbeProcess(trouble) as process:
        assert process.probe(ProbeRequest(3)).ran
        failed = process.probe(ProbeRequest(20))
        assert not failed.ran
        assert not failed.out_of_memory
        assert ("SIGSEGV" if how == "kill" else "killed") in failed.failure
        assert process.probe(ProbeRequest(4)).ran
        assert process.n_started == 2


def test_a_search_survives_a_size_that_crashes():
    found = find_in_processes(
        job("troubled_probes:make_trouble", **{"from": 12}, how="kill"), EXACT
    )
    assert (found.batch_size, found.stop) == (11, StopReason.FAILURE)
    assert "SIGSEGV" in found.failure


def test_a_process_that_does_not_give_memory_back_is_replaced():
    unclean = job("troubled_probes:make_limited", first=9, later=9, clean=False)
    with ProbeProcess(unclean) as process:
        assert not process.probe(ProbeRequest(2)).clean
        process.probe(ProbeRequest(2))
        assert process.n_started == 2


def test_what_cannot_start_says_why():
    with pytest.raises(ProbeFailedError, match="no libraries for this"):
        find_in_processes(job("troubled_probes:make_nothing"), EXACT)


def test_a_model_that_never_runs_is_an_error_with_its_reason():
    broken = job("troubled_probes:make_limited", first=9, later=9, failure="ValueError: shapes")
    with pytest.raises(ProbeFailedError, match="ValueError: shapes"):
        find_in_processes(broken, EXACT)


def test_no_search_within_a_search(monkeypatch):
    monkeypatch.setenv(INSIDE_VARIABLE, "1")
    with pytest.raises(ProbeFailedError, match="__main__"):
        ProbeProcess(job("troubled_probes:make_nothing"))


def test_classes_of_the_script_are_found(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import torch
from gpu_optimizer.batch_optimizer import *
from gpu_optimizer.batch_optimizer import case_of, find_in_processes
from gpu_optimizer.batch_probing.cases import pack, refers_to_script
from gpu_optimizer.batch_probing.process import ProbeJob

class Net(torch.nn.Linear):
    pass

if __name__ == "__main__":
    packed = pack(case_of(Net(3, 3), torch.ones(2, 3), ModuleUse()))
    payload = dict(case=packed, limit_bytes=9, fixed_bytes=0, item_bytes=1)
    job = ProbeJob("simulated_probes:make_try", payload, refers_to_script(packed))
    options = BatchOptions(SearchRules(max_rise_ratio=1e9), cache=False)
    print(find_in_processes(job, options).batch_size)
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "9\n", done.stderr


def test_a_packed_module_keeps_its_structure_but_not_its_large_weights():
    case = module_case()
    text = pack(case)
    assert len(text) < 100_000
    assert not refers_to_script(text)
    handed = unpack(text)
    assert handed.model.large.weight.is_meta
    assert torch.equal(handed.model.order, case.model.order)
    step = build_case(handed, 5, torch.device("cpu"))
    assert step.model.large.weight is step.model.shared.weight
    assert not step.model.large.weight.is_meta
    before = step.model.large.weight.detach().clone()
    step.run()
    assert not torch.equal(step.model.large.weight, before)
    assert handed.model.large.weight.is_meta


def test_what_has_no_name_cannot_be_handed_over():
    with pytest.raises(ProbeFailedError, match="top of a module"):
        pack(module_case(loss=lambda outputs: outputs.sum()))


def test_inputs_are_for_modules_and_needed_there():
    with pytest.raises(ProbeFailedError, match="inputs"):
        case_of(nn.Linear(1, 1), None, None)
    with pytest.raises(ProbeFailedError, match="modules"):
        case_of("resnet50", torch.ones(1), None)


@settings(deadline=None)
@given(n_items=st.integers(1, 5), batch_size=st.integers(1, 20))
def test_a_batch_is_repeated_item_by_item(n_items, batch_size):
    sample = {"x": torch.arange(n_items * 2).reshape(n_items, 2), "scale": torch.ones(9), "n": 3}
    made = RepeatedBatch(sample)(batch_size)
    expected = [sample["x"][index % n_items].tolist() for index in range(batch_size)]
    assert made["x"].tolist() == expected
    assert (len(made["scale"]), made["n"]) == (9, 3)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("autocast", [None, "bf16"])
def test_uses_of_a_module_run(mode, autocast):
    use = ModuleUse(mode, autocast=autocast)
    case = case_of(simulated_probes.Squares(), (torch.randn(2, 256),), use)
    meter = simulated_probes.SimulatedMeter({"limit_bytes": MIB})
    build = partial(build_case, case, device=torch.device("cpu"))
    result = try_batch_size(build, ProbeRequest(6, n_steps=2), meter)
    assert (result.failure, result.n_steps) == ("", 2)


def test_errors_of_libraries_that_mean_no_memory():
    assert means_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert means_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not means_out_of_memory(RuntimeError("shapes do not match"))
    assert not means_out_of_memory(ValueError("out of memory of better days"))


@settings(deadline=None)
@given(
    fixed_mib=st.integers(0, 2_000), item_mib=st.integers(1, 300), limit_mib=st.integers(1, 20_000)
)
def test_a_straight_line_is_predicted_exactly(fixed_mib, item_mib, limit_mib):
    # Whatever the first sizes were.
    predicted = predicted_batch(lambda size: fixed_mib + size * item_mib, limit_mib, 1 << 16)
    assert predicted == max((limit_mib - fixed_mib) // item_mib, 1)


def test_a_prediction_that_takes_too_long_is_left():
    assert predicted_batch(lambda size: size, 9, 100, lambda: False) is None


def test_steps_that_ask_for_the_same_memory_again_and_again_do_not_settle():
    meter = simulated_probes.SimulatedMeter({"limit_bytes": MIB})
    n_run = [0]

    def build(_: int) -> Step:
        def run() -> None:
            n_run[0] += 1
            meter.take(10 if n_run[0] < 3 else 7)

        return Step(nn.Identity(), {}, None, run)

    result = try_batch_size(build, ProbeRequest(1, 50, 2), meter)
    assert (result.n_steps, result.steady) == (2 + 4, False)


def always() -> bool:
    return True


def test_modules_are_predicted_and_what_cannot_be_is_left_to_trial():
    machine, cap = gpu_machine("RTX 4090"), MemoryCap(1.0, 64 * MIB)
    hint = hint_for(module_case(), machine, cap, 1 << 16, always)
    assert hint is not None
    # An item keeps at least three rows of 256 numbers, and less than forty.
    assert 1_000 < hint < 15_000
    refusing = module_case(loss=simulated_probes.ask_for_three_at_least)
    assert hint_for(refusing, machine, cap, 1 << 16, always) is not None
    broken = case_of(nn.Linear(3, 3), torch.ones(2, 4), ModuleUse())
    assert hint_for(broken, machine, cap, 1 << 16, always) is None


def test_a_prediction_without_a_gpu_is_not_verified():
    options = BatchOptions(rules=SearchRules(tolerance_ratio=0.02), cap_bytes=6 << 30)
    workload = Workload("resnet50", optimizer="sgd")
    found = predict_batch_size(workload, "RTX 4090", 0.9, options)
    assert not found.verified
    assert found.stop is StopReason.MEMORY
    assert 40 < found.batch_size < 90
    with pytest.raises(NoGpuError):
        auto_batch_size(workload)


def test_fingerprints_differ_with_shapes_and_code_but_not_with_weights():
    one, same = fingerprint(module_case(), {}), fingerprint(module_case(), {})
    assert one == same
    others = [
        fingerprint(module_case(), {"cap": 1}),
        fingerprint(module_case(autocast="bf16"), {}),
        fingerprint(module_case(make_optimizer=partial(torch.optim.SGD, lr=0.2)), {}),
        fingerprint(module_case(loss=simulated_probes.ask_for_three_at_least), {}),
        fingerprint(WorkloadCase(Workload("resnet50")), {}),
    ]
    assert len({one, *others}) == 6


def test_answers_are_kept_until_other_programs_need_more(tmp_path, monkeypatch):
    searched = []

    def find(*_arguments) -> BatchAnswer:
        searched.append(1)
        checked = (ProbeResult(7, item_s=1e-3),)
        return BatchAnswer(7, StopReason.LATENCY, verified=True, checked=checked)

    machine = gpu_machine("RTX 4090")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(batch_optimizer, "_machine_here", lambda _: machine)
    monkeypatch.setattr(batch_optimizer, "find_in_processes", find)
    options = BatchOptions(cache_dir=tmp_path)
    assert not find_batch_size("resnet50", options=options).cached
    again = find_batch_size("resnet50", options=options)
    assert (again.cached, again.batch_size, again.stop) == (True, 7, StopReason.LATENCY)
    assert again.checked == (ProbeResult(7, item_s=1e-3),)
    assert not find_batch_size("resnet50", 0.8, options=options).cached
    assert len(searched) == 2
    busy = gpu_machine("RTX 4090")
    object.__setattr__(busy, "reserved_bytes", machine.reserved_bytes + (1 << 30))
    monkeypatch.setattr(batch_optimizer, "_machine_here", lambda _: busy)
    assert not find_batch_size("resnet50", options=options).cached
    next(tmp_path.glob("*.json")).write_text("not json")
    find_batch_size("resnet50", options=options)


def test_importing_the_package_does_not_import_pytorch():
    code = (
        "import sys, gpu_optimizer; assert 'torch' not in sys.modules\n"
        "assert callable(gpu_optimizer.auto_batch_size) and 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_batch_size_is_found_and_holds_on_a_gpu(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256 * 256, 512), nn.ReLU())
    options = BatchOptions(cap_bytes=2 << 30, cache_dir=tmp_path)
    use = ModuleUse(make_optimizer=SGD)
    sample = torch.randn(2, 3, 256, 256)
    found = find_batch_size(model, inputs=sample, use=use, options=options)
    assert found.verified
    assert found.batch_size > 100


def test_results_are_plain_values():
    assert ProbeResult(3).ran
    assert not ProbeResult(3, out_of_memory=True).ran


def test_the_command_predicts_where_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(cli_batch_size, "this_gpu", lambda: None)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SMALL_BERT))
    asked = ["batch-size", str(config), "--seq", "32", "--gib", "0.5", "--gpu", "rtx 4090"]
    result = CliRunner().invoke(app, [*asked, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["batch_size"] > 100
    assert (document["verified"], document["stop"]) == (False, "memory")
    too_little = CliRunner().invoke(app, [*asked, "--gib", "0.02"])
    assert too_little.exit_code == 1
    assert "not tried" in too_little.stdout
    refused = CliRunner().invoke(app, [*asked, "--batch", "3"])
    assert refused.exit_code == 2
