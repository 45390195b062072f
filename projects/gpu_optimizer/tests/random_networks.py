"""Small networks at random, whose activations are large beside the libraries' workspaces."""

from hypothesis import strategies as st
from torch import nn

from gpu_optimizer.models.family import Family

WIDTH = 64
N_ITEMS = 1 << 16
"""An activation takes 16 MiB; on fake tensors that costs nothing."""


class Residual(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.body = nn.Sequential(*parts)

    def forward(self, x):
        return x + self.body(x)


class Twice(nn.Module):
    """Calls its part a second time."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(self.part(x))


def _wide():
    return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


LEAVES = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)),
    "gelu": nn.GELU,
    "norm": lambda: nn.LayerNorm(WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "dropout": lambda: nn.Dropout(0.1),
    "wide": _wide,
}
_leaves = st.sampled_from(sorted(LEAVES))
_blocks = st.tuples(
    st.sampled_from(["plain", "residual", "twice"]), st.lists(_leaves, min_size=1, max_size=4)
)
recipes = st.lists(_blocks, min_size=1, max_size=4)
"""What networks are built from: kinds of blocks, each with its layers."""


def build(recipe):
    blocks = []
    for kind, names in recipe:
        parts = [LEAVES[name]() for name in names]
        if kind == "residual":
            blocks.append(Residual(*parts))
        elif kind == "twice":
            blocks.append(Twice(nn.Sequential(*parts)))
        else:
            blocks.append(nn.Sequential(*parts))
    # With a parameter in front everything needs a gradient.
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *blocks)


def family(recipe):
    import torch

    def squares(model, batch):
        return model(batch["x"]).square().mean()

    return Family(
        name="random",
        build=lambda workload: build(recipe),
        inputs=lambda workload: {"x": torch.randn(workload.batch_size, WIDTH)},
        loss=squares,
        blocks=lambda model: model.children(),
        predict=lambda model, batch: model(batch["x"]),
    )
