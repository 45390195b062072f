"""Carries out what the governor of GPU memory decides, several times a second."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from pose_analyzer.ports import FramePipeline, StreamMetrics
from pose_analyzer.stream_manager import MemoryReader, StreamManager
from pose_analyzer.stream_types import StreamState
from pose_analyzer.vram_governor import (
    Action,
    GovernorConfig,
    Shed,
    StreamRank,
    initial_state,
    step,
)

READ_EVERY_S: Final = 0.2

log = structlog.get_logger()


class MemoryWatch:
    """Watches the GPU of the detectors in memory; does nothing while they run on a CPU.

    Parameters
    ----------
    manager
        Whose streams are shed and resumed.
    read_memory
        May block for milliseconds; called in a thread.
    metrics
        Is told readings and actions.
    max_batch
        Frames in a batch while there is memory enough.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        manager: StreamManager,
        read_memory: MemoryReader,
        metrics: StreamMetrics,
        max_batch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manager = manager
        self._read_memory = read_memory
        self._metrics = metrics
        self._clock = clock
        self._config = GovernorConfig(max_batch=max_batch)
        self._state = initial_state(self._config)
        self._limits: dict[str, int] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(READ_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Read the memory once and act on it."""
        pipelines = [one for one in self._manager.pipelines if one.device.startswith("cuda")]
        if not pipelines:
            return
        reading = await asyncio.to_thread(self._read_memory, pipelines[0].device)
        if reading is not None:
            self._metrics.gpu_memory(reading.used_bytes, reading.total_bytes)
        before = self._state.batch_limit
        self._state, actions = step(self._config, self._state, reading, self._ranks())
        if self._state.batch_limit != before:
            self._metrics.governed("shrink" if self._state.batch_limit < before else "grow")
            log.info("batch_limited", n_frames=self._state.batch_limit)
        # The clients first: a pipeline short of memory may take its time.
        for action in actions:
            self._carry_out(action)
        for pipeline in pipelines:
            await self._limit(pipeline)

    def _ranks(self) -> list[StreamRank]:
        return [
            StreamRank(
                stream_id=stream.stream_id,
                priority=stream.options.priority,
                started_s=stream.started_s,
                active=stream.state is StreamState.ACTIVE,
                shed=stream.state is StreamState.SHED,
            )
            for stream in self._manager.streams
            if not stream.ended
        ]

    async def _limit(self, pipeline: FramePipeline) -> None:
        """Have the pipeline, which may be newer than the limit, keep to it."""
        limit = self._state.batch_limit
        if self._limits.get(pipeline.name, self._config.max_batch) != limit:
            self._limits[pipeline.name] = limit
            # Freeing what larger batches held takes a while.
            await asyncio.to_thread(pipeline.limit_batch, limit)

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Shed):
            self._manager.shed(action.stream_ids, action.reason)
            self._metrics.governed("shed")
            log.warning("streams_shed", n_streams=len(action.stream_ids), reason=action.reason)
        else:
            self._manager.unshed(action.stream_ids, action.reason)
            self._metrics.governed("resume")
            log.info("streams_resumed", n_streams=len(action.stream_ids), reason=action.reason)
