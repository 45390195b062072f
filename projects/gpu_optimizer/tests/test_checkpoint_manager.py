"""Checkpointed models against the plain ones: the same bits, less memory."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_optimizer.checkpoint_manager import CheckpointManager, candidate_regions
from gpu_optimizer.checkpointing.cuts import ForwardOperation, cheapest_cut
from gpu_optimizer.checkpointing.values import ChangedInputError
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.plans import CheckpointRegion, InvalidPlanError
from gpu_optimizer.steps.recorder import record_step
from gpu_optimizer.types import LayerMemory

from .picture_networks import SHAPE, InPlaceSum, random_network

N_STEPS = 3


@pytest.fixture(autouse=True)
def one_thread():
    """Threads wait for each other far longer than these networks take."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


class Counts(TorchDispatchMode):
    """Counts operations."""

    def __init__(self):
        super().__init__()
        self.n = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        self.n[name] = self.n.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


class Storages(TorchDispatchMode):
    """Follows the storages that come into being."""

    def __init__(self, model):
        super().__init__()
        self.all = {}
        self.old = {each.untyped_storage()._cdata for each in model.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.old:
                self.all.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        return out

    def alive_bytes(self):
        return sum(size for ref, size in self.all.values() if not ref.expired())


def kept_bytes(model, x):
    """What a forward pass leaves, its output included."""
    storages = Storages(model)
    with storages:
        out = model(x)
    alive = storages.alive_bytes()
    del out
    assert storages.alive_bytes() == 0
    return alive


def train(model, regions, autocast=False):
    """Gradients of every step, then parameters and buffers."""
    model = copy.deepcopy(model)
    manager = CheckpointManager(model)
    manager.apply(regions)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in range(N_STEPS):
        torch.manual_seed(step)
        x = torch.randn(SHAPE)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = functional.cross_entropy(model(x).float(), torch.zeros(len(x)).long())
        loss.backward()
        found += [each.grad.clone() for each in model.parameters() if each.grad is not None]
        optimizer.step()
        found.append(torch.rand(1))
    return [*found, *model.parameters(), *model.buffers()]


def assert_same_bits(one, two):
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert torch.equal(left, right)


def random_regions(model, seed):
    choice = random.Random(seed)  # noqa: S311
    if choice.random() < 0.15:
        return [CheckpointRegion("", choice.choice(["nothing", "products"]))]
    return [
        CheckpointRegion(f"blocks.{number}", choice.choice(["nothing", "products"]))
        for number in range(len(model.blocks))
        if choice.random() < 0.8
    ]


@pytest.mark.parametrize("seed", range(20))
def test_random_networks_train_to_the_same_bits(seed):
    model = random_network(seed)
    regions = random_regions(model, seed)
    for autocast in (False, True):
        assert_same_bits(train(model, [], autocast), train(model, regions, autocast))


def test_only_what_the_backward_pass_asks_for_is_repeated():
    torch.manual_seed(0)
    model = nn.Sequential(InPlaceSum(), InPlaceSum())
    manager = CheckpointManager(model)

    def backward_counts(*regions):
        manager.apply(regions)
        for _ in range(2):
            loss = model(torch.randn(SHAPE)).square().sum()
            counts = Counts()
            with counts:
                loss.backward()
        return counts.n

    plain = backward_counts()
    products = backward_counts(CheckpointRegion("0", "products"), CheckpointRegion("1", "products"))
    assert "convolution" not in products
    # Of each block the first norm and activation; the rest leads to the block's output only.
    assert products["native_batch_norm"] == 2
    assert products["relu_"] == 2
    thin = backward_counts(CheckpointRegion("0", "products", ("conv2",)))
    assert thin["convolution"] == 1
    everything = backward_counts(CheckpointRegion("0"), CheckpointRegion("1"))
    assert everything["convolution"] == 4
    assert everything["native_batch_norm"] == 2
    assert backward_counts() == plain


def test_regions_keep_less():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(4)))
    manager = CheckpointManager(model)
    x = torch.randn(1024, 64)
    each_bytes = x.numel() * x.element_size()
    kept = {}
    for keep in (None, "products", "nothing"):
        manager.apply([CheckpointRegion(str(i), keep) for i in range(4)] if keep else [])
        for _ in range(2):
            kept[keep] = kept_bytes(model, x)
    # Plain: results of each layer and of each activation; then one of both per block, the last
    # block's is the output.
    assert kept[None] == 8 * each_bytes
    assert kept["nothing"] == 4 * each_bytes
    model[0] = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
    manager.apply([CheckpointRegion("", "products")])
    for _ in range(2):
        kept["whole"] = kept_bytes(model, x)
    assert kept["whole"] == 6 * each_bytes


