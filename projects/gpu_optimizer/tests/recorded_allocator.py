"""An allocator's history without a GPU: every storage that a real CPU run makes and drops.

The twin of `CudaHistory`: same structure, addresses and labels; sizes and order are those of the
CPU's kernels. Single storages are found below autograd, so that what autograd keeps is seen too.
"""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu_optimizer.snapshots.history import AllocatorCounts, DeviceUse

MIB = 1 << 20


class RecordedAllocator(TorchDispatchMode):
    """Enter it before the tracer; `hide` is a number of allocations that go unrecorded."""

    device = 0

    def __init__(self, older: tuple[Tensor, ...] = (), hide: int = 0) -> None:
        super().__init__()
        self._hide = hide
        self._label = ""
        self._records: list[dict[str, Any]] = []
        self._live: dict[int, tuple[int, int]] = {}
        self._watchers: dict[int, Any] = {}
        self._n = self._allocated = self._freed = self._peak = 0
        self.running = False
        self.oom_bytes: int | None = None
        for tensor in older:
            self._see(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def start(self, *, stacks: bool) -> None:
        assert not self.running
        self.running = True
        self._records = []

    def stop(self) -> None:
        self.running = False

    def mark(self, label: str) -> object:
        self._label = label
        return None

    def n_allocations(self) -> int:
        return self._n

    def counts(self) -> AllocatorCounts:
        live = sum(size for _, size in self._live.values())
        return AllocatorCounts(
            n_allocations=self._n,
            requested_total_bytes=self._allocated,
            freed_total_bytes=self._freed,
            allocated_bytes=live,
            reserved_bytes=live + 2 * MIB,
            allocated_peak_bytes=self._peak,
            reserved_peak_bytes=self._peak + 2 * MIB,
        )

    def device_use(self) -> DeviceUse:
        reserved = self.counts().reserved_bytes
        return DeviceUse(
            total_bytes=1 << 34, used_bytes=reserved + 900 * MIB, reserved_bytes=reserved
        )

    def snapshot(self) -> dict[str, Any]:
        def block(address: int, size: int, state: str) -> dict[str, Any]:
            return {
                "address": address,
                "size": size,
                "requested_size": size,
                "state": state,
                "frames": [],
            }

        segments = [
            {
                "device": 0,
                "address": address,
                "total_size": size,
                "allocated_size": size,
                "active_size": size,
                "stream": 0,
                "segment_type": "large",
                "segment_pool_id": (0, 0),
                "blocks": [block(address, size, "active_allocated")],
            }
            for address, size in self._live.values()
        ]
        # What the allocator holds beside: 2 MiB that nobody uses.
        segments.append(
            {
                "device": 0,
                "address": 1 << 60,
                "total_size": 2 * MIB,
                "allocated_size": 0,
                "active_size": 0,
                "stream": 0,
                "segment_type": "small",
                "segment_pool_id": (0, 0),
                "blocks": [block(1 << 60, 2 * MIB, "inactive")],
            }
        )
        records = [dict(record) for record in self._records]
        if self.oom_bytes is not None:
            oom = {"action": "oom", "device_free": MIB, "size": self.oom_bytes, "stream": 0}
            records.append({**oom, "time_us": 0, "user_metadata": self._label})
        return {
            "segments": segments,
            "device_traces": [records],
            "external_annotations": [],
            "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": ""},
        }

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live or not size:
            return
        self._live[key] = (storage.data_ptr(), size)
        self._watchers[key] = weakref.ref(storage, lambda _: self._gone(key))
        self._n += 1
        self._allocated += size
        self._peak = max(self._peak, sum(size for _, size in self._live.values()))
        if self._hide:
            self._hide -= self.running
            return
        self._record("alloc", storage.data_ptr(), size)

    def _gone(self, key: int) -> None:
        address, size = self._live.pop(key)
        del self._watchers[key]
        self._freed += size
        self._record("free_requested", address, size)
        self._record("free_completed", address, size)

    def _record(self, action: str, address: int, size: int) -> None:
        if self.running:
            record = {"action": action, "addr": address, "size": size, "stream": 0}
            self._records.append({**record, "time_us": 0, "user_metadata": self._label})
