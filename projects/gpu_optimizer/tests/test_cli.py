"""The command line: what it prints, what it writes, how it ends."""

import atexit
import gc
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from gpu_optimizer.cli import __main__ as program
from gpu_optimizer.cli import app, devices, runs
from gpu_optimizer.cli.exits import Commands
from gpu_optimizer.errors import BusyError, InvalidModelError, NoGpuError
from gpu_optimizer.layers.views import merge_alike, own_layers, tensor_layers
from gpu_optimizer.machines.detection import recognise
from gpu_optimizer.machines.gpus import gpu_machine
from gpu_optimizer.machines.registry import default_machines_file, load_machines
from gpu_optimizer.remedies.fragmentation import RemedyKind
from gpu_optimizer.reports.treemap import draw_treemap
from gpu_optimizer.runs.fitting import largest_batch
from gpu_optimizer.snapshots.export import to_snapshot, write_snapshot
from gpu_optimizer.types import LayerMemory
from shared_utils.exits import ExitCode
from shared_utils.gpu import GpuActivity, GpuProcess, GpuSnapshot

from .timelines import MIB, timeline

SMALL_BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 5000,
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests say the same on every machine."""
    monkeypatch.setattr(runs, "this_gpu", lambda: None)
    monkeypatch.setattr(devices, "read_activity", tuple)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL_BERT))
    return str(path)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def answer(*arguments: object) -> dict:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_devices_without_a_gpu_is_one_sentence_and_the_known_machines():
    result = invoke("devices")
    assert result.exit_code == 0
    assert result.stdout.startswith("There is no NVIDIA GPU here; estimates work without one.\n")
    assert "pc-3070ti" in result.stdout


def test_devices_says_which_machine_this_is(monkeypatch):
    card = GpuSnapshot(0, "NVIDIA GeForce RTX 3070 Ti", 8192 * MIB, 900 * MIB, "570.1")
    busy = GpuActivity(card, 0.5, None, 61.0, None, (GpuProcess(7, None),))
    monkeypatch.setattr(devices, "read_activity", lambda: (busy,))
    document = answer("devices")
    assert document["gpus"][0]["machine"] == "pc-3070ti"
    assert document["gpus"][0]["power_w"] is None
    assert "pc-3070ti (this one)" in invoke("devices").stdout


@pytest.mark.parametrize(
    ("gpu", "total_mib", "machine"),
    [
        ("NVIDIA GeForce RTX 5070 Ti", 16303, "desktop-5070ti"),
        ("NVIDIA GeForce RTX 5070 Ti", None, "desktop-5070ti"),
        ("NVIDIA GeForce RTX 5070 Ti Laptop GPU", 12227, None),
        ("NVIDIA GeForce RTX 5070 Ti", 12227, None),
        ("NVIDIA GeForce RTX 4070 Ti Laptop GPU", 12282, "laptop-4070ti"),
        ("NVIDIA GeForce RTX 4070 Ti", 12282, None),
        ("NVIDIA H200", 143771, None),
    ],
)
def test_a_machine_is_recognised_by_the_name_and_size_of_its_card(gpu, total_mib, machine):
    machines = load_machines(default_machines_file())
    assert recognise(gpu, total_mib and total_mib * MIB, machines) == machine


def test_a_config_is_predicted_and_the_categories_sum_up_to_the_peak(config):
    document = answer("predict", config, "--batch", 2, "--seq", 16, "--optimizer", "sgd")
    assert sum(document["by_category_bytes"].values()) == document["allocated_peak_bytes"]
    assert document["allocated_peak_bytes"] <= document["reserved_peak_bytes"]
    assert document["reserved_peak_bytes"] < document["total_bytes"]
    assert (document["gpu"], document["dtype"], document["verdict"]) == ("H200", "fp32", "yes")


def test_a_prediction_for_people_says_what_was_understood(config):
    result = invoke("predict", config, "--mode", "infer", "--tokens", 16, "--gpu", "pc-3070ti")
    assert result.exit_code == 0
    assert "infer, batch 1, 16 tokens, fp32; on RTX 3070 Ti" in result.stdout
    assert "7.66 GiB" in result.stdout
    assert "parameter" in result.stdout


def test_quiet_prints_nothing(config):
    result = invoke("predict", config, "--seq", 16, "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")


def test_fits_tells_each_machine_and_finds_the_largest_batch(config):
    run = (config, "--mode", "infer", "--seq", 64, "--search-s", 600)
    document = answer("fits", *run, "--gpu", "rtx 3060", "--machine", "pc-3070ti")
    names = [row["machine"] for row in document["machines"]]
    assert names == ["pc-3070ti", "RTX 3060"]
    small, large = (row["largest_batch"] for row in document["machines"])
    assert 1 < small < large
    assert all(row["largest_batch_is_final"] for row in document["machines"])
    at_limit = ("fits", *run, "--machine", "pc-3070ti", "--search-s", 0)
    assert invoke(*at_limit, "--batch", small).exit_code == 0
    assert invoke(*at_limit, "--batch", round(small * 1.02)).exit_code == 1


def test_profile_shows_equal_blocks_as_one_row(config):
    result = invoke("profile", config, "--seq", 16)
    assert result.exit_code == 0
    assert "0–2 (3 alike)" in result.stdout
    assert "0–2 (3 alike)" not in invoke("profile", config, "--seq", 16, "--all").stdout
    assert "and " in invoke("profile", config, "--seq", 16, "--flat").stdout


def test_profile_of_a_weight_file_lists_its_modules(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a.w": torch.zeros(256), "b.c.w": torch.zeros(1024)}, path)
    document = answer("profile", path)
    assert document["weight_bytes"] == 5120
    assert [child["name"] for child in document["layers"]["children"]] == ["a", "b"]
    refused = invoke("predict", path)
    assert refused.exit_code == 2
    assert "a profile shows them" in refused.stderr


def test_profile_draws_a_page_that_fetches_nothing(config, tmp_path):
    page = tmp_path / "layers.html"
    assert invoke("profile", config, "--seq", 16, "--html", page, "--quiet").exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "encoder.layer.2.attention" in text
    assert 'src="http' not in text


def test_a_page_that_cannot_be_written_is_one_line(config, tmp_path):
    result = invoke("profile", config, "--seq", 16, "--html", tmp_path / "no" / "folder.html")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert "cannot be written" in result.stderr


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    # Two large blocks around a small one that stays: the next, larger one needs a new segment.
    path = tmp_path / "snapshot.pickle"
    events = [(0, 8 * MIB), (1, 2 * MIB), (2, 8 * MIB), (0, -8 * MIB), (2, -8 * MIB)]
    write_snapshot(to_snapshot(timeline([*events, (3, 30 * MIB), (3, -30 * MIB)])), path)
    return path


def test_fragmentation_says_who_pins_and_what_helps(snapshot, tmp_path):
    picture, page = tmp_path / "map.svg", tmp_path / "map.html"
    document = answer("fragmentation", snapshot, "--svg", picture, "--html", page)
    assert document["reserved_bytes"] == 50 * MIB
    assert document["waste_ratio"] == pytest.approx(48 / 50)
    (pinner,) = document["nearly_empty_segments"][0]["held_by"]
    assert pinner.startswith("2.0 MiB other of ")
    ranked = document["replay"]["ranked"]
    assert ranked[0]["reserved_peak_bytes"] <= document["replay"]["before"]["reserved_peak_bytes"]
    assert {trial["kind"] for trial in ranked} <= set(RemedyKind)
    assert picture.read_text().startswith("<svg")
    assert "<svg" in page.read_text()
    assert "Remedies, best first" in invoke("fragmentation", snapshot).stdout


def test_a_snapshot_without_history_is_still_looked_at(snapshot, tmp_path):
    content = to_snapshot(timeline([(0, 8 * MIB), (1, 2 * MIB), (0, -8 * MIB)]))
    content["device_traces"] = [[]]
    path = tmp_path / "bare.json"
    write_snapshot(content, path)
    result = invoke("fragmentation", path)
    assert result.exit_code == 0
    assert "holds no history" in result.stdout


def test_cost_names_the_cheapest_that_fits_first():
    document = answer("cost", "--hours", 2, "--gib", 40, "--epochs", 4, "--samples", 1000)
    prices = [offer["usd_per_hour"] for offer in document["offers"]]
    assert prices == sorted(prices)
    best = document["offers"][0]
    assert best["usable_bytes"] >= 40 << 30
    assert best["total_usd"] == pytest.approx(2 * best["usd_per_hour"])
    assert best["usd_per_epoch"] == pytest.approx(best["total_usd"] / 4)
    assert best["usd_per_1000_samples"] == pytest.approx(best["total_usd"])


def test_cost_of_a_predicted_run_on_one_kind_of_gpu(config):
    document = answer("cost", "--seconds", 60, "--needs", config, "--seq", 16, "--gpu", "tesla t4")
    assert {offer["gpu"] for offer in document["offers"]} == {"T4"}
    assert document["required_bytes"] > 500 * MIB
    shown = invoke("cost", "--seconds", 60, "--instance", "g4dn.xlarge")
    assert "Cheapest: aws g4dn.xlarge, 0.01 USD." in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 2),
        (["predict"], 2),
        (["predict", "https://example.org/config.json"], 2),
        (["predict", "missing.json"], 2),
        (["predict", "resnet50", "--batch", "0"], 2),
        (["predict", "resnet50", "--gpu", "no such card"], 2),
        (["predict", "resnet50", "--dtype", "int3"], 2),
        (["predict", "resnet50", "--image", "1"], 2),
        (["fits", "resnet50", "--machine", "no-such-machine"], 2),
        (["fragmentation", "missing.pickle"], 2),
        (["cost"], 2),
        (["cost", "--hours", "1", "--seconds", "1"], 2),
        (["cost", "--hours", "1", "--epochs", "0"], 2),
        (["cost", "--hours", "1", "--gib", "1000"], 1),
        (["profile", "resnet50", "--measure"], 1),
        (["trace", "missing.py"], 2),
    ],
)
def test_what_cannot_be_done_ends_without_a_traceback(arguments, code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpu_optimizer.cli.profile.read_gpus", tuple)
    result = invoke(*arguments)
    assert result.exit_code == code
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stderr


def test_tracing_without_a_gpu_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("gpu_optimizer.cli.trace.read_gpus", tuple)
    script = tmp_path / "train.py"
    script.write_text("raise RuntimeError('must not be run')")
    result = invoke("trace", script, "--epochs", "3")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Tracing memory needs an NVIDIA GPU")
    assert len(result.stderr.splitlines()) == 1


def test_exit_codes_follow_the_error_table():
    assert Commands.exit_code(InvalidModelError("x", "y")) is ExitCode.UNUSABLE
    assert Commands.exit_code(NoGpuError("x")) is ExitCode.FAILED
    assert Commands.exit_code(BusyError(1)) is ExitCode.FAILED


def test_the_command_starts_without_pytorch():
    code = "import sys, gpu_optimizer.cli; print([m for m in sys.modules if m.startswith('torch')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_that_predicts_needs_fewer_libraries_and_says_the_same(config):
    arguments = ["predict", config, "--seq", "16", "--json"]
    code = (
        "import sys\n"
        "from gpu_optimizer.cli.__main__ import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print([each for each in ('accelerate', 'scipy', 'torchao') if each in sys.modules])\n"
        "    import scipy.optimize, torchvision\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *document, imported = done.stdout.splitlines()
    assert json.loads("\n".join(document)) == answer(*arguments[:-1])
    assert imported == "[]"


@pytest.mark.parametrize(
    ("command", "collects", "ends_quickly"),
    [("predict", False, True), ("optimize", True, True), ("trace", True, False)],
)
def test_garbage_is_left_only_where_there_is_little_and_none_of_a_user(
    command, collects, ends_quickly, monkeypatch
):
    collecting, at_exit = [], []
    monkeypatch.setattr(sys, "argv", ["gpu-optimizer", command])
    monkeypatch.setattr(program, "app", lambda **_: collecting.append(gc.isenabled()))
    monkeypatch.setattr(atexit, "register", at_exit.append)
    try:
        program.main()
    finally:
        gc.enable()
    assert collecting == [collects]
    assert (gc.freeze in at_exit) is ends_quickly


def test_published_half_precision_is_the_default_dtype_of_large_models():
    options = runs.RunOptions()
    assert runs.model_run(runs.read_model("llama-7b"), options).workload.dtype == "bf16"
    assert runs.model_run(runs.read_model("resnet50"), options).workload.dtype == "fp32"


@given(
    st.integers(0, 5000),
    st.integers(1, 5000),
    st.integers(1, 10**9),
    st.floats(1.0, 1.3),
    st.integers(1, 4096),
    st.sampled_from([0.0, 0.01]),
)
def test_the_search_finds_what_trying_every_batch_would(
    largest, start, slope, bend, limit, tolerance_ratio
):
    """Of any falling margin that crosses zero between `largest` and the next batch."""
    tried = []

    def margin(batch: int) -> int:
        tried.append(batch)
        distance = largest - batch
        size = int(slope * abs(distance) ** bend)
        return size if distance >= 0 else -max(size, 1)

    start = min(start, limit)
    found = largest_batch(
        margin, (start, margin(start)), limit=limit, tolerance_ratio=tolerance_ratio
    )
    assert found.largest <= min(largest, limit)
    assert found.largest >= min(largest, limit) / (1 + tolerance_ratio) - 1e-9
    assert found.complete or largest >= limit
    assert len(set(tried)) <= 24


def test_a_search_out_of_time_says_that_more_may_fit():
    found = largest_batch(lambda batch: 10**6 - batch, (1, 10**6), budget_s=0.0)
    assert (found.largest, found.complete) == (1, False)


def layer(name: str, size: int, *children: LayerMemory, kind: str = "Layer") -> LayerMemory:
    total = size + sum(child.parameter_bytes for child in children)
    return LayerMemory(name, kind, total, 0, 0, 0, children=children)


def blocks(sizes: list[int]) -> LayerMemory:
    named = enumerate(sizes)
    return layer("", 7, *(layer(f"{i}", n, layer(f"{i}.x", n)) for i, n in named), kind="Net")


@given(st.lists(st.integers(1, 3), max_size=12))
def test_views_of_layers_keep_the_total(sizes):
    model = blocks(sizes)
    assert sum(each.parameter_bytes for each in own_layers(model)) == model.parameter_bytes
    merged = merge_alike(model)
    assert sum(each.parameter_bytes for each in own_layers(merged)) == model.parameter_bytes
    changes = sum(one != two for one, two in pairwise(sizes))
    assert len(merged.children) == (changes + 1 if sizes else 0)


def test_a_module_named_like_the_root_is_drawn_below_it():
    drawn = draw_treemap(tensor_layers({"": 8, "model": 8, "model.a": 8}, "weights"), "<b>")
    assert "<title>&lt;b&gt;</title>" in drawn
    assert '"ids":["\\u002f","model","model.a"]' in drawn or '"ids":["/","model"' in drawn


def test_a_gpu_by_name_is_a_machine_of_its_own():
    assert runs.machine_for("rtx4090") == gpu_machine("RTX 4090")
    assert runs.machine_for("pc-3070ti").gpu == "RTX 3070 Ti"


def test_offloaded_activations_are_predicted():
    plain = answer("predict", "resnet50", "--batch", "8")
    moved = answer("predict", "resnet50", "--batch", "8", "--offload", "conv1,bn1,layer1")
    assert moved["offload"] == ["conv1", "bn1", "layer1"]
    assert moved["allocated_peak_bytes"] < 0.8 * plain["allocated_peak_bytes"]
    refused = invoke("predict", "resnet50", "--offload", "attic")
    assert refused.exit_code == 2
    assert "no module 'attic'" in refused.stderr
