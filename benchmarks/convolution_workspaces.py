"""Which memory cuDNN takes beside the tensors of a convolution: measured call by call.

    python benchmarks/convolution_workspaces.py --out OUT.json

Every distinct convolution of a few models runs forward and backward on this machine's GPU, as
PyTorch calls cuDNN without `torch.backends.cudnn.benchmark`; the allocator's history tells what was
allocated. Results are data for the rules of `gpu_optimizer.kernels.workspaces`.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.steps.builder import build_step
from gpu_optimizer.types import Mode

# Family, batch and types: shapes of cases that are not held out.
MODELS = (
    ("resnet50", 64, ("fp32", "bf16")),
    ("resnet50", 128, ("bf16",)),
    ("resnet50", 256, ("fp32", "bf16")),
    ("unet", 64, ("fp32", "bf16")),
    ("yolo11n-pose", 16, ("fp32", "fp16")),
    ("yolo11n-pose", 32, ("fp16",)),
)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Convolution:
    """One call."""

    values: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    dense: bool
    """Whether the input is contiguous, channels first."""


def convolutions(family: str, batch_size: int) -> list[Convolution]:
    """Run a model once and note its convolutions."""
    found: dict[Convolution, None] = {}

    def see(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        padding = module.padding
        assert not isinstance(padding, str)
        each = Convolution(
            tuple(args[0].shape), tuple(module.weight.shape), tuple(module.stride), tuple(padding),
            tuple(module.dilation), module.groups, isinstance(module, nn.ConvTranspose2d),
            args[0].is_contiguous(),
        )  # fmt: skip
        found[each] = None

    step = build_step(
        Workload(family, mode=Mode.INFER, batch_size=batch_size), torch.device("cuda")
    )
    for module in step.model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_pre_hook(see)
    step.run()
    return list(found)


def allocations(call: Callable[[], object]) -> list[int]:
    """Sizes of all blocks that a call allocates, in order."""
    call()
    torch.cuda.synchronize()
    record = torch.cuda.memory._record_memory_history  # noqa: SLF001
    record(enabled="all", context=None, clear_history=True)
    call()
    torch.cuda.synchronize()
    events = torch.cuda.memory._snapshot()["device_traces"][0]  # noqa: SLF001
    record(enabled=None)
    return [event["size"] for event in events if event["action"] == "alloc"]


def measure(each: Convolution, dtype: torch.dtype) -> dict[str, list[int]]:
    """Allocations of the forward pass and of each gradient."""
    device = torch.device("cuda")
    values = torch.zeros(each.values, dtype=dtype, device=device)
    weight = torch.zeros(each.weight, dtype=dtype, device=device)
    rest = (
        list(each.stride), list(each.padding), list(each.dilation), each.transposed,
        [0] * len(each.stride), each.groups,
    )  # fmt: skip
    output: Tensor = torch.ops.aten.convolution(values, weight, None, *rest)
    gradient = torch.zeros_like(output)
    del output

    def backward(of_values: bool, of_weight: bool) -> object:
        return torch.ops.aten.convolution_backward(
            gradient, values, weight, None, *rest, [of_values, of_weight, False]
        )

    return {
        "forward": allocations(lambda: torch.ops.aten.convolution(values, weight, None, *rest)),
        "backward": allocations(lambda: backward(of_values=True, of_weight=True)),
        "of_values": allocations(lambda: backward(of_values=True, of_weight=False)),
        "of_weight": allocations(lambda: backward(of_values=False, of_weight=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    rows = []
    for family, batch_size, dtypes in MODELS:
        found = convolutions(family, batch_size)
        for name in dtypes:
            for each in found:
                sizes = measure(each, _DTYPES[name])
                rows.append({"family": family, "dtype": name, **asdict(each), **sizes})
        print(family, batch_size, len(found))
        environment = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
        content = {"gpu": torch.cuda.get_device_name(), **environment, "rows": rows}
        out.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
