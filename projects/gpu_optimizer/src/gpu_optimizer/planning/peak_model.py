"""Peak memory of a recorded step, were some of its modules computed again in the backward pass.

The recording is edited, not repeated: that takes a fraction of a millisecond where another
recording takes seconds.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from gpu_optimizer.planning.blocks import forward_lives, step_clock, step_curve
from gpu_optimizer.planning.regions import Candidate
from gpu_optimizer.planning.values import forward_access
from gpu_optimizer.steps.graphs import StepGraph
from gpu_optimizer.types import CATEGORIES, PHASES, Category, Phase


class PeakModel:
    """Edits one recording.

    Parameters
    ----------
    graph
        A step of the plain run.
    """

    def __init__(self, graph: StepGraph) -> None:
        self.graph = graph
        self.clock = step_clock(graph)
        self.blocks, self.saves = forward_lives(graph, self.clock)
        self.access = forward_access(graph, self.blocks, self.saves)
        self._curve = step_curve(graph, self.clock)
        self._plainly_until = self._held_until(self.saves.block >= 0)
        self._later_bytes = _later_bytes(graph)

    @property
    def base_bytes(self) -> int:
        """Peak of the plain step."""
        return int(self._curve.max(initial=0))

    def peak_bytes(self, chosen: Sequence[Candidate]) -> int:
        """Return the most that is allocated if some regions, none within another, are chosen."""
        return int(self.curve(chosen).max(initial=0))

    def curve(self, chosen: Sequence[Candidate]) -> Int64[np.ndarray, "moments"]:
        """Return what is allocated at each moment; where things are computed again, at most."""
        calls = [call for each in chosen for call in each.repeats]
        if not calls:
            return self._curve
        blocks, saves = self.blocks, self.saves
        holds = saves.block >= 0
        holds[np.concatenate([call.dropped_saves for call in calls])] = False
        until = self._held_until(holds)
        np.maximum.at(
            until,
            np.concatenate([call.held_block for call in calls]),
            np.concatenate([call.held_until for call in calls]),
        )
        changes = np.zeros(len(self._curve) + 1, np.int64)
        # Frees within a node's last operation are known more exactly than its end.
        moved = np.flatnonzero(until != self._plainly_until)
        np.add.at(changes, blocks.freed[moved], blocks.size_bytes[moved])
        np.subtract.at(changes, until[moved], blocks.size_bytes[moved])
        np.add.at(
            changes,
            np.concatenate([call.change_moment for call in calls]),
            np.concatenate([call.change_bytes for call in calls]),
        )
        curve = self._curve + np.cumsum(changes[:-1])
        moments = np.concatenate([call.burst_moment for call in calls])
        bursts = curve[moments] + np.concatenate([call.burst_bytes for call in calls])
        # The first call of a region keeps everything to its end.
        ends = self.clock.after[[call.first_call_operation for call in calls]]
        first = curve[ends] - self._later_bytes + [call.first_call_bytes for call in calls]
        np.maximum.at(curve, moments, bursts)
        np.maximum.at(curve, ends, first)
        return curve

    def _held_until(self, holds: Bool[np.ndarray, "saves"]) -> Int64[np.ndarray, "blocks"]:
        """Return when blocks are freed if some saves hold them."""
        until = self.blocks.unsaved.copy()
        np.maximum.at(until, self.saves.block[holds], self.saves.released[holds])
        return until


def _later_bytes(graph: StepGraph) -> int:
    """Return what is there in all forward passes but the first one.

    The optimizer's state, and the workspaces of the thread that runs the backward pass.
    """
    timeline = graph.recording.timeline
    state = timeline.category == CATEGORIES.index(Category.OPTIMIZER_STATE)
    workspace = timeline.category == CATEGORIES.index(Category.WORKSPACE)
    # What was allocated and freed adds up to nothing.
    backward = timeline.phase == PHASES.index(Phase.BACKWARD)
    kept = np.zeros(int(timeline.block.max(initial=-1)) + 1, np.int64)
    np.add.at(kept, timeline.block, timeline.size_bytes)
    lasting = (timeline.size_bytes > 0) & (kept[timeline.block] > 0)
    return int(timeline.size_bytes[lasting & (state | (workspace & backward))].sum())
