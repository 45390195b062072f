"""The three fragmenting workloads on a real GPU: history recorded, replayed, remedies applied.

Used by ``benchmarks/fragmentation.py --record``.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from fragmentation_workloads import (
    DECODER,
    ENCODER,
    UNET,
    TransformerShape,
    UnetShape,
    image_sizes,
    prompt_lengths,
    sequence_lengths,
)
from torch import Tensor, nn
from torch.nn import functional

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.allocator_replay import replay
from gpu_optimizer.fragmentation_solver import LiveUse, apply_settings, measure_live
from gpu_optimizer.snapshots.files import from_structure

MAX_HISTORY_ENTRIES = 10_000_000
SETTINGS = (
    "expandable_segments:True",
    "expandable_segments:False,max_split_size_mb:512",
    "expandable_segments:False,roundup_power2_divisions:8",
)


@dataclass(frozen=True)
class Recording:
    """One workload, measured and replayed."""

    workload: str
    n_events: int
    live: LiveUse
    replayed_reserved_bytes: int
    replayed_allocated_bytes: int
    remedies: dict[str, LiveUse]

    @property
    def replay_error_ratio(self) -> float:
        return self.replayed_reserved_bytes / self.live.reserved_peak_bytes - 1.0

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "replay_error_ratio": self.replay_error_ratio}


class Encoder(nn.Module):
    """Embedding, transformer layers, tied output: BERT's shapes."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                shape.hidden,
                shape.n_heads,
                4 * shape.hidden,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(shape.n_layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return functional.linear(hidden, self.embedding.weight)


class ConvolutionPair(nn.Sequential):
    def __init__(self, before: int, after: int) -> None:
        layers: list[nn.Module] = []
        for width in (before, after):
            layers += [nn.Conv2d(width, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


class Unet(nn.Module):
    def __init__(self, shape: UnetShape) -> None:
        super().__init__()
        widths = [3, *shape.channels]
        self.down = nn.ModuleList(
            ConvolutionPair(before, after) for before, after in pairwise(widths)
        )
        inner = list(reversed(shape.channels))
        self.raise_ = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in pairwise(inner)
        )
        self.up = nn.ModuleList(ConvolutionPair(2 * narrow, narrow) for narrow in inner[1:])

    def forward(self, image: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            image = block(functional.max_pool2d(image, 2) if level else image)
            skips.append(image)
        skips.pop()
        for raise_, block in zip(self.raise_, self.up, strict=True):
            skip = skips.pop()
            raised = raise_(image)
            padding = [0, skip.shape[-1] - raised.shape[-1], 0, skip.shape[-2] - raised.shape[-2]]
            image = block(torch.cat([skip, functional.pad(raised, padding)], dim=1))
        return image


class Decoder(nn.Module):
    """A language model whose cache grows by concatenation."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.qkv = nn.ModuleList(
            nn.Linear(shape.hidden, 3 * shape.hidden) for _ in range(shape.n_layers)
        )
        self.out = nn.ModuleList(
            nn.Linear(shape.hidden, shape.hidden) for _ in range(shape.n_layers)
        )
        self.up = nn.ModuleList(
            nn.Linear(shape.hidden, 4 * shape.hidden) for _ in range(shape.n_layers)
        )
        self.down = nn.ModuleList(
            nn.Linear(4 * shape.hidden, shape.hidden) for _ in range(shape.n_layers)
        )

    @torch.no_grad()
    def generate(self, prompt: Tensor, n_tokens: int) -> Iterator[Tensor]:
        """Yield one token after the other."""
        cache: list[tuple[Tensor, Tensor] | None] = [None] * self.shape.n_layers
        tokens = prompt
        for _ in range(n_tokens + 1):
            hidden = self.embedding(tokens)
            for layer in range(self.shape.n_layers):
                hidden = self._layer(layer, hidden, cache)
            logits = functional.linear(hidden[:, -1], self.embedding.weight).float()
            tokens = logits.argmax(-1, keepdim=True)
            yield tokens

    def _layer(
        self, layer: int, hidden: Tensor, cache: list[tuple[Tensor, Tensor] | None]
    ) -> Tensor:
        batch, length, width = hidden.shape
        heads = self.shape.n_heads
        query, key, value = (
            part.view(batch, length, heads, width // heads).transpose(1, 2)
            for part in self.qkv[layer](hidden).chunk(3, dim=-1)
        )
        old = cache[layer]
        if old is not None:
            key, value = torch.cat([old[0], key], dim=2), torch.cat([old[1], value], dim=2)
        else:
            key, value = key.contiguous(), value.contiguous()
        cache[layer] = (key, value)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=length > 1)
        hidden = hidden + self.out[layer](mixed.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.down[layer](functional.gelu(self.up[layer](hidden)))


def train_encoder(
    device: torch.device,
    lengths: list[int],
    shape: TransformerShape = ENCODER,
    beside: Callable[[], None] | None = None,
) -> None:
    """Train on batches of these lengths; `beside` is called after every layer's forward pass."""
    model = Encoder(shape).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=False)
    if beside is not None:
        for layer in model.layers:
            layer.register_forward_hook(lambda *_: beside())
    for length in lengths:
        tokens = torch.randint(shape.vocabulary, (shape.batch, length), device=device)
        logits = model(tokens)
        functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        del logits
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def train_unet(device: torch.device, sizes: list[tuple[int, int]], shape: UnetShape = UNET) -> None:
    model = Unet(shape).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=False)
    for height, width in sizes:
        image = torch.rand(shape.batch, 3, height, width, device=device)
        model(image).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def serve(
    device: torch.device, prompts: list[int], shape: TransformerShape = DECODER, n_tokens: int = 24
) -> Iterator[None]:
    """Answer requests; pause after every token."""
    model = Decoder(shape).to(device, torch.bfloat16)
    for length in prompts:
        prompt = torch.randint(shape.vocabulary, (shape.batch, length), device=device)
        for _ in model.generate(prompt, n_tokens):
            yield


def train_and_serve(device: torch.device) -> None:
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        server = serve(device, prompt_lengths(12))

    def answer() -> None:
        with torch.cuda.stream(stream):
            for _ in range(2):
                next(server, None)

    train_encoder(device, sequence_lengths(12), beside=answer)


WORKLOADS: dict[str, Callable[[torch.device], None]] = {
    "variable-length batches": lambda device: train_encoder(device, sorted(sequence_lengths())),
    "alternating shapes": lambda device: train_unet(device, image_sizes()),
    "inference beside training": train_and_serve,
}


def record(name: str) -> Recording:
    """Run one workload as it is with its history, replay that, then run it under each setting."""
    device = torch.device("cuda")
    run = WORKLOADS[name]
    _clean(AllocatorConfig())
    torch.cuda.memory._record_memory_history(  # noqa: SLF001
        enabled="all", context=None, max_entries=MAX_HISTORY_ENTRIES
    )
    live = measure_live(lambda: run(device))
    snapshot = from_structure(torch.cuda.memory._snapshot())  # noqa: SLF001
    torch.cuda.memory._record_memory_history(enabled=None)  # noqa: SLF001
    result = replay(snapshot.timeline, AllocatorConfig())
    remedies = {}
    for setting in SETTINGS:
        _clean(AllocatorConfig.parse(setting))
        remedies[setting] = measure_live(lambda: run(device))
    _clean(AllocatorConfig())
    return Recording(
        workload=name,
        n_events=len(snapshot.timeline),
        live=live,
        replayed_reserved_bytes=result.reserved_peak_bytes,
        replayed_allocated_bytes=result.allocated_peak_bytes,
        remedies=remedies,
    )


def _clean(config: AllocatorConfig) -> None:
    """Leave nothing of an earlier run, then set the allocator."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    apply_settings(config)
