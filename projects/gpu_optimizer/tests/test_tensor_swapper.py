"""Offloading changes where saved tensors are, never what comes out."""

import copy
import gc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpu_optimizer.checkpoint_manager import CheckpointManager
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.offload.links import HostLink
from gpu_optimizer.offload.saved_tensors import ChangedTensorError
from gpu_optimizer.offload.schedule import LinkSpeed
from gpu_optimizer.plans import CheckpointRegion, InvalidPlanError, Offload
from gpu_optimizer.steps.recorder import record_step
from gpu_optimizer.tensor_swapper import SwapSettings, TensorSwapper

ALL = Offload(("",), min_bytes=1)
N_STEPS = 6


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny operations on several threads mostly wait for each other."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


class Residual(nn.Module):
    """In-place ReLU, views, one module twice, dropout, an output that somebody keeps."""

    def __init__(self, width, n_calls=2):
        super().__init__()
        self.first = nn.Linear(width, 3 * width)
        self.norm = nn.BatchNorm1d(width)
        self.again = nn.Linear(width, width)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.3)
        self.n_calls = n_calls

    def forward(self, x):
        one, two, three = self.first(x).chunk(3, dim=-1)
        y = self.norm(one * two.sigmoid() + three.t().t())
        y += x
        for _ in range(self.n_calls):
            y = self.relu(self.again(y) + y)
        return self.dropout(y) * y.tanh()


class Net(nn.Module):
    def __init__(self, width=8, depth=3):
        super().__init__()
        self.blocks = nn.ModuleList(Residual(width, 1 + index % 2) for index in range(depth))
        self.head = nn.Linear(width, 4)
        self.seen = None

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        self.seen = x
        return self.head(x)


