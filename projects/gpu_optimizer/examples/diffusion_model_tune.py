"""Low-rank adapters for a diffusion model's UNet, within a memory budget.

    python diffusion_model_tune.py --budget 3GiB   # batch of 32 images of 64 pixels
    python diffusion_model_tune.py --small         # seconds on a CPU

Needs ``gpu-optimizer[quantize]`` for peft. The network's own weights stay as they are; only the
adapters beside its linear layers and convolutions learn, so what takes memory are activations.
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional

import gpu_optimizer
from gpu_optimizer.models.unet import UNet
from gpu_optimizer.optimizing import Wishes
from gpu_optimizer.plan_files import write_plan
from gpu_optimizer.plans import Budgeted

ADAPTED = ["projection", "out", "conv_in", "conv_out"]
Batch = dict[str, Tensor]


def noisy_batch(n_items: int, size_px: int, seed: int) -> Batch:
    """Mix discs with noise; the noise is what the network has to find (arXiv 2006.11239)."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.linspace(-1, 1, size_px)
    centres = torch.rand(n_items, 2, 1, 1, generator=generator) - 0.5
    distance = ((at[:, None] - centres[:, :1]) ** 2 + (at - centres[:, 1:]) ** 2).sqrt()
    images = torch.where(distance < 0.4, 1.0, -1.0).expand(n_items, 3, size_px, size_px)
    noise = torch.randn(images.shape, generator=generator)
    times = torch.randint(1000, (n_items,), generator=generator)
    kept = torch.cos(times / 1000 * torch.pi / 2)[:, None, None, None]
    return {
        "noisy": kept * images + (1 - kept**2).sqrt() * noise,
        "times": times.float(),
        "noise": noise,
    }


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return how far the noise is off that the network finds."""
    return functional.mse_loss(model(batch["noisy"], batch["times"]), batch["noise"])


def main() -> None:
    """Plan, tune, save the adapters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="seconds on a CPU")
    parser.add_argument("--budget", help="such as 3GiB, of live tensors")
    parser.add_argument("--out", type=Path, default=Path("diffusion_results"))
    asked = parser.parse_args()
    torch.manual_seed(0)
    if asked.small:
        unet, n_items, size_px, n_steps, budget = UNet((32, 32), 32), 16, 32, 4, "140MiB"
    else:
        unet, n_items, size_px, n_steps, budget = UNet(), 32, 64, 100, "3GiB"
    unet.requires_grad_(requires_grad=False)
    adapters = LoraConfig(r=8, lora_alpha=16, target_modules=ADAPTED)
    model: nn.Module = inject_adapter_in_model(adapters, unet)

    found = gpu_optimizer.optimize(
        model,
        loss_of,
        asked.budget or budget,
        inputs=noisy_batch(n_items, size_px, 0),
        wishes=Wishes(budget_of=Budgeted.ALLOCATED),
        report=print,
    )
    plan = found.plan
    print(f"as it is    {plan.base_peak.allocated / 2**20:10,.1f} MiB")
    print(f"planned     {plan.predicted_peak.allocated / 2**20:10,.1f} MiB")
    print(f"a step      {plan.slowdown_ratio:+10.1%}, {plan.exactness}")
    print(found.note)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, foreach=False)
    applied = found.apply(model, optimizer)
    losses = []
    for number in range(n_steps):
        batch = {k: v.to(device) for k, v in noisy_batch(n_items, size_px, number % 4).items()}
        losses.append(applied.train_step(batch, lambda part: loss_of(model, part)).item())
    applied.undo()
    asked.out.mkdir(parents=True, exist_ok=True)
    write_plan(plan, asked.out / "plan.yml")
    torch.save({n: each.detach().cpu() for n, each in trained.items()}, asked.out / "adapters.pt")
    print(f"loss        {losses[0]:.3f} -> {losses[-1]:.3f}; adapters in {asked.out}")


# What is measured is imported by another process, which must not begin again.
if __name__ == "__main__":
    main()
