"""When graphs are captured, shared and dropped, with a stand-in for CUDA."""

import contextlib
import threading
from types import SimpleNamespace

import pytest
import structlog

torch = pytest.importorskip("torch", reason="needs the extra yolo")

from pose_analyzer.backends.gpu import yolo_cuda_graph  # noqa: E402
from pose_analyzer.backends.gpu.people import DecodedHead  # noqa: E402
from pose_analyzer.backends.gpu.yolo_cuda_graph import CudaGraphRunner, bucket_of  # noqa: E402
from pose_analyzer.backends.gpu.yolo_network import NetworkOptions, PoseNetwork  # noqa: E402

HW = (32, 64)


class Graph:
    """Counts; its replay computes nothing."""

    made: list["Graph"]
    pools: set[int]

    def __init__(self) -> None:
        self.n_replays = 0
        self.made.append(self)

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.pools.add(pool)

    def capture_end(self) -> None:
        pass

    def replay(self) -> None:
        self.n_replays += 1

    def reset(self) -> None:
        self.made.remove(self)


@pytest.fixture
def free_bytes() -> list[int]:
    """On the device; to be changed by the test."""
    return [10 << 30]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, free_bytes: list[int]) -> list[Graph]:
    """The graphs there are."""
    Graph.made, Graph.pools = [], set()
    handles = iter(range(100))
    cuda = SimpleNamespace(
        CUDAGraph=Graph,
        Stream=lambda device, priority: None,
        graph_pool_handle=lambda: next(handles),
        stream=lambda stream: contextlib.nullcontext(),
        synchronize=lambda device: None,
        empty_cache=lambda: None,
        memory_reserved=lambda device: 10 << 20,
        mem_get_info=lambda device: (free_bytes[0], 80 << 30),
        get_per_process_memory_fraction=lambda device: 1.0,
    )
    monkeypatch.setattr(yolo_cuda_graph.torch, "cuda", cuda)
    return Graph.made


class Network:
    """Needs more memory than there is for large batches."""

    def __init__(self, n_fit: int = 64) -> None:
        self.n_fit = n_fit
        self.error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory.")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.n_fit:
            raise self.error
        return torch.zeros((len(images), 56, 21))


def runner_of(network: Network) -> CudaGraphRunner:
    options = NetworkOptions(torch.device("cpu"))
    return CudaGraphRunner(PoseNetwork(network, DecodedHead(), options), threading.Lock())


def run(runner: CudaGraphRunner, n_images: int, hw: tuple[int, int] = HW) -> torch.Size:
    with torch.inference_mode():
        people = runner.run(n_images, hw, lambda batch: batch.fill_(len(batch)))
    assert len(people) == n_images
    return people.shape


def test_batches_are_filled_up_to_the_next_size() -> None:
    assert [bucket_of(n) for n in (1, 2, 3, 4, 5, 63, 64, 100)] == [1, 2, 4, 4, 8, 64, 64, 64]


def test_a_graph_is_captured_once_per_size(graphs: list[Graph]) -> None:
    runner = runner_of(Network())
    for n_images in (3, 4, 1, 3):
        run(runner, n_images)
    run(runner, 3, (64, 32))
    assert [graph.n_replays for graph in graphs] == [3, 1, 1]
    assert len(Graph.pools) == 1


def test_large_graphs_take_all_with_them_and_their_pool(graphs: list[Graph]) -> None:
    runner = runner_of(Network())
    runner.warm_up(HW, (1, 2, 8))
    runner.free(above=8)
    assert len(graphs) == 3
    runner.free(above=2)
    assert graphs == []
    run(runner, 1)
    assert len(graphs) == 1
    assert len(Graph.pools) == 2


def test_few_input_sizes_are_kept_and_none_that_is_in_use_gives_way(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(yolo_cuda_graph, "time", SimpleNamespace(monotonic=lambda: now_s))
    runner = runner_of(Network())
    for n in (1, 2, 3, 4, 5, 6, 7, 8, 1, 9, 10):
        run(runner, 1, (32 * n, 64))
    assert len(graphs) == 8
    now_s += 11.0
    run(runner, 1, (32, 64))
    run(runner, 1, (288, 64))  # in place of 64, unused for longest
    assert len(graphs) == 9
    run(runner, 1, (32, 64))
    assert len(graphs) == 9
    run(runner, 1, (64, 64))
    assert len(graphs) == 10


def test_without_room_for_a_graph_kernels_are_launched(graphs: list[Graph]) -> None:
    network = Network(n_fit=4)
    runner = runner_of(network)
    run(runner, 4)
    with structlog.testing.capture_logs() as logs, pytest.raises(torch.OutOfMemoryError):
        run(runner, 8)
    assert [one["event"] for one in logs] == ["cuda_graph_not_captured"]
    assert graphs == []
    run(runner, 4)  # no capture is tried for a while
    assert graphs == []


def test_no_capture_is_begun_in_a_full_memory(graphs: list[Graph], free_bytes: list[int]) -> None:
    free_bytes[0] = 1 << 20
    with structlog.testing.capture_logs() as logs:
        run(runner_of(Network()), 2)
    assert graphs == []
    assert "out of memory" in logs[0]["reason"]


def test_what_cannot_be_captured_is_launched_and_not_tried_again_at_once(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Graph) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Graph, "capture_end", refuse)
    runner = runner_of(Network())
    with structlog.testing.capture_logs() as logs:
        run(runner, 1)
        run(runner, 2)
    assert "not permitted" in logs[0]["reason"]
    assert len(logs) == 1