def train(model, n_steps=N_STEPS, width=8, n=16):
    """A few steps; returns losses, gradients of the last step and buffers."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = model(torch.randn(n, width)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [each.grad for each in model.parameters()], list(model.buffers())


def same(one, two):
    return one[0] == two[0] and all(
        torch.equal(a, b)
        for left, right in zip(one[1:], two[1:], strict=True)
        for a, b in zip(left, right, strict=True)
    )


def trained_both_ways(model, offload=ALL, link=None, **options):
    plain, moved = copy.deepcopy(model), model
    swapper = TensorSwapper(moved, SwapSettings(min_bytes=1), link)
    swapper.apply(offload)
    result = train(moved, **options)
    return train(plain, **options), result, swapper


def test_training_is_bit_equal_with_everything_offloaded():
    plain, moved, swapper = trained_both_ways(Net())
    assert same(plain, moved)
    assert swapper.schedule.trips
    assert swapper.last_offloaded_bytes > 0


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 4), st.sampled_from([2, 8, 33]), st.integers(2, 40), st.floats(1e5, 1e12),
    st.booleans(),
)  # fmt: skip
def test_random_networks_train_the_same(depth, width, n, bytes_per_s, planned):
    torch.manual_seed(0)
    link = HostLink(speed=LinkSpeed(bytes_per_s, bytes_per_s))
    offload = ALL if planned else None
    plain, moved, _ = trained_both_ways(
        Net(width, depth), offload, link, n_steps=5, width=width, n=n
    )
    assert same(plain, moved)


def test_only_the_chosen_modules_storages_go():
    swapper = TensorSwapper(Net())
    swapper.apply(Offload(("blocks.1",), min_bytes=1))
    train(swapper.model)
    some = swapper.last_offloaded_bytes
    swapper.apply(ALL)
    train(swapper.model)
    assert 0 < some < swapper.last_offloaded_bytes
    with pytest.raises(InvalidPlanError):
        swapper.apply(Offload(("blocks.7",)))


def test_parameters_inputs_outputs_and_views_of_them_stay():
    linear = nn.Linear(64, 64)
    swapper = TensorSwapper(linear)
    swapper.apply(ALL)
    inputs = torch.randn(5, 64, requires_grad=True)
    kept = linear(inputs[:3]).sigmoid_()
    kept.sum().backward()
    assert swapper.last_offloaded_bytes == 0


def test_memory_is_freed_in_the_forward_pass_and_the_copies_after_the_backward_pass():
    alive = []

    class Watched(nn.Module):
        def forward(self, x):
            y = (x * 2).exp()
            reference = torch.multiprocessing.reductions.StorageWeakRef(y.untyped_storage())
            z = y.sin()
            alive.append(reference)
            return z

    model = nn.Sequential(nn.Linear(8, 8), Watched(), nn.Linear(8, 8))
    swapper = TensorSwapper(model)
    swapper.apply(ALL)
    for _ in range(6):
        out = model(torch.randn(4, 8))
        assert alive[-1].expired()
        out.sum().backward()
    buffers = swapper.link.buffers
    del out
    gc.collect()
    held = buffers.held_bytes
    assert held > 0
    buffers.close()
    assert buffers.held_bytes == 0


def test_memory_that_is_being_copied_to_is_not_freed():
    class Watchful(HostLink):
        """Copies in are under way until somebody waits for them."""

        def __init__(self):
            super().__init__(speed=LinkSpeed(1e9, 1e9))
            self.under_way = {}
            self.n_fetched = 0

        def fetch(self, parcel):
            self.n_fetched += 1
            self.under_way[id(parcel)] = (parcel, flat := super().fetch(parcel))
            return flat

        def let_go(self, parcel):
            assert id(parcel) not in self.under_way

        def arrive(self, parcel):
            self.under_way.pop(id(parcel), None)

    class Eager(TensorSwapper):
        """Brings everything back as soon as the forward pass is over."""

        def _choose(self):
            super()._choose()
            if self.schedule is None:
                return
            trips = tuple(
                replace(trip, fetch=self.learned.timeline.forward_end)
                for trip in self.schedule.trips
            )
            actions = self.learned.actions(replace(self.schedule, trips=trips))
            self._policy = replace(self._policy, actions=actions)

    model, link = Net(), Watchful()
    swapper = Eager(model, SwapSettings(min_bytes=1), link)
    swapper.apply(ALL)
    train(model)
    assert swapper.last_offloaded_bytes > 0
    n_fetched = link.n_fetched
    train(model, n_steps=1)
    # Each once.
    assert link.n_fetched - n_fetched == len(swapper.schedule.trips)


def test_changing_a_saved_tensor_is_still_an_error():
    class Changed(nn.Module):
        def forward(self, x):
            y = x.exp()
            z = y * 2
            y.add_(1)
            return z + y

    for offload in (ALL, Offload((), min_bytes=1)):
        model = nn.Sequential(nn.Linear(4, 4), Changed())
        TensorSwapper(model).apply(offload)
        with pytest.raises(ChangedTensorError, match="in-place"):
            model(torch.randn(2, 4)).sum().backward()


def test_a_graph_can_be_run_backward_twice_and_two_graphs_in_any_order():
    model = Net()
    swapper = TensorSwapper(model)
    swapper.apply(ALL)
    model.eval()
    x = torch.randn(16, 8)
    loss = model(x).square().mean()
    loss.backward(retain_graph=True)
    once = [each.grad.clone() for each in model.parameters()]
    loss.backward()
    assert all(
        torch.equal(each.grad, 2 * g) for each, g in zip(model.parameters(), once, strict=True)
    )
    model.zero_grad()
    first, second = model(x).square().mean(), model(x).square().mean()
    first.backward()
    second.backward()
    assert all(
        torch.equal(each.grad, 2 * g) for each, g in zip(model.parameters(), once, strict=True)
    )


def test_steps_that_change_shape_are_right_and_evaluation_is_left_alone():
    torch.manual_seed(0)
    plain, model = (net := Net()), copy.deepcopy(net)
    TensorSwapper(model).apply(ALL)
    for n in (4, 7, 7, 5, 5, 5, 5, 5, 9, 3):
        x = torch.randn(n, 8)
        for each in (plain, model):
            torch.manual_seed(n)
            each.zero_grad()
            each(x).square().mean().backward()
        with torch.no_grad():
            model(x)
        pairs = zip(plain.parameters(), model.parameters(), strict=True)
        assert all(torch.equal(one.grad, two.grad) for one, two in pairs)


def test_works_with_checkpointed_blocks_and_autocast():
    class Checkpointed(Net):
        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            with torch.autocast("cpu", torch.bfloat16):
                return self.head(x).float()

    torch.manual_seed(3)
    plain, moved, swapper = trained_both_ways(Checkpointed())
    assert same(plain, moved)
    assert swapper.last_offloaded_bytes > 0


def test_checkpoint_regions_stay_and_what_is_around_them_goes():
    torch.manual_seed(3)
    plain = Net()
    model = copy.deepcopy(plain)
    manager, swapper = CheckpointManager(model), TensorSwapper(model)
    manager.apply([CheckpointRegion("blocks.1")])
    swapper.apply(ALL)
    assert same(train(plain), train(model))
    around = swapper.last_offloaded_bytes
    manager.undo()
    swapper.apply(ALL)
    train(model)
    assert 0 < around < swapper.last_offloaded_bytes


def test_a_module_cannot_be_both_checkpointed_and_offloaded():
    model = Net()
    manager, swapper = CheckpointManager(model), TensorSwapper(model)
    inside = Offload(("blocks.1.norm",), min_bytes=1)
    manager.apply([CheckpointRegion("blocks.1")])
    with pytest.raises(InvalidPlanError, match="inside of a checkpoint region"):
        swapper.apply(inside)
    manager.undo()
    swapper.apply(inside)
    manager.apply([CheckpointRegion("blocks.1")])
    with pytest.raises(InvalidPlanError, match="inside of a checkpoint region"):
        train(model)
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


@pytest.mark.parametrize("size_px", [150, 200])
def test_indices_of_a_pooling_are_held_in_16_bits_where_that_is_enough(size_px):
    pooling = nn.MaxPool2d(3, 2, 1)
    inputs = torch.randn(2, 3, size_px, size_px)
    found = []
    for moved in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), pooling)
        swapper = TensorSwapper(model)
        if moved:
            swapper.apply(Offload(("1",), min_bytes=1))
        for _ in range(5):
            model.zero_grad()
            model(inputs).square().sum().backward()
        found.append([each.grad for each in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    n_pooled = 2 * 4 * (size_px // 2) ** 2
    index_bytes = 2 if size_px**2 <= 1 << 15 else 8
    assert swapper.last_offloaded_bytes == 4 * n_pooled * 4 + n_pooled * index_bytes


def test_the_host_bound_holds_and_what_does_not_fit_stays():
    net = Net()
    link = HostLink(max_host_bytes=2000)
    plain, moved, swapper = trained_both_ways(net, link=link)
    assert same(plain, moved)
    assert 0 < swapper.last_offloaded_bytes <= 2000
    assert link.buffers.held_bytes <= 2000


def test_an_error_in_the_forward_pass_leaves_no_hooks():
    class Failing(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    model = nn.Sequential(nn.Linear(4, 4), Failing())
    swapper = TensorSwapper(model)
    swapper.apply(ALL)
    with pytest.raises(ValueError, match="no"):
        model(torch.randn(2, 4))
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    swapper.undo()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_prepare_reports_and_leaves_no_trace():
    torch.manual_seed(0)
    model = Net()
    x = torch.randn(16, 8)
    buffers = [each.clone() for each in model.buffers()]
    state = torch.get_rng_state()
    generous = SwapSettings(min_bytes=1, max_slowdown_ratio=1e9)
    swapper = TensorSwapper(model, generous)
    report = swapper.prepare(lambda: model(x).square().mean().backward(), n_pairs=1)
    assert report.enabled
    assert report.parity.bit_equal
    assert report.offloaded_bytes > 0
    assert report.peak_bytes < report.base_peak_bytes
    assert all(each.grad is None for each in model.parameters())
    assert all(torch.equal(one, two) for one, two in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_prepare_says_that_it_cannot_over_a_link_that_is_too_slow():
    model, x = Net(), torch.randn(16, 8)
    swapper = TensorSwapper(model, SwapSettings(min_bytes=1), HostLink(speed=LinkSpeed(1.0, 1.0)))
    report = swapper.prepare(lambda: model(x).sum().backward(), n_pairs=1)
    assert not report.enabled
    assert "hides" in report.reason
    assert not model._forward_hooks


def test_wrong_copies_are_found_before_they_do_harm():
    class Broken(HostLink):
        def fetch(self, parcel):
            return super().fetch(parcel).mul_(2)

    model, x = Net(), torch.randn(16, 8)
    swapper = TensorSwapper(model, SwapSettings(min_bytes=1), Broken())
    report = swapper.prepare(lambda: model(x).square().mean().backward(), n_pairs=1)
    assert not report.enabled
    assert not report.parity.agrees
    assert "differ" in report.reason
    assert not model._forward_hooks


def test_a_recorded_step_shows_what_a_plan_gains():
    swappers = []

    def prepare(model, _):
        swappers.append(TensorSwapper(model))
        swappers[0].apply(Offload(("conv1", "bn1", "relu", "maxpool"), min_bytes=1 << 10))

    workload = Workload("resnet50", batch_size=8, image_size_px=64, optimizer="sgd")

    def peak(prepare=None):
        return int(record_step(workload, prepare=prepare).timeline.size_bytes.cumsum().max())

    gained = peak() - peak(prepare)
    # What the first convolution and the ReLU return, and the indices of the pooling, which go in 16
    # bits; what that returns is saved by the next module.
    activations, n_indices = 8 * 64 * 2 * 32 * 32 * 4, 8 * 64 * 16 * 16
    assert swappers[0].last_offloaded_bytes == activations + n_indices * 2
    assert gained == activations + n_indices * 8