def test_memory_is_freed_step_by_step_within_a_region():
    """A whole model as one region must not wait for its end to free what it keeps."""
    alive = []

    class Looks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            alive.append(storages.alive_bytes())
            return gradient

    class Look(nn.Module):
        def forward(self, x):
            return Looks.apply(x)

    blocks = [nn.Sequential(Look(), nn.Linear(64, 64, bias=False), nn.Tanh()) for _ in range(6)]
    model = nn.Sequential(*blocks)
    CheckpointManager(model).apply([CheckpointRegion("", "products")])
    x = torch.randn(2048, 64, requires_grad=True)
    storages = Storages(model)
    for _ in range(2):
        storages.all.clear()
        alive.clear()
        with storages:
            model(x).sum().backward()
    weights = [each.grad for each in model.parameters()]
    each_bytes = x.numel() * x.element_size()
    # Two results are alive for each block that is still to come, and a gradient or two.
    assert alive[0] > alive[2] > alive[4]
    assert alive[-1] <= 3 * each_bytes + sum(each.numel() * 4 for each in weights)


def test_a_different_call_is_still_right():
    """Shapes, branches and frozen parameters may change from call to call."""

    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x, *, longer):
            x = self.one(x).relu_()
            x = x * x
            if longer:
                x = functional.dropout(self.two(x).sigmoid(), 0.5).exp()
            return (x.tanh() * x).relu_()

    def gradients(regions):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 6), Moody())
        CheckpointManager(model).apply(regions)
        found = []
        for n_items, longer, frozen in (
            (3, False, False),
            (3, True, False),
            (5, True, True),
            (2, False, False),
            (2, True, False),
        ):
            model[1].one.requires_grad_(not frozen)
            model.zero_grad()
            model[1](model[0](torch.randn(n_items, 6)), longer=longer).sum().backward()
            found += [each.grad for each in model.parameters() if each.grad is not None]
        return found

    for keep in ("nothing", "products"):
        assert_same_bits(gradients([]), gradients([CheckpointRegion("1", keep)]))


def test_backward_twice_and_gradients_of_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid())
    x = torch.randn(3, 4, requires_grad=True)

    def run():
        out = model(x).sum()
        first = torch.autograd.grad(out, x, retain_graph=True)[0]
        (second,) = torch.autograd.grad(out, x, create_graph=True)
        (third,) = torch.autograd.grad(second.square().sum(), x)
        return [first, second.detach(), third]

    plain = run()
    CheckpointManager(model).apply([CheckpointRegion("", "nothing")])
    assert_same_bits(plain, run())
    assert_same_bits(plain, run())


def test_what_was_overwritten_is_not_used():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Identity(), nn.Tanh())
            self.double = True

        def forward(self, x):
            x = x * 1.0
            out = self.inner(x + 0.0 if self.double else x)
            x += out
            return x * out

    model = Adds()
    model.inner = nn.Sequential(Doubled(), nn.Tanh(), nn.Tanh())
    model.double = False
    CheckpointManager(model).apply([CheckpointRegion("inner")])
    with pytest.raises(ChangedInputError, match="changed in place"):
        model(torch.randn(4, requires_grad=True)).sum().backward()


class Doubled(nn.Module):
    """Reads its input, which autograd does not save."""

    def forward(self, x):
        return x * 2.0


def test_undo_and_copies():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    special = model[0].forward
    model[0].forward = special
    manager = CheckpointManager(model)
    manager.apply([CheckpointRegion("0"), CheckpointRegion("1", "products")])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.zero_()
        twin[0].bias.zero_()
    assert twin(torch.ones(1, 4)).abs().sum() == 0
    out = model(torch.ones(2, 4)).sum()
    manager.undo()
    out.backward()
    assert model[0].forward is special
    assert "forward" not in vars(model[1])
    assert manager.regions == ()


@pytest.mark.parametrize(
    ("regions", "problem"),
    [
        ([CheckpointRegion("9")], "no module '9'"),
        ([CheckpointRegion("0"), CheckpointRegion("")], "in common"),
        ([CheckpointRegion("0"), CheckpointRegion("0", "products")], "in common"),
        ([CheckpointRegion("0", "products", ("missing",))], "no submodule 'missing'"),
        ([CheckpointRegion("1")], "not called itself"),
    ],
)
def test_plans_that_do_not_suit_the_model_change_nothing(regions, problem):
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)]))
    with pytest.raises(InvalidPlanError, match=problem):
        CheckpointManager(model).apply(regions)
    assert all("forward" not in vars(module) for module in model.modules())


