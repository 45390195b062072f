"""Which way a YOLO network is run on a GPU, and what instead where that way is not open."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import structlog
import torch

from pose_analyzer.backends.gpu.letterbox import Letterboxer
from pose_analyzer.backends.gpu.people import KernelSuppress, Suppress, suppress
from pose_analyzer.backends.gpu.yolo_cuda_graph import CudaGraphRunner, EagerRunner, NetworkRunner
from pose_analyzer.backends.gpu.yolo_network import NetworkOptions, PoseNetwork, open_network
from pose_analyzer.backends.gpu.yolo_tensorrt import EnginePlan, open_tensorrt, tensorrt_missing
from pose_analyzer.errors import BackendFailedError
from pose_analyzer.pose_detector import plan_letterbox

log = structlog.get_logger()

Engine = Literal["cuda_graph", "eager", "compile", "tensorrt"]

_INSTEAD: Final[dict[Engine, Engine]] = {
    "tensorrt": "cuda_graph",
    "compile": "cuda_graph",
    "cuda_graph": "eager",
}
_TRIAL_HW: Final = (384, 640)


class EngineUnavailableError(Exception):
    """One way to run the network is not open here; another one is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class NetworkFile:
    """What is to be run, and where."""

    weights: Path
    name: str
    """Model as the user names it."""
    config_dir: Path
    """Where Ultralytics may write its settings, and TensorRT engines are kept."""
    options: NetworkOptions
    plan: EnginePlan
    """Of a TensorRT engine."""
    device_lock: threading.Lock
    """Held by others for GPU work that must not happen during a capture."""

    def open(self) -> PoseNetwork:
        """Read the weights."""
        return open_network(self.weights, self.name, self.config_dir, self.options)


@dataclass(frozen=True, slots=True)
class Kernels:
    """How pictures are resized and duplicates dropped."""

    letterboxer: Letterboxer
    suppress: Suppress


def open_runner(engine: Engine, file: NetworkFile) -> NetworkRunner:
    """Open a network; where `engine` cannot run, the next simpler one, with the reason logged.

    Raises
    ------
    BackendFailedError
        The network cannot be run at all.
    """
    while True:
        try:
            return _OPEN[engine](file)
        except EngineUnavailableError as error:
            instead = _INSTEAD[engine]
            log.warning("engine_unavailable", engine=engine, instead=instead, reason=str(error))
            engine = instead


def _open_eager(file: NetworkFile) -> NetworkRunner:
    return EagerRunner(file.open())


def _open_cuda_graph(file: NetworkFile) -> NetworkRunner:
    _need_cuda(file)
    return _captured(file.open(), file, "cuda_graph")


def _open_compile(file: NetworkFile) -> NetworkRunner:
    _need_cuda(file)
    return _captured(file.open().compiled(), file, "compile")


def _open_tensorrt(file: NetworkFile) -> NetworkRunner:
    _need_cuda(file)
    if (reason := tensorrt_missing()) is not None:
        raise EngineUnavailableError(reason)
    try:
        network = open_tensorrt(file.weights, file.name, file.config_dir, file.options, file.plan)
    except BackendFailedError as error:
        raise EngineUnavailableError(error.reason) from error
    return EagerRunner(network, "tensorrt")


_OPEN: Final[dict[Engine, Callable[[NetworkFile], NetworkRunner]]] = {
    "eager": _open_eager,
    "cuda_graph": _open_cuda_graph,
    "compile": _open_compile,
    "tensorrt": _open_tensorrt,
}


def _need_cuda(file: NetworkFile) -> None:
    if file.options.device.type != "cuda":
        raise EngineUnavailableError("it needs a CUDA device")


def _captured(network: PoseNetwork, file: NetworkFile, engine: str) -> NetworkRunner:
    runner = CudaGraphRunner(network, file.device_lock, engine)
    try:
        runner.capture(1, _TRIAL_HW)
    # Compilers and captures fail with errors of many kinds.
    except Exception as error:
        raise EngineUnavailableError(f"{type(error).__name__}: {error}") from error
    runner.free()
    return runner


def open_kernels(options: NetworkOptions) -> Kernels:
    """Open the Triton kernels where they work, else the same in plain torch, more slowly."""
    plain = Kernels(Letterboxer(), suppress)
    if options.device.type != "cuda":
        return plain
    # Triton compiles with the machine's C compiler, and fails with errors of many kinds.
    try:
        from pose_analyzer.backends.gpu import kernels as gpu_kernels  # noqa: PLC0415 - may be absent

        kernels = Kernels(
            Letterboxer(gpu_kernels.letterbox_kernel), KernelSuppress(gpu_kernels.suppress_kernel)
        )
        _try_kernels(kernels, plain, options)
    except Exception as error:  # noqa: BLE001 - see above
        log.warning("triton_unavailable", reason=f"{type(error).__name__}: {error}")
        return plain
    return kernels


def _try_kernels(kernels: Kernels, plain: Kernels, options: NetworkOptions) -> None:
    """Compare the kernels with plain torch once."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=generator)
    picture = picture.to(options.device)
    box = plan_letterbox((50, 70), 64)
    shape = (1, 3, *box.padded_hw)
    found = torch.empty(shape, dtype=options.dtype, device=options.device)
    expected = torch.empty_like(found)
    kernels.letterboxer.fill([picture], [box], found)
    plain.letterboxer.fill([picture], [box], expected)
    if not torch.allclose(found, expected, atol=1e-3):
        raise ArithmeticError("the letterbox kernel differs from plain torch")
    corner = torch.rand((2, 512, 2), generator=generator) * 100
    corners = torch.cat([corner, corner + 30], dim=2).to(options.device)
    scores = torch.linspace(1, 0, 512).expand(2, -1).to(options.device)
    _compare(kernels.suppress(corners, scores, 0.5, 0.45), suppress(corners, scores, 0.5, 0.45))


def _compare(found: Any, expected: Any) -> None:  # noqa: ANN401 - two of `people.Kept`
    n_people = expected[1]
    if not torch.equal(found[1].int(), n_people.int()):
        raise ArithmeticError("the suppression kernel differs from plain torch")
    for kept, reference, n in zip(found[0], expected[0], n_people.tolist(), strict=True):
        if not torch.equal(kept[:n], reference[:n]):
            raise ArithmeticError("the suppression kernel differs from plain torch")
