"""Three workloads that fragment an allocator, as timelines written from their descriptions.

Each is what a training loop of ordinary PyTorch code asks for, tensor by tensor: parameters, what
the forward pass keeps for the backward pass, gradients, optimizer states and short-lived
temporaries, with the sizes that follow from the shapes. `fragmentation_live` runs the same three on
a GPU; shapes and the choice of lengths stand here for both.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from gpu_optimizer.types import CATEGORIES, PHASES, Category, MemoryTimeline, Phase

FLOAT_BYTES: Final = 4
HALF_BYTES: Final = 2


@dataclass(frozen=True)
class TransformerShape:
    n_layers: int
    hidden: int
    n_heads: int
    vocabulary: int
    batch: int


@dataclass(frozen=True)
class UnetShape:
    channels: tuple[int, ...]
    batch: int


@dataclass(frozen=True)
class Workload:
    """A timeline, and where its steps begin."""

    name: str
    description: str
    timeline: MemoryTimeline
    step_starts: tuple[int, ...]


ENCODER: Final = TransformerShape(12, 768, 12, 30_522, batch=16)
"""BERT-base."""
DECODER: Final = TransformerShape(24, 1024, 16, 32_000, batch=8)
"""A language model of 0.35 billion parameters that answers requests."""
UNET: Final = UnetShape(channels=(64, 128, 256, 512), batch=4)
N_STEPS: Final = 40


def sequence_lengths(n_steps: int = N_STEPS) -> list[int]:
    """Longest text of each batch: log-normal lengths, as in dialogues, cut at 512 tokens."""
    chance = random.Random(7)  # noqa: S311  (a fixed choice, no secret)
    return [min(512, max(16, round(chance.lognormvariate(5.2, 0.6)))) for _ in range(n_steps)]


def image_sizes(n_steps: int = N_STEPS) -> list[tuple[int, int]]:
    """Height and width of each batch: images as they come, cut to multiples of 8 pixels."""
    chance = random.Random(3)  # noqa: S311  (as above)
    return [(chance.randrange(256, 768, 8), chance.randrange(256, 768, 8)) for _ in range(n_steps)]


def prompt_lengths(n_requests: int) -> list[int]:
    """Tokens of each batch of requests."""
    chance = random.Random(13)  # noqa: S311  (as above)
    return [chance.randint(32, 700) for _ in range(n_requests)]


@dataclass
class Tape:
    """Events in order; hands out block numbers."""

    stream: int = 0
    phase: Phase = Phase.SETUP
    rows: list[tuple[int, int, str, Phase, Category, int]] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    n_blocks: int = 0

    def take(self, size: int, module: str, category: Category) -> tuple[int, int]:
        block = (self.n_blocks, size)
        self.n_blocks += 1
        self.rows.append((size, block[0], module, self.phase, category, self.stream))
        return block

    def drop(self, block: tuple[int, int]) -> None:
        self.rows.append((-block[1], block[0], "", self.phase, Category.OTHER, self.stream))

    def drop_all(self, blocks: list[tuple[int, int]]) -> None:
        while blocks:
            self.drop(blocks.pop())

    def scratch(self, size: int, module: str) -> None:
        self.drop(self.take(size, module, Category.WORKSPACE))

    def mark(self) -> None:
        self.marks.append(len(self.rows))


def build(name: str, description: str, tapes: Sequence[Tape]) -> Workload:
    """Put tapes side by side, in proportion to their lengths; steps are those of the first."""
    keyed = [
        ((index + 0.5) / len(tape.rows), number, index, row)
        for number, tape in enumerate(tapes)
        for index, row in enumerate(tape.rows)
    ]
    keyed.sort(key=lambda item: item[:3])
    positions = {(number, index): i for i, (_, number, index, _) in enumerate(keyed)}
    offsets = np.cumsum([0, *(tape.n_blocks for tape in tapes)])
    modules: dict[str, int] = {"": 0}
    table = [
        (
            size,
            block + int(offsets[number]),
            modules.setdefault(module, len(modules)),
            PHASES.index(phase),
            CATEGORIES.index(category),
            stream,
        )
        for _, number, _, (size, block, module, phase, category, stream) in keyed
    ]
    columns = np.array(table, dtype=np.int64).T
    timeline = MemoryTimeline(
        size_bytes=columns[0].copy(),
        block=columns[1].copy(),
        module=columns[2].astype(np.int32),
        phase=columns[3].astype(np.int8),
        category=_lifelong(columns[1], columns[0], columns[4]).astype(np.int8),
        modules=tuple(modules),
        module_types=("",) * len(modules),
        stream=columns[5].astype(np.int32),
    )
    starts = tuple(positions[0, mark] for mark in tapes[0].marks)
    return Workload(name, description, timeline, starts)


def _lifelong(block: np.ndarray, size: np.ndarray, category: np.ndarray) -> np.ndarray:
    """A free has the category of its allocation."""
    of_block = np.zeros(int(block.max()) + 1, dtype=np.int64)
    of_block[block[size > 0]] = category[size > 0]
    return of_block[block]


def transformer_weights(shape: TransformerShape) -> Iterable[tuple[str, int]]:
    """Module and number of values of each weight matrix."""
    yield "embedding", shape.vocabulary * shape.hidden
    for layer in range(shape.n_layers):
        for name, count in (
            ("attention.qkv", 3 * shape.hidden**2),
            ("attention.out", shape.hidden**2),
            ("norm1", 2 * shape.hidden),
            ("mlp.up", 4 * shape.hidden**2),
            ("mlp.down", 4 * shape.hidden**2),
            ("norm2", 2 * shape.hidden),
        ):
            yield f"layers.{layer}.{name}", count


class Trainer:
    """Parameters, gradients and states of one model in training with AdamW, in float32."""

    def __init__(self, tape: Tape, weights: Iterable[tuple[str, int]]) -> None:
        self.tape = tape
        self.weights = [(name, count * FLOAT_BYTES) for name, count in weights]
        tape.phase = Phase.SETUP
        for name, size in self.weights:
            tape.take(size, name, Category.PARAMETER)
        self.gradients: list[tuple[int, int]] = []
        self.has_states = False

    def gradient(self, module: str) -> None:
        for name, size in self.weights:
            if name.startswith(module):
                self.gradients.append(self.tape.take(size, name, Category.GRADIENT))

    def optimize(self) -> None:
        """One step of AdamW, parameter by parameter, then `zero_grad(set_to_none=True)`."""
        self.tape.phase = Phase.OPTIMIZER
        for name, size in self.weights:
            if not self.has_states:
                for _ in range(2):
                    self.tape.take(size, name, Category.OPTIMIZER_STATE)
            denominator = self.tape.take(size, name, Category.WORKSPACE)
            self.tape.scratch(size, name)
            self.tape.drop(denominator)
        self.has_states = True
        self.tape.drop_all(self.gradients)


def train_transformer(tape: Tape, shape: TransformerShape, lengths: Iterable[int]) -> None:
    """Steps of training a transformer, each batch as long as its longest text."""
    trainer = Trainer(tape, transformer_weights(shape))
    for length in lengths:
        tape.mark()
        tokens = shape.batch * length
        width = tokens * shape.hidden * FLOAT_BYTES
        kept: list[list[tuple[int, int]]] = []
        tape.phase = Phase.FORWARD
        inputs = [tape.take(tokens * 8, "", Category.INPUT) for _ in range(2)]
        kept.append([tape.take(width, "embedding", Category.ACTIVATION)])
        kept += [
            _transformer_forward(tape, f"layers.{layer}", width, tokens, shape)
            for layer in range(shape.n_layers)
        ]
        logits = tokens * shape.vocabulary * FLOAT_BYTES
        head = [tape.take(logits, "head", Category.ACTIVATION) for _ in range(2)]
        tape.phase = Phase.BACKWARD
        gradient = tape.take(width, "head", Category.WORKSPACE)
        tape.scratch(logits, "head")
        tape.drop_all(head)
        for layer in reversed(range(shape.n_layers)):
            gradient = _transformer_backward(tape, layer, width, kept.pop(), gradient)
            trainer.gradient(f"layers.{layer}.")
        tape.drop_all(kept.pop())
        trainer.gradient("embedding")
        tape.drop(gradient)
        tape.drop_all(inputs)
        trainer.optimize()


def _transformer_forward(
    tape: Tape, name: str, width: int, tokens: int, shape: TransformerShape
) -> list[tuple[int, int]]:
    """What one layer keeps: norms, projections, attention's output and log-sum, the MLP."""
    kept = []
    for module, size in (
        ("norm1", width),
        ("attention.qkv", 3 * width),
        ("attention", width),
        ("attention", tokens * shape.n_heads * FLOAT_BYTES),
    ):
        kept.append(tape.take(size, f"{name}.{module}", Category.ACTIVATION))
    projected = tape.take(width, f"{name}.attention.out", Category.WORKSPACE)
    kept.append(tape.take(width, name, Category.ACTIVATION))
    tape.drop(projected)
    for module, size in (("norm2", width), ("mlp.up", 4 * width), ("mlp", 4 * width)):
        kept.append(tape.take(size, f"{name}.{module}", Category.ACTIVATION))
    lowered = tape.take(width, f"{name}.mlp.down", Category.WORKSPACE)
    kept.append(tape.take(width, name, Category.ACTIVATION))
    tape.drop(lowered)
    return kept