def test_check_finds_a_difference():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU())
    manager = CheckpointManager(model)
    manager.apply([CheckpointRegion("", "products")])
    x = torch.randn(8, 4)
    assert manager.check(lambda: model(x).square().sum().backward()).bit_equal
    before = [each.clone() for each in model.buffers()]
    parity = manager.check(lambda: model(x).sum().backward())
    assert parity.bit_equal
    assert parity.agrees
    assert manager.regions
    assert_same_bits(before, list(model.buffers()))
    assert all(each.grad is None for each in model.parameters())

    model = model[::3]
    manager = CheckpointManager(model)
    manager.apply([CheckpointRegion("", "products")])

    def uneven():
        (model(x).sum() * (1.0 + 0.001 * len(manager.regions))).backward()

    parity = manager.check(uneven)
    assert not parity.agrees
    assert parity.gradient_difference == pytest.approx(0.001, rel=0.01)


def test_a_target_is_reached_or_nothing_is_made_worse():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    manager = CheckpointManager(model)
    asked = []

    def propose(budget_bytes):
        asked.append(budget_bytes)
        n = min((100 - budget_bytes) // 10, 3)
        return [CheckpointRegion(str(number)) for number in range(n)]

    # Each region frees 8, not 10 as the proposals have it.
    reached = manager.reach(80, propose, lambda: 100 - 8 * len(manager.regions))
    assert reached.is_met
    assert asked == [80, 76, 72, 68]
    assert len(manager.regions) == 3
    impossible = manager.reach(10, propose, lambda: 100 - 8 * len(manager.regions))
    assert not impossible.is_met
    assert impossible.best.peak_bytes == 76
    worse = manager.reach(10, propose, lambda: 100 + len(manager.regions))
    assert worse.best.regions == ()
    assert manager.regions == ()


def test_candidates_say_what_they_keep():
    leaf = LayerMemory("block.0", "Linear", 0, 0, 10, 0, time_s=3.0)
    block = LayerMemory("block", "Sequential", 0, 0, 30, 0, time_s=6.0, children=(leaf,))
    found = candidate_regions(LayerMemory("", "Net", 0, 0, 40, 0, children=(block,)))
    assert [each.region.module for each in found] == ["block", "block.0"]
    assert found[0].recompute_s == pytest.approx(2.0)


def test_cuts():
    def operation(reads, makes, moved=1, repeatable=True):
        return ForwardOperation(tuple(reads), tuple(makes), moved, repeatable)

    # A norm between two products: keep what the first product made, or what is smaller.
    chain = [
        operation([], [0], repeatable=False),
        operation([0], [1]),
        operation([1], [2], repeatable=False),
    ]
    cut = cheapest_cut(chain, [100, 100, 100], {0, 1})
    assert cut.kept == {0}
    assert cut.repeated == {1}
    assert cheapest_cut(chain, [100, 30, 100], {1}).kept == {1}
    # What cannot be kept is computed again, what costs too much is kept.
    assert cheapest_cut(chain, [100, None, 100], {1}).repeated == {1}
    dear = [operation([], [0], moved=64 * 100 + 1)]
    assert cheapest_cut(dear, [100], {0}).kept == {0}
    assert cheapest_cut(dear, [101], {0}).kept == frozenset()


def test_fake_tensors_show_what_regions_save():
    """So plans can be verified without a GPU; dropout keeps its random state there too."""
    n_items, width = 1 << 16, 256
    family = Family(
        name="blocks",
        build=lambda _: nn.Sequential(
            *(nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1)) for _ in range(6))
        ),
        inputs=lambda _: {"x": torch.randn(n_items, width)},
        loss=lambda model, batch: model(batch["x"]).sum(),
        blocks=lambda model: model.children(),
        predict=lambda model, batch: model(batch["x"]),
    )

    def peak_bytes(*regions):
        recording = record_step(
            Workload("blocks", optimizer="sgd"),
            family=family,
            prepare=lambda model, _: CheckpointManager(model).apply(regions),
        )
        return int(recording.timeline.size_bytes.cumsum().max())

    plain = peak_bytes()
    each_bytes = n_items * width * 4
    nothing = peak_bytes(*(CheckpointRegion(str(number)) for number in range(6)))
    assert plain - nothing > 4 * each_bytes
    assert nothing < peak_bytes(CheckpointRegion("0")) < plain
