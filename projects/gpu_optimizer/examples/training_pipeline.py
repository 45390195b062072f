"""A training from a memory budget to a trained model: plan, plan file, applied in one line, logged.

    python training_pipeline.py --budget 8GiB     # ResNet50 on synthetic images
    python training_pipeline.py --small           # a small network, seconds on a CPU

Everything needed in a script of your own is in `train`: `gpu_optimizer.apply` and `train_step`.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet50

import gpu_optimizer
from gpu_optimizer.batch_probing.cases import ModuleUse
from gpu_optimizer.integrations.tracking import log_to_tensorboard
from gpu_optimizer.optimizing import Wishes
from gpu_optimizer.plan_files import write_plan
from gpu_optimizer.plans import Budgeted

N_CLASSES = 4
Batch = dict[str, Tensor]


def small_network() -> nn.Module:
    """Stack a few convolutions with batch norms."""
    widths = (3, 16, 32, 32, 64)
    blocks = [
        nn.Sequential(nn.Conv2d(n_in, n_out, 3, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))
        for n_in, n_out in pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, N_CLASSES))


def make_batch(n_items: int, size_px: int, seed: int) -> Batch:
    """Draw noise with a bright quarter, whose place is the label."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n_items, 3, size_px, size_px, generator=generator)
    labels = torch.randint(N_CLASSES, (n_items,), generator=generator)
    half = size_px // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = half * (label // 2), half * (label % 2)
        image[:, top : top + half, left : left + half] += 1.0
    return {"images": images, "labels": labels}


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Run the model on a batch, or on a part of one."""
    return functional.cross_entropy(model(batch["images"]), batch["labels"])


def train(model: nn.Module, plan: Path, batches: list[Batch]) -> list[float]:
    """Train in place as a plan file says."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    applied = gpu_optimizer.apply(plan, model, optimizer)
    losses = []
    for batch in batches:
        here = {name: tensor.to(device) for name, tensor in batch.items()}
        losses.append(applied.train_step(here, lambda part: loss_of(model, part)).item())
    applied.undo()
    return losses


def main() -> None:
    """Plan, train, log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="seconds on a CPU")
    parser.add_argument("--budget", help="such as 8GiB, of live tensors")
    parser.add_argument("--out", type=Path, default=Path("training_pipeline_results"))
    asked = parser.parse_args()
    torch.manual_seed(0)
    if asked.small:
        model, n_items, size_px, n_steps, budget = small_network(), 256, 64, 8, "148MiB"
    else:
        model, n_items, size_px, n_steps, budget = resnet50(weights=None), 128, 224, 50, "8GiB"
    first = make_batch(n_items, size_px, 0)

    found = gpu_optimizer.optimize(
        model,
        loss_of,
        asked.budget or budget,
        inputs=first,
        use=ModuleUse(),
        wishes=Wishes(budget_of=Budgeted.ALLOCATED),
        report=print,
    )
    plan = found.plan
    print(f"as it is    {plan.base_peak.allocated / 2**20:10,.1f} MiB")
    print(f"planned     {plan.predicted_peak.allocated / 2**20:10,.1f} MiB")
    print(f"a step      {plan.slowdown_ratio:+10.1%}, {plan.exactness}")
    print(found.note)
    if not found.fits:
        raise SystemExit(f"It cannot fit: {getattr(found.answer, 'reason', '')}.")

    asked.out.mkdir(parents=True, exist_ok=True)
    plan_file = asked.out / "plan.yml"
    write_plan(plan, plan_file)
    losses = train(model, plan_file, [make_batch(n_items, size_px, n) for n in range(n_steps)])
    log_to_tensorboard(asked.out / "tensorboard", plan)
    print(f"loss        {losses[0]:.3f} -> {losses[-1]:.3f}; plan and curves in {asked.out}")


# What is measured is imported by another process, which must not begin again.
if __name__ == "__main__":
    main()