def _transformer_backward(
    tape: Tape, layer: int, width: int, kept: list[tuple[int, int]], gradient: tuple[int, int]
) -> tuple[int, int]:
    """Gradients flow through one layer; what it kept goes as soon as it has been used."""
    name = f"layers.{layer}"
    wide = tape.take(4 * width, f"{name}.mlp", Category.WORKSPACE)
    for _ in range(4):
        tape.drop(kept.pop())
    inner = tape.take(width, f"{name}.mlp.up", Category.WORKSPACE)
    tape.drop(wide)
    projected = tape.take(3 * width, f"{name}.attention", Category.WORKSPACE)
    tape.drop(inner)
    tape.drop_all(kept)
    result = tape.take(width, name, Category.WORKSPACE)
    tape.drop(projected)
    tape.drop(gradient)
    return result


def unet_weights(shape: UnetShape) -> Iterable[tuple[str, int]]:
    widths = [3, *shape.channels]
    for level, (before, after) in enumerate(pairwise(widths)):
        yield f"down.{level}.conv1", 9 * before * after
        yield f"down.{level}.conv2", 9 * after * after
    for level in reversed(range(len(shape.channels) - 1)):
        wide, narrow = shape.channels[level + 1], shape.channels[level]
        yield f"up.{level}.transpose", 4 * wide * narrow
        yield f"up.{level}.conv1", 18 * narrow * narrow
        yield f"up.{level}.conv2", 9 * narrow * narrow


