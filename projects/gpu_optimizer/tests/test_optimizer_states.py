"""Optimizer state on the host changes nothing; 8 bits change little."""

import copy

import pytest
import torch
from torch import nn

from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.offload.eight_bit import eight_bit_optimizer
from gpu_optimizer.offload.optimizer_states import OptimizerStateOffload

OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "adam-foreach": lambda groups: torch.optim.Adam(groups, lr=1e-2, foreach=True, amsgrad=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
    "plain-sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-2),
}


@pytest.fixture(autouse=True)
def _one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8), nn.Linear(8, 1))


def groups(model):
    parameters = list(model.parameters())
    return [{"params": parameters[:3]}, {"params": parameters[3:], "lr": 3e-3}]


def train(model, optimizer, n_steps=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        optimizer.zero_grad()
        x = torch.randn(16, 8, generator=generator)
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_bit_equal(name):
    plain = network()
    moved = copy.deepcopy(plain)
    train(plain, OPTIMIZERS[name](groups(plain)))
    optimizer = OPTIMIZERS[name](groups(moved))
    offload = OptimizerStateOffload(optimizer, part_bytes=512)
    offload.apply()
    train(moved, optimizer)
    assert equal(plain, moved)
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 3]
    assert (offload.away_bytes > 0) == (name != "plain-sgd")


def test_can_begin_and_end_in_the_middle_and_keeps_closures_and_schedulers():
    plain = network()
    moved = copy.deepcopy(plain)
    for model in (plain, moved):
        optimizer = OPTIMIZERS["adamw"](groups(model))
        train(model, optimizer)
        offload = OptimizerStateOffload(optimizer, part_bytes=512)
        if model is moved:
            offload.apply()
            assert offload.away_bytes > 0
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        train(model, optimizer)
        scheduler.step()
        train(model, optimizer)
        offload.undo()
        train(model, optimizer)
        assert offload.away_bytes == 0
        x = torch.ones(2, 8)

        def closure(model=model, optimizer=optimizer, x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        offload.apply() if model is moved else None
        assert optimizer.step(closure) > 0
    assert equal(plain, moved)


def test_state_dicts_are_those_of_the_plain_optimizer_both_ways():
    plain = network()
    moved = copy.deepcopy(plain)
    one = OPTIMIZERS["adamw"](groups(plain))
    two = OPTIMIZERS["adamw"](groups(moved))
    OptimizerStateOffload(two, part_bytes=512).apply()
    train(plain, one)
    train(moved, two)
    saved = copy.deepcopy(two.state_dict())
    for number, state in one.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(value, saved["state"][number][name])
    train(plain, one, seed=5)
    train(moved, two, seed=6)
    two.load_state_dict(copy.deepcopy(saved))
    moved.load_state_dict(network().state_dict())
    train(moved, two, 1)
    fresh = network()
    other = OPTIMIZERS["adamw"](groups(fresh))
    other.load_state_dict(saved)
    train(fresh, other, 1)
    assert equal(fresh, moved)


def test_eight_bits_take_the_same_groups_and_still_learn():
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 1024), nn.Tanh(), nn.Linear(1024, 1))
    plain = torch.optim.AdamW(
        [{"params": [model[0].weight]}, {"params": [*model[2].parameters()], "lr": 1e-3}], lr=5e-3
    )
    optimizer = eight_bit_optimizer(plain)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 1e-3]
    x = torch.randn(64, 8)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert any(each.dtype == torch.uint8 for each in optimizer.state[model[0].weight].values()
               if isinstance(each, torch.Tensor))  # fmt: skip


def test_what_has_no_eight_bit_form_is_refused():
    model = network()
    with pytest.raises(InvalidModelError, match="kind"):
        eight_bit_optimizer(torch.optim.RMSprop(model.parameters()))
    with pytest.raises(InvalidModelError, match="momentum"):
        eight_bit_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    used = OPTIMIZERS["adamw"](groups(model))
    train(model, used, 1)
    with pytest.raises(InvalidModelError, match="before the first step"):
        eight_bit_optimizer(used)
