"""One of two processes that train a checkpointed model together; prints nothing if all agrees.

python ddp_checkpointing.py RANK STORE
"""

import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gpu_optimizer.checkpoint_manager import CheckpointManager
from gpu_optimizer.plans import CheckpointRegion


def train(rank, *regions):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(
            nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
            for _ in range(3)
        ),
        nn.Dropout(0.2),
    )
    parallel = DistributedDataParallel(model)
    CheckpointManager(parallel.module).apply(regions)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        parallel(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    return [each.detach().clone() for each in (*model.parameters(), *model.buffers())]


def main():
    torch.set_num_threads(1)
    rank = int(sys.argv[1])
    distributed.init_process_group(
        "gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2
    )
    plain = train(rank)
    for keep in ("nothing", "products"):
        found = train(rank, *(CheckpointRegion(str(number), keep) for number in range(3)))
        assert all(torch.equal(one, two) for one, two in zip(plain, found, strict=True))
    mine = plain[0].clone()
    distributed.broadcast(mine, 0)
    assert torch.equal(mine, plain[0])
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
