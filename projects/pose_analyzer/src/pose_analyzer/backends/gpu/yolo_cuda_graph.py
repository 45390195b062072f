"""Running a pose network: launched kernel by kernel, or replayed as one CUDA graph per batch size.

Replaying saves nearly all of the launching: 1.3 ms in place of 10 ms for one frame on an H200.
"""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import structlog
import torch
from jaxtyping import Float

from pose_analyzer.backends.gpu.memory import is_out_of_memory
from pose_analyzer.backends.gpu.yolo_network import PoseNetwork

log = structlog.get_logger()

BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes with a graph of their own; others are filled up to the next."""
_MAX_SIZES: Final = 8  # input sizes with graphs at a time
# A size gives way to a new one only after so long without use: clients whose pictures come in ever
# other sizes would have graphs captured all the time, each of which holds up everybody.
_KEEP_SIZE_S: Final = 10.0
_N_WARM_UPS: Final = 3
_RETRY_CAPTURE_S: Final = 10.0
# At the start a graph could be captured, so what stands in the way now may well pass.
_RETRY_FAILED_CAPTURE_S: Final = 60.0
_MARGIN_BYTES: Final = 64 << 20
HIGH_PRIORITY: Final = -1

Fill = Callable[[torch.Tensor], None]
"""Writes images to a batch of the size it is given."""


@runtime_checkable
class NetworkRunner(Protocol):
    """Runs a network in one thread, on the current stream, without waiting for it."""

    @property
    def engine(self) -> str:
        """Name of this way to run it."""
        ...

    @property
    def network(self) -> PoseNetwork:
        """What is run."""
        ...

    def run(
        self, n_images: int, hw: tuple[int, int], fill: Fill
    ) -> Float[torch.Tensor, "n values"]:
        """People of images written by `fill`; to be copied before the next run."""
        ...

    def warm_up(self, hw: tuple[int, int], buckets: Iterable[int]) -> None:
        """Prepare for batches of these sizes."""
        ...

    def free(self, above: int = 0) -> None:
        """Give back memory held for batches of more than `above` images."""
        ...


class EagerRunner:
    """Launches every kernel. Also the way on a CPU.

    Parameters
    ----------
    network
        What is run.
    engine
        Name to show; ``tensorrt`` networks bring their own way.
    """

    def __init__(self, network: PoseNetwork, engine: str = "eager") -> None:
        self.network = network
        self.engine = engine

    def run(
        self, n_images: int, hw: tuple[int, int], fill: Fill
    ) -> Float[torch.Tensor, "n values"]:
        """People of images written by `fill`."""
        images = self.network.new_input(n_images, hw)
        fill(images)
        return self.network.people(images)

    def warm_up(self, hw: tuple[int, int], buckets: Iterable[int]) -> None:
        """Run once for each size."""
        for n_images in buckets:
            self.network.people(self.network.new_input(n_images, hw))

    def free(self, above: int = 0) -> None:  # noqa: ARG002 - nothing is held
        """Give back what torch keeps for later."""
        if self.network.options.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """A graph with its fixed input and output, which lie outside the graphs' common pool."""

    graph: Any
    images: torch.Tensor
    people: torch.Tensor


