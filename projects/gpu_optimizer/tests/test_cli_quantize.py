"""``gpu-optimizer quantize`` on a small model in a folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from gpu_optimizer.cli import app
from gpu_optimizer.quantization.files import load_quantized
from gpu_optimizer.quantization.linear import PackedLinear
from gpu_optimizer.quantization.model_folders import folder_weights, model_without_values
from shared_utils.exits import ExitCode

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 96,
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-2,
    "rope_theta": 100.0, "tie_word_embeddings": True, "torch_dtype": "float32",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    fields = {k: v for k, v in CONFIG.items() if k not in {"model_type", "architectures"}}
    model = LlamaForCausalLM(LlamaConfig(**fields))
    state = {name: each for name, each in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "text.json").write_text(json.dumps([n * n % 96 for n in range(130)]))
    return tmp_path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["quantize", *(str(each) for each in arguments)])


def test_a_folder_is_read_as_transformers_reads_it(folder: Path) -> None:
    model, _ = model_without_values(folder)
    assert model.config.rms_norm_eps == 1e-2
    assert model.config.rope_parameters["rope_theta"] == 100.0
    with folder_weights(folder) as weights, pytest.raises(Exception, match="expected"):
        weights("model.norm.weight", torch.Size((3,)))


def test_quality_is_measured_before_and_after(folder: Path) -> None:
    done = invoke(
        folder, "--scheme", "int4", "--group", 32, "--text", folder / "text.json",
        "--calibration", folder / "text.json", "--kv-bits", 8, "--out", folder / "q.safetensors",
        "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["bytes_after"] < found["bytes_before"]
    assert len(found["layers"]) == 14
    assert found["perplexity_after"] == pytest.approx(found["perplexity_before"], rel=0.05)
    assert found["perplexity_with_cache"] == pytest.approx(found["perplexity_after"], rel=0.01)
    assert all(each["output_error_ratio"] < 0.3 for each in found["layers"])
    model, _ = model_without_values(folder)
    load_quantized(model, folder / "q.safetensors", torch.device("cpu"))
    assert sum(isinstance(each, PackedLinear) for each in model.modules()) == 14


def test_without_a_text_weights_are_packed_as_they_are_read(folder: Path) -> None:
    done = invoke(folder, "--scheme", "int8")
    assert done.exit_code == 0, done.output
    assert "14 layers int8" in done.stdout
    assert "quality not measured" in done.stdout


def test_layers_are_mixed_within_a_limit(folder: Path) -> None:
    done = invoke(
        folder, "--max-increase", 0.001, "--text", folder / "text.json", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["perplexity_after"] <= found["perplexity_before"] * 1.001 + 1e-6
    too_little = invoke(folder, "--budget-gib", 0.001, "--text", folder / "text.json")
    assert too_little.exit_code in {ExitCode.OK, ExitCode.FAILED}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-increase", "0.01"], "needs a text"),
        (["--scheme", "nf4", "--budget-gib", "1"], "not mixed"),
        (["--text", "missing.json"], "not a JSON list"),
        (["--text", "config.json"], "must be a JSON list"),
        (["--text", "words.txt"], "tokenizer.json"),
    ],
)
def test_what_cannot_be_done_is_said(folder: Path, arguments: list[str], said: str) -> None:
    (folder / "words.txt").write_text("words")
    there = [str(folder / each) if each.endswith((".json", ".txt")) else each for each in arguments]
    done = invoke(folder, *there)
    assert done.exit_code == ExitCode.UNUSABLE
    assert said in " ".join(done.output.split())


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    done = invoke(folder)
    assert done.exit_code == ExitCode.UNUSABLE
    assert "holds no .safetensors file" in " ".join(done.output.split())
