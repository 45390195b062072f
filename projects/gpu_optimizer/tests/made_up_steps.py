"""Recorded steps of chains of operations, written by hand."""

import numpy as np

from gpu_optimizer.steps.graphs import Calls, Operations, StepGraph
from gpu_optimizer.steps.recordings import Recording
from gpu_optimizer.types import (
    CATEGORIES,
    PHASES,
    Category,
    LayerMemory,
    MemoryTimeline,
    Phase,
)


def chain(sizes, modules):
    """Step of a chain: each operation reads the last one's result and keeps it for its backward.

    Parameters
    ----------
    sizes
        Bytes of each operation's result.
    modules
        Module each operation belongs to, by name; "" is the model.
    """
    n = len(sizes)
    names = ["", *dict.fromkeys(name for name in modules if name)]
    rows, first_rows, last_rows = [], [], []

    def operation(events):
        first_rows.append(len(rows))
        rows.extend(events)
        last_rows.append(len(rows))

    for number, size in enumerate(sizes):
        operation([(size, number, Phase.FORWARD)])
    gradient = n
    operation([(sizes[-1], gradient, Phase.BACKWARD)])
    rows.append((-sizes[-1], n - 1, Phase.BACKWARD))
    for number in range(n - 1, 0, -1):
        operation([(sizes[number - 1], gradient + 1, Phase.BACKWARD)])
        rows.append((-sizes[number], gradient, Phase.BACKWARD))
        rows.append((-sizes[number - 1], number - 1, Phase.BACKWARD))
        gradient += 1
    n_operations = len(first_rows)
    forward = np.arange(n_operations) < n
    saved = np.arange(1, n)
    calls = [
        (names.index(name), modules.index(name), n - modules[::-1].index(name))
        for name in names[1:]
    ]
    return StepGraph(
        recording=Recording(
            timeline=_timeline(rows, names),
            layers=LayerMemory("", "Chain", 0, 0, 0, 0),
            flops=0,
            assumptions=(),
        ),
        first_row=0,
        operations=Operations(
            name=tuple("aten.tanh" for _ in range(n_operations)),
            phase=np.where(
                forward, PHASES.index(Phase.FORWARD), PHASES.index(Phase.BACKWARD)
            ).astype(np.int8),
            module=np.zeros(n_operations, np.int32),
            first_row=np.array(first_rows),
            last_row=np.array(last_rows),
            # The loss has a node of its own, then they are run backwards.
            node=np.concatenate([np.arange(n), [n], np.arange(n - 1, 0, -1)]),
            flops=np.zeros(n_operations, np.int64),
            moved_bytes=np.full(n_operations, 1000, np.int64),
            itemsize_bytes=np.full(n_operations, 4, np.int8),
            is_product=np.zeros(n_operations, np.bool_),
            is_repeatable=np.ones(n_operations, np.bool_),
        ),
        calls=Calls(
            module=np.array([0, *(module for module, _, _ in calls)], np.int32),
            first_operation=np.array([0, *(first for _, first, _ in calls)]),
            last_operation=np.array([n, *(last for _, _, last in calls)]),
        ),
        use_block=saved - 1,
        use_operation=saved,
        write_block=np.zeros(0, np.int64),
        write_operation=np.zeros(0, np.int64),
        # The last result is kept for the loss.
        save_block=np.append(saved - 1, n - 1),
        save_operation=np.append(saved, n - 1),
        save_node=np.append(saved, n),
        save_is_result=np.append(np.zeros(n - 1, np.bool_), True),
    )


def _timeline(rows, names):
    return MemoryTimeline(
        size_bytes=np.array([size for size, _, _ in rows]),
        block=np.array([block for _, block, _ in rows]),
        module=np.zeros(len(rows), np.int32),
        phase=np.array([PHASES.index(phase) for _, _, phase in rows], np.int8),
        category=np.full(len(rows), CATEGORIES.index(Category.ACTIVATION), np.int8),
        modules=tuple(names),
        module_types=tuple("Module" for _ in names),
        stream=np.zeros(len(rows), np.int32),
    )
