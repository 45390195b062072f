"""What the process that tries batch sizes does with its first line: prepares trials on the GPU."""

import importlib
from contextlib import suppress
from functools import cache
from typing import Any, Final

import torch

from gpu_optimizer.batch_probing.cases import ProbeCase, WorkloadCase, build_case, pack, unpack
from gpu_optimizer.batch_probing.child import Try
from gpu_optimizer.batch_probing.results import ProbeRequest, ProbeResult
from gpu_optimizer.batch_probing.trials import CudaMeter, MemoryCap, try_batch_size
from gpu_optimizer.steps.builder import Step

MAKER: Final = f"{__name__}:make_try"
_LIBRARIES: Final = {
    "resnet50": "torchvision.models",
    "vit_b_16": "torchvision.models",
    "yolo11n-pose": "ultralytics.nn.tasks",
}
"""Where not transformers."""


def make_try(payload: dict[str, Any]) -> Try:
    """Read what `payload_of` wrote; the returned function tries a batch size on the GPU."""
    case = unpack(payload["case"])
    device = torch.device("cuda", payload["device"])
    _set_backends(payload["backends"])
    _import_libraries(case)

    @cache
    def meter() -> CudaMeter:
        torch.cuda.set_device(device)
        return CudaMeter(MemoryCap(payload["max_ratio"], payload["cap_bytes"]))

    def build(batch_size: int) -> Step:
        return build_case(case, batch_size, device)

    def try_size(request: ProbeRequest) -> ProbeResult:
        return try_batch_size(build, request, meter())

    return try_size


def payload_of(case: ProbeCase, cap: MemoryCap, device: int = 0) -> dict[str, Any]:
    """Describe trials for another process, with the settings of this one's libraries.

    Raises
    ------
    ProbeFailedError
        If the model cannot be handed over.
    """
    return {
        "case": pack(case),
        "max_ratio": cap.max_ratio,
        "cap_bytes": cap.bytes,
        "device": device,
        "backends": backends(),
    }


def backends() -> dict[str, Any]:
    """Settings that decide which kernels run, and so how much scratch memory they take."""
    return {
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def _set_backends(settings: dict[str, Any]) -> None:
    torch.backends.cudnn.benchmark = settings["cudnn_benchmark"]
    torch.backends.cudnn.deterministic = settings["cudnn_deterministic"]
    torch.set_float32_matmul_precision(settings["matmul_precision"])


def _import_libraries(case: ProbeCase) -> None:
    """Import what takes seconds while nobody waits; building the model says what is missing."""
    if isinstance(case, WorkloadCase):
        family = "" if case.described else case.workload.family
        with suppress(ImportError):
            importlib.import_module(_LIBRARIES.get(family, "transformers"))