def train_unet(tape: Tape, shape: UnetShape, sizes: Iterable[tuple[int, int]]) -> None:
    """Steps of training a U-Net: convolution, normalization and activation keep their outputs."""
    trainer = Trainer(tape, unet_weights(shape))
    n_levels = len(shape.channels)
    for height, width in sizes:
        tape.mark()
        tape.phase = Phase.FORWARD
        area = [shape.batch * (height >> i) * (width >> i) * FLOAT_BYTES for i in range(n_levels)]
        image = tape.take(3 * area[0], "", Category.INPUT)
        kept: list[tuple[str, int, list[tuple[int, int]]]] = []
        for level in range(n_levels):
            size = area[level] * shape.channels[level]
            blocks = _convolutions(tape, f"down.{level}", size, workspace=size // 2)
            if level + 1 < n_levels:
                blocks.append(tape.take(size // 4, f"down.{level}.pool", Category.ACTIVATION))
            kept.append((f"down.{level}", size, blocks))
        for level in reversed(range(n_levels - 1)):
            size = area[level] * shape.channels[level]
            raised = tape.take(size, f"up.{level}.transpose", Category.WORKSPACE)
            joined = tape.take(2 * size, f"up.{level}", Category.ACTIVATION)
            tape.drop(raised)
            blocks = [joined, *_convolutions(tape, f"up.{level}", size, workspace=size)]
            kept.append((f"up.{level}", size, blocks))
        tape.phase = Phase.BACKWARD
        gradient = tape.take(kept[-1][1], "", Category.WORKSPACE)
        while kept:
            name, size, blocks = kept.pop()
            tape.scratch(size, name)
            result = tape.take(size, name, Category.WORKSPACE)
            tape.drop_all(blocks)
            tape.drop(gradient)
            gradient = result
            trainer.gradient(f"{name}.")
        tape.drop(gradient)
        tape.drop(image)
        trainer.optimize()


def _convolutions(tape: Tape, name: str, size: int, workspace: int) -> list[tuple[int, int]]:
    kept = []
    for number in (1, 2):
        module = f"{name}.conv{number}"
        tape.scratch(workspace, module)
        kept += [tape.take(size, module, Category.ACTIVATION) for _ in range(3)]
    return kept


def generate_text(tape: Tape, shape: TransformerShape, prompts: Iterable[int]) -> None:
    """Requests to a language model in half precision, whose cache grows by concatenation.

    Each new token makes every layer's keys and values anew, one token longer, before the old ones
    go: what `torch.cat` does in a plain implementation.
    """
    for name, count in transformer_weights(shape):
        tape.take(count * HALF_BYTES, name, Category.PARAMETER)
    tape.phase = Phase.FORWARD
    row = shape.batch * shape.hidden * HALF_BYTES
    for prompt in prompts:
        tape.mark()
        cache: list[tuple[int, int]] = []
        for layer in range(shape.n_layers):
            name = f"layers.{layer}"
            tape.scratch(3 * prompt * row, f"{name}.attention.qkv")
            cache += [tape.take(prompt * row, f"{name}.attention", Category.OTHER) for _ in "kv"]
            tape.scratch(4 * prompt * row, f"{name}.mlp")
        tape.scratch(shape.batch * shape.vocabulary * FLOAT_BYTES, "head")
        for length in range(prompt + 1, prompt + 25):
            for index, old in enumerate(cache):
                module = f"layers.{index // 2}.attention"
                cache[index] = tape.take(length * row, module, Category.OTHER)
                tape.drop(old)
            tape.scratch(shape.batch * shape.vocabulary * FLOAT_BYTES, "head")
        tape.drop_all(cache)


def variable_lengths() -> Workload:
    tape = Tape()
    train_transformer(tape, ENCODER, sorted(sequence_lengths()))
    return build(
        "variable-length batches",
        "BERT-base in training (float32, AdamW, batch 16), each batch padded to its longest text, "
        "16 to 512 tokens, short texts first.",
        [tape],
    )


def alternating_shapes() -> Workload:
    tape = Tape()
    train_unet(tape, UNET, image_sizes())
    return build(
        "alternating shapes",
        "A U-Net in training (float32, AdamW, batch 4) on images of 256 to 760 pixels a side, a "
        "new size in every batch.",
        [tape],
    )


def inference_beside_training() -> Workload:
    training = Tape()
    train_transformer(training, ENCODER, sequence_lengths(12))
    serving = Tape(stream=1)
    generate_text(serving, DECODER, prompt_lengths(12))
    return build(
        "inference beside training",
        "BERT-base in training on texts of 16 to 512 tokens on one stream, while a language model "
        "answers requests of 32 to 700 tokens on another, its cache grown by concatenation.",
        [training, serving],
    )


WORKLOADS: Final = (variable_lengths, alternating_shapes, inference_beside_training)