class CudaGraphRunner:
    """Replays a CUDA graph per (batch size, input size), captured when first needed.

    Graphs share one pool of memory: they run one after the other, and nothing in it outlives a
    replay. While a capture is not possible, for lack of memory above all, kernels are launched one
    by one.

    Parameters
    ----------
    network
        What is run.
    device_lock
        Kept while capturing; others hold it for GPU work that must not happen then.
    engine
        Name to show; ``compile`` for a compiled network.
    """

    def __init__(
        self, network: PoseNetwork, device_lock: threading.Lock, engine: str = "cuda_graph"
    ) -> None:
        self.network = network
        self.engine = engine
        self._lock = device_lock
        self._eager = EagerRunner(network)
        self._graphs: OrderedDict[tuple[int, int], dict[int, _Captured]] = OrderedDict()
        device = network.options.device
        # Not the stream of the replays: events that other threads record there would be captured.
        # Of high priority, as theirs: kernels in a graph keep the priority they were captured with,
        # and torch's 32 streams of normal priority come round again to video decoders.
        self._stream: Any = torch.cuda.Stream(  # type: ignore[no-untyped-call]
            device, priority=HIGH_PRIORITY
        )
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._used_s: dict[tuple[int, int], float] = {}
        self._no_capture_before_s = 0.0

    def run(
        self, n_images: int, hw: tuple[int, int], fill: Fill
    ) -> Float[torch.Tensor, "n values"]:
        """People of images written by `fill`; the next run overwrites them."""
        captured = self._find_or_capture(n_images, hw)
        if captured is None:
            return self._eager.run(n_images, hw, fill)
        fill(captured.images[:n_images])
        captured.graph.replay()
        return captured.people[:n_images]

    def warm_up(self, hw: tuple[int, int], buckets: Iterable[int]) -> None:
        """Capture graphs, the largest first: smaller ones then find room in the pool."""
        for bucket in sorted(buckets, reverse=True):
            self._find_or_capture(bucket, hw)

    def free(self, above: int = 0) -> None:
        """Drop all graphs if any is for more images: only an empty pool gives memory back."""
        # Waiting for the device would spoil what another network captures just now.
        with self._lock:
            if any(bucket > above for graphs in self._graphs.values() for bucket in graphs):
                torch.cuda.synchronize(self.network.options.device)
                for graphs in self._graphs.values():
                    for captured in graphs.values():
                        captured.graph.reset()
                self._graphs.clear()
                self._used_s.clear()
            if not self._graphs:
                # torch refuses to take up a pool again once its last graph is gone.
                self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.empty_cache()

    def _find_or_capture(self, n_images: int, hw: tuple[int, int]) -> _Captured | None:
        bucket, now_s = bucket_of(n_images), time.monotonic()
        if hw in self._graphs:
            self._graphs.move_to_end(hw)
            self._used_s[hw] = now_s
        if (captured := self._graphs.get(hw, {}).get(bucket)) is not None:
            return captured
        if now_s < self._no_capture_before_s or not self._has_place(hw, now_s):
            return None
        try:
            captured = self.capture(bucket, hw)
        except RuntimeError as error:
            full = is_out_of_memory(error)
            log.warning("cuda_graph_not_captured", batch=bucket, input_hw=hw, reason=str(error))
            self.free()
            wait_s = _RETRY_CAPTURE_S if full else _RETRY_FAILED_CAPTURE_S
            self._no_capture_before_s = time.monotonic() + wait_s
            return None
        self._graphs.setdefault(hw, {})[bucket] = captured
        self._used_s[hw] = now_s
        if len(self._graphs) > _MAX_SIZES:
            with self._lock:
                torch.cuda.synchronize(self.network.options.device)
            oldest, _ = self._graphs.popitem(last=False)
            del self._used_s[oldest]
        return captured

    def _has_place(self, hw: tuple[int, int], now_s: float) -> bool:
        """Whether a graph for this size may be kept."""
        if hw in self._graphs or len(self._graphs) < _MAX_SIZES:
            return True
        oldest = next(iter(self._graphs))
        return now_s - self._used_s[oldest] >= _KEEP_SIZE_S

    def capture(self, bucket: int, hw: tuple[int, int]) -> _Captured:
        """Capture the graph for so many images."""
        network, stream = self.network, self._stream
        # Nobody else may allocate GPU memory on their own during a capture. Of torch's threads
        # only this one is restricted ("thread_local").
        with self._lock, torch.inference_mode(), torch.cuda.stream(stream):
            images = network.new_input(bucket, hw)
            for _ in range(_N_WARM_UPS):
                people = torch.empty_like(network.people(images))
            torch.cuda.synchronize(network.options.device)
            self._make_room()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                people.copy_(network.people(images))
            except BaseException:
                # The capture cannot be completed; what stopped it says more than that.
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        return _Captured(graph, images, people)

    def _make_room(self) -> None:
        """Give back what the warm-up took, and make sure that it is still to be had.

        An allocation that fails during a capture may leave torch's allocator unusable (pytorch
        pull requests 180395 and 187795).
        """
        device = self.network.options.device
        held_bytes = torch.cuda.memory_reserved(device)
        torch.cuda.empty_cache()
        reserved_bytes = torch.cuda.memory_reserved(device)
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        allowed_bytes = torch.cuda.get_per_process_memory_fraction(device) * total_bytes
        room_bytes = min(free_bytes, allowed_bytes - reserved_bytes)
        if room_bytes < held_bytes - reserved_bytes + _MARGIN_BYTES:
            raise torch.OutOfMemoryError(f"out of memory for a graph: {room_bytes:.0f} bytes left")


def bucket_of(n_images: int) -> int:
    """The smallest batch size with a graph that takes so many images, or the largest of all."""
    return next((bucket for bucket in BUCKETS if bucket >= n_images), BUCKETS[-1])
