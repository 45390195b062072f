"""A small network that removes noise from images: the shape of a diffusion model's memory."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """Two convolutions that know the time step; channels first, resolution kept."""

    def __init__(self, n_in: int, n_out: int, n_time: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(32, n_in)
        self.conv_in = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.time = nn.Linear(n_time, n_out)
        self.norm_out = nn.GroupNorm(32, n_out)
        self.conv_out = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, values: Tensor, time: Tensor) -> Tensor:
        """Return the features after one block."""
        hidden = self.conv_in(functional.silu(self.norm_in(values)))
        hidden = hidden + self.time(time)[:, :, None, None]
        hidden = self.conv_out(functional.silu(self.norm_out(hidden)))
        result: Tensor = hidden + self.skip(values)
        return result


class AttentionBlock(nn.Module):
    """Self-attention over all pixels."""

    def __init__(self, n_channels: int, n_heads: int = 4) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.GroupNorm(32, n_channels)
        self.projection = nn.Linear(n_channels, 3 * n_channels)
        self.out = nn.Linear(n_channels, n_channels)

    def forward(self, values: Tensor) -> Tensor:
        """Return the features after one block."""
        pixels = self.norm(values).flatten(2).transpose(1, 2)
        batch, n_pixels, channels = pixels.shape
        heads = self.projection(pixels).reshape(batch, n_pixels, 3, self.n_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, n_pixels, channels))
        result: Tensor = values + mixed.transpose(1, 2).reshape(values.shape)
        return result


class UNet(nn.Module):
    """Encoder and decoder with skips; attention at the two coarsest of four resolutions."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 256), n_time: int = 256) -> None:
        super().__init__()
        self.n_time = n_time
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        attends = [index >= len(widths) - 2 for index in range(len(widths))]
        steps = list(zip([widths[0], *widths[:-1]], widths, attends, strict=True))
        self.down = nn.ModuleList(_stage(n_in, n_out, n_time, a) for n_in, n_out, a in steps)
        self.shrink = nn.ModuleList(nn.Conv2d(n, n, 3, 2, 1) for n in widths[:-1])
        self.middle = _stage(widths[-1], widths[-1], n_time, attends[-1])
        coarse_first = list(pairwise([widths[-1], *reversed(widths)]))
        self.up = nn.ModuleList(
            _stage(n_in + n_out, n_out, n_time, a)
            for (n_in, n_out), a in zip(coarse_first, reversed(attends), strict=True)
        )
        self.norm = nn.GroupNorm(32, widths[0])
        self.head = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, images: Tensor, times: Tensor) -> Tensor:
        """Return the noise in images (batch, 3, height, width) at times (batch,)."""
        rates = torch.arange(self.n_time // 2, device=times.device, dtype=images.dtype)
        angles = times[:, None].to(images.dtype) * torch.exp(-rates * (9.2 / (self.n_time // 2)))
        time = torch.cat([angles.sin(), angles.cos()], dim=1)
        values = self.stem(images)
        kept = []
        for index, stage in enumerate(self.down):
            values = _run(stage, values, time)
            kept.append(values)
            if index < len(self.shrink):
                values = self.shrink[index](values)
        values = _run(self.middle, values, time)
        for index, stage in enumerate(self.up):
            values = _run(stage, torch.cat([values, kept.pop()], dim=1), time)
            if index < len(self.shrink):
                values = functional.interpolate(values, scale_factor=2.0)
        noise: Tensor = self.head(functional.silu(self.norm(values)))
        return noise


def _stage(n_in: int, n_out: int, n_time: int, attends: bool) -> nn.ModuleList:
    blocks: list[nn.Module] = [ResidualBlock(n_in, n_out, n_time)]
    return nn.ModuleList([*blocks, *([AttentionBlock(n_out)] if attends else [])])


def _run(stage: nn.Module, values: Tensor, time: Tensor) -> Tensor:
    for block in stage.children():
        values = block(values, time) if isinstance(block, ResidualBlock) else block(values)
    return values
