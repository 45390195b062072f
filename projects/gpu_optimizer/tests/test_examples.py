"""The examples run as they are, in their small form."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "library", "said"),
    [
        ("llama_7b_optimization", "peft", "QLoRA loss"),
        ("diffusion_model_tune", "peft", "adapters in"),
        ("training_pipeline", "tensorboard", "plan and curves in"),
    ],
)
def test_an_example_runs_in_its_small_form(name: str, library: str, said: str, tmp_path: Path):
    pytest.importorskip(library)
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--small"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert said in done.stdout
