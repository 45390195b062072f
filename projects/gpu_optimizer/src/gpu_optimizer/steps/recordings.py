"""What a recorded step of a model did to memory; needs no PyTorch."""

from dataclasses import dataclass

from gpu_optimizer.types import LayerMemory, MemoryTimeline


@dataclass(frozen=True, slots=True)
class Recording:
    """What a step does to memory."""

    timeline: MemoryTimeline
    layers: LayerMemory
    flops: int
    """Of one forward pass."""
    assumptions: tuple[str, ...]
