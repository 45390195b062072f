"""Less at once, the same gradients: parts of a batch, chunks of a loss, mixed precision."""

from contextlib import contextmanager

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from gpu_optimizer.chunked_loss import TokenLoss, chunk_causal_lm_loss, chunked_cross_entropy
from gpu_optimizer.errors import InvalidModelError, UnknownNameError
from gpu_optimizer.precision import (
    MicroBatches,
    MixedPrecision,
    accumulate,
    batch_dependent_modules,
    count_label_tokens,
    split_batch,
)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    found = [each.grad.clone() for each in model.parameters()]
    model.zero_grad()
    return found


def assert_close(one, two, tolerance=1e-12):
    for left, right in zip(one, two, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@settings(deadline=None)
@given(n_items=st.integers(1, 9), size=st.integers(1, 10), seed=st.integers(0, 100))
def test_parts_of_a_batch_add_up_to_the_whole(n_items, size, seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2).double()
    batch = {"x": torch.randn(n_items, 3).double(), "y": torch.randn(n_items, 2).double()}

    def loss_of(part):
        return functional.mse_loss(model(part["x"]), part["y"])

    whole = loss_of(batch)
    whole.backward()
    expected = gradients(model)
    loss = accumulate(loss_of, batch, MicroBatches(size))
    assert_close(gradients(model), expected)
    assert float(loss) == pytest.approx(float(whole.detach()), rel=1e-6)


def test_texts_with_different_numbers_of_tokens_are_weighed_by_them():
    torch.manual_seed(0)
    model = nn.Linear(4, 7).double()
    batch = {"x": torch.randn(4, 5, 4).double(), "labels": torch.randint(0, 7, (4, 5))}
    batch["labels"][0, 2:] = -100
    batch["labels"][1] = -100

    def loss_of(part):
        logits = model(part["x"])[:, :-1].flatten(0, 1)
        return functional.cross_entropy(logits, part["labels"][:, 1:].flatten())

    loss_of(batch).backward()
    expected = gradients(model)
    loss = accumulate(loss_of, batch, MicroBatches(1, weight=count_label_tokens))
    assert_close(gradients(model), expected)
    assert torch.isfinite(loss)
    batch["labels"].fill_(-100)
    assert float(accumulate(loss_of, batch, MicroBatches(2, weight=count_label_tokens))) == 0.0


def test_what_has_no_items_goes_to_every_part():
    parts = split_batch((torch.arange(5), [torch.ones(2), 7]), 2)
    assert [part[0].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert all(part[1][1] == 7 and len(part[1][0]) == 2 for part in parts)


def test_gradients_are_exchanged_with_the_last_part_only():
    model, silent = nn.Linear(1, 1), []

    @contextmanager
    def no_sync():
        silent.append(1)
        yield
        silent.append(-1)

    seen = []

    def loss_of(part):
        seen.append(sum(silent))
        return model(part).mean()

    accumulate(loss_of, torch.ones(6, 1), MicroBatches(2, no_sync=no_sync))
    assert seen == [1, 1, 0]


def test_batch_normalisation_is_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.InstanceNorm2d(2), nn.ReLU())
    assert batch_dependent_modules(model) == ("1",)
    assert batch_dependent_modules(model.eval()) == ()


@pytest.mark.parametrize(("autocast", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_trains_in_fewer_bits(autocast, dtype):
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    precision = MixedPrecision(autocast, "cpu")
    assert precision.scaler.is_enabled() == (autocast == "fp16")
    x, losses = torch.randn(64, 8), []
    target = x.sum(1, keepdim=True)
    for _ in range(30):
        optimizer.zero_grad()
        with precision.autocast():
            output = model(x)
        assert output.dtype == dtype
        loss = functional.mse_loss(output.float(), target)
        precision.backward(loss)
        precision.step(optimizer, max_norm=10.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_an_overflow_skips_the_step_and_lowers_the_scale():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    precision, before = MixedPrecision("fp16", "cpu"), model.weight.detach().clone()
    scale = precision.scaler.get_scale()
    precision.backward(model(torch.full((1, 1), float("inf"))).sum())
    precision.step(optimizer)
    assert torch.equal(model.weight, before)
    assert precision.scaler.get_scale() < scale


def test_an_unknown_dtype_is_refused():
    with pytest.raises(UnknownNameError):
        MixedPrecision("int3")


@settings(deadline=None, max_examples=40)
@given(
    n_tokens=st.integers(1, 12),
    n_chunks=st.integers(1, 15),
    bias=st.booleans(),
    seed=st.integers(0, 1_000),
)
def test_chunked_cross_entropy_equals_the_plain_one(n_tokens, n_chunks, bias, seed):
    torch.manual_seed(seed)
    head = nn.Linear(5, 11, bias=bias).double()
    labels = torch.randint(0, 11, (2, n_tokens))
    labels[torch.rand(2, n_tokens) < 0.3] = -100
    labels[0, 0] = 3
    hidden = torch.randn(2, n_tokens, 5).double().requires_grad_()

    def plain():
        return functional.cross_entropy(head(hidden).flatten(0, 1), labels.flatten())

    def chunked():
        return chunked_cross_entropy(hidden, head, labels, TokenLoss(n_chunks))

    results = []
    for loss_of in (plain, chunked):
        loss = loss_of()
        (3.0 * loss).backward()
        results.append([loss.detach(), hidden.grad.clone(), *gradients(head)])
        hidden.grad = None
    assert_close(*results)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_chunked_cross_entropy_under_autocast(autocast):
    torch.manual_seed(0)
    head, labels = nn.Linear(32, 500, bias=False), torch.randint(0, 500, (64,))
    hidden = torch.randn(64, 32, requires_grad=True)
    results = []
    for n_chunks in (0, 7):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            if n_chunks:
                loss = chunked_cross_entropy(hidden, head, labels, TokenLoss(n_chunks))
            else:
                loss = functional.cross_entropy(head(hidden).float(), labels)
        # Small gradients survive fp16 only if the scale reaches the logits' gradients.
        (loss * 2.0**12).backward()
        results.append([loss.detach(), hidden.grad.clone(), *gradients(head)])
        hidden.grad = None
    tolerance = 1e-5 if autocast is None else 2e-2
    for one, two in zip(*results, strict=True):
        assert one.dtype == two.dtype == torch.float32
        assert float((one - two).norm() / one.norm()) < tolerance


def test_the_full_logits_never_exist():
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for each in torch.utils._pytree.tree_leaves(result):
                if isinstance(each, torch.Tensor):
                    largest = max(largest, each.numel())
            return result

    head, hidden = nn.Linear(4, 1_000), torch.randn(64, 4, requires_grad=True)
    with Sizes():
        loss = chunked_cross_entropy(
            hidden, head, torch.zeros(64, dtype=torch.int64), TokenLoss(n_chunks=8)
        )
        loss.backward()
    assert largest == 8 * 1_000


def small_llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def test_a_language_model_computes_its_loss_in_chunks_until_undone():
    model = small_llama()
    tokens = torch.randint(0, 97, (3, 9))
    labels = tokens.clone()
    labels[0, 4:] = -100

    def run(**more):
        loss = model(input_ids=tokens, labels=labels, **more).loss
        loss.backward()
        return [loss.detach(), *gradients(model)]

    plain, plain_part = run(), run(num_items_in_batch=50)
    logits = model(input_ids=tokens).logits
    undo = chunk_causal_lm_loss(model, 4)
    assert_close(run(), plain, 1e-5)
    assert_close(run(num_items_in_batch=50), plain_part, 1e-5)
    assert model(input_ids=tokens, labels=labels).logits is None
    assert torch.equal(model(input_ids=tokens).logits, logits)
    undo()
    assert torch.equal(model(input_ids=tokens, labels=labels).logits, logits)


def test_models_that_change_their_logits_are_refused():
    model = small_llama()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(InvalidModelError, match="softcapping"):
        chunk_causal_lm_loss(model, 2)
    with pytest.raises(InvalidModelError, match="causal"):
        chunk_causal_lm_loss(nn.Linear(1, 1), 2)
