"""Small convolutional networks at random, with what makes recomputation hard."""

import random

import torch
from torch import nn

N_CHANNELS = 6
SHAPE = (4, N_CHANNELS, 5, 5)
"""Of a batch of their pictures."""


class InPlaceSum(nn.Module):
    """A residual block as ResNet's: activations and the sum are done in place."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(N_CHANNELS, N_CHANNELS, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(N_CHANNELS)
        self.conv2 = nn.Conv2d(N_CHANNELS, N_CHANNELS, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(N_CHANNELS)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class Dropping(nn.Module):
    """Draws random numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(N_CHANNELS, N_CHANNELS, 1)

    def forward(self, x):
        return nn.functional.dropout(torch.tanh(self.conv(x)), 0.3, self.training) + x


class Nested(nn.Module):
    """Takes a keyword, returns tensors within tuples within a dictionary."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(N_CHANNELS, 2 * N_CHANNELS, 1)
        self.norm = nn.GroupNorm(2, 2 * N_CHANNELS)

    def forward(self, x, *, scale=1.0):
        one, two = nn.functional.gelu(self.norm(self.conv(x))).chunk(2, dim=1)
        return {"sum": x * scale + one, "parts": (two, [one * two])}


class Attending(nn.Module):
    """Every pixel looks at the others."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(N_CHANNELS)
        self.mix = nn.MultiheadAttention(N_CHANNELS, 2, batch_first=True)

    def forward(self, x):
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        mixed, _ = self.mix(tokens, tokens, tokens, need_weights=False)
        return x + mixed.transpose(1, 2).reshape(x.shape)


class RandomNetwork(nn.Module):
    """Runs its blocks in an order in which some come twice."""

    def __init__(self, blocks, order):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(N_CHANNELS, 3)
        self.order = order

    def forward(self, x):
        for number in self.order:
            block = self.blocks[number]
            x = block(x, scale=0.5) if isinstance(block, Nested) else block(x)
            if isinstance(x, dict):
                two, (product,) = x["parts"]
                x = x["sum"] + two - product
        return self.head(x.mean((2, 3)))


def random_network(seed):
    """Two to five blocks; the same for the same seed."""
    choice = random.Random(seed)  # noqa: S311
    torch.manual_seed(seed)
    kinds = [InPlaceSum, Dropping, Nested, Attending]
    blocks = [choice.choice(kinds)() for _ in range(choice.randint(2, 5))]
    order = list(range(len(blocks)))
    if choice.random() < 0.4:
        order.append(choice.choice(order))
    return RandomNetwork(blocks, order)
