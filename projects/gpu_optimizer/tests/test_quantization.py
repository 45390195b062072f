"""Weights and caches in fewer bits: what is stored, what comes back, what it takes."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.plans import InvalidPlanError, Quantization
from gpu_optimizer.quantization.adapters import with_adapters
from gpu_optimizer.quantization.errors import CannotFitError
from gpu_optimizer.quantization.files import load_quantized, save_quantized
from gpu_optimizer.quantization.filling import (
    Packing,
    fill,
    parameters_without_values,
    quantized_linear,
)
from gpu_optimizer.quantization.kv_cache import QuantizedCacheLayer, cache_bytes
from gpu_optimizer.quantization.libraries import nf4_weight, with_torchao
from gpu_optimizer.quantization.linear import PackedLinear
from gpu_optimizer.quantization.mixed import LayerOption, choose_within, smallest, upgrades
from gpu_optimizer.quantization.packing import pack, pack_pairs, unpack, unpack_pairs
from gpu_optimizer.quantization.quality import calibrate, perplexity, windows
from gpu_optimizer.quantization.schemes import (
    CacheShape,
    LayerChoice,
    LayerShape,
    bytes_of,
    group_for,
    kv_cache_bytes,
)
from gpu_optimizer.quantizer import (
    layer_options,
    linear_layers,
    measured_errors,
    mixed_by_quality,
    model_bytes,
    model_cache,
    plan_choices,
    quantize,
)

INT8, INT4, NF4 = LayerChoice("int8"), LayerChoice("int4", 32), LayerChoice("nf4")
# bitsandbytes looks for a kernel of another package on each CPU; peft asks by an old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes.*"),
]


def small_config(**fields: object) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, **fields,
    )  # fmt: skip


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(small_config()).eval()


@given(st.integers(2, 600), st.integers(2, 300) | st.none())
def test_a_row_is_cut_into_equal_groups(n_in: int, group_size: int | None) -> None:
    group = group_for(n_in, group_size)
    assert n_in % group == 0
    assert group_size is None or group <= max(group_size, 1) or group == n_in


@given(st.integers(1, 5), st.integers(1, 40))
def test_pairs_come_back(n_rows: int, n_pairs: int) -> None:
    codes = torch.randint(0, 16, (n_rows, 2 * n_pairs), dtype=torch.uint8)
    assert torch.equal(unpack_pairs(pack_pairs(codes)), codes)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9),
    st.sampled_from([6, 64, 96, 288]),
    st.sampled_from([None, 4, 32, 64]),
    st.floats(-3.0, 3.0),
    st.integers(0, 2**31),
)
def test_errors_stay_within_half_a_step(
    n_out: int, n_in: int, group_size: int | None, offset: float, seed: int
) -> None:
    weight = torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed)) + offset
    groups = weight.view(n_out, -1, group_for(n_in, group_size))
    span = groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)
    plain = span / 15 / 2
    wanted = plain.square().expand_as(groups).sum()
    change = unpack(pack(weight, LayerChoice("int4", group_size)), torch.float32) - weight
    # Scales and zeros are bf16, with 8 bits of their own.
    assert change.square().sum() <= wanted + (weight.abs().max() / 256).square() * weight.numel()
    step = weight.abs().view_as(groups).amax(-1, keepdim=True) / 127
    change8 = unpack(pack(weight, LayerChoice("int8", group_size)), torch.float32) - weight
    assert (change8.view_as(groups).abs() <= step * 0.5001).all()


def test_weights_that_int4_can_hold_come_back_exactly() -> None:
    codes = torch.randint(-8, 8, (4, 64)).float()
    codes[:, ::32], codes[:, 1::32] = -8.0, 7.0
    weight = codes * 0.5 + 1.0
    assert torch.equal(unpack(pack(weight, INT4), torch.float32), weight)


def test_important_inputs_keep_their_weights_best() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    importance = torch.ones(64)
    importance[::8] = 1000.0

    def error(of: Tensor | None) -> Tensor:
        change = unpack(pack(weight, LayerChoice("int4", 64), of), torch.float32) - weight
        return (change.square() * importance).sum()

    assert error(importance) < 0.5 * error(None)


@pytest.mark.parametrize("choice", [INT8, INT4, NF4], ids=lambda each: each.scheme)
def test_a_layer_computes_with_the_weight_that_it_stores(choice: LayerChoice) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(40, 128) / 10, torch.randn(40)
    layer = quantized_linear(weight, bias, choice)
    stored = nf4_weight(layer) if choice is NF4 else unpack(layer.packed, torch.float32)
    x = torch.randn(3, 5, 128, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, functional.linear(x, stored, bias), atol=2e-5, rtol=1e-4)
    y.square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (2 * y.detach()) @ stored, atol=1e-3, rtol=1e-3)


def test_autocast_decides_the_dtype_and_half_does_not_touch_scales() -> None:
    layer = PackedLinear(pack(torch.randn(8, 64), INT8))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16
    scales = layer.scales.clone()
    layer.half()
    assert torch.equal(layer.scales, scales)
    assert layer(torch.randn(2, 64, dtype=torch.float16)).dtype == torch.float16


def test_nothing_but_the_packed_weight_is_kept_for_the_gradient() -> None:
    kept: list[Tensor] = []
    layer = PackedLinear(pack(torch.randn(64, 64), INT4))
    x = torch.randn(2, 64, requires_grad=True)

    def note(saved: Tensor) -> Tensor:
        kept.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        layer(x)
    assert not kept


def test_torchao_gets_the_same_int8_values() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(PackedLinear(pack(torch.randn(32, 64), INT8), torch.randn(32)))
    x = torch.randn(4, 64)
    before, n_bytes = model(x), model_bytes(model)
    assert with_torchao(model) == ("0",)
    assert model_bytes(model) == n_bytes
    with pytest.raises(ValueError, match="before `with_torchao`"):
        save_quantized(model, Path("never written"))
    assert isinstance(model[0], nn.Linear)
    torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)


def test_int4_codes_mean_what_torchao_s_kernel_reads() -> None:
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
    torch.manual_seed(0)
    packed = pack(torch.randn(16, 128), INT4)
    codes = unpack_pairs(packed.codes).to(torch.int32)
    read = primitives._dequantize_affine_tinygemm(
        codes, (1, 32), packed.scales, packed.zeros, torch.int32, 0, 15
    )
    # It rounds to bf16 in between.
    torch.testing.assert_close(read.float(), unpack(packed, torch.float32), atol=0.02, rtol=0.0)


@pytest.mark.parametrize("choice", [INT8, INT4, LayerChoice("int4"), NF4], ids=str)
def test_bytes_are_predicted_exactly(model: LlamaForCausalLM, choice: LayerChoice) -> None:
    shapes = linear_layers(model)
    rest = model_bytes(model) - sum(each.n_bytes for each in shapes)
    choices = {each.name: choice for each in shapes}
    assert "lm_head" not in choices
    quantize(model, choices)
    assert model_bytes(model) == rest + bytes_of(shapes, choices)


def test_a_step_of_a_plan_names_layers_or_what_holds_them(model: LlamaForCausalLM) -> None:
    inside = plan_choices(model, Quantization("int8", ("model.layers.0.mlp", "lm_head")))
    assert set(inside) == {
        *(f"model.layers.0.mlp.{each}_proj" for each in ("gate", "up", "down")), "lm_head",
    }  # fmt: skip
    with pytest.raises(InvalidPlanError, match="no linear layer that int8"):
        plan_choices(model, Quantization("int8", ("model.norm",)))
    assert plan_choices(model, Quantization(None, kv_cache_bits=8)) == {}


def test_quantizing_is_undone_only_if_layers_were_kept(model: LlamaForCausalLM) -> None:
    before = {name: each.clone() for name, each in model.state_dict().items()}
    choices = plan_choices(model, Quantization("int4", group_size=32))
    quantized = quantize(model, choices, keep_originals=True)
    assert len(quantized.errors) == len(choices) == 14
    assert all(0.0 < each.weight_error_ratio < 0.2 for each in quantized.errors)
    quantized.undo()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    with pytest.raises(ValueError, match="keep_originals"):
        quantize(model, choices).undo()


@pytest.mark.parametrize("choice", [INT8, INT4, NF4], ids=lambda each: each.scheme)
def test_a_file_gives_the_same_model(choice: LayerChoice, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = small_config(tie_word_embeddings=True)
    model = LlamaForCausalLM(config).eval()
    quantize(model, {each.name: choice for each in linear_layers(model)})
    save_quantized(model, tmp_path / "model.safetensors")
    with parameters_without_values():
        loaded = LlamaForCausalLM(config).eval()
    load_quantized(loaded, tmp_path / "model.safetensors", torch.device("cpu"))
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, loaded(tokens).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_file_of_another_model_is_refused(model: LlamaForCausalLM, tmp_path: Path) -> None:
    quantize(model, {"model.layers.0.mlp.up_proj": INT4})
    save_quantized(model, tmp_path / "model.safetensors")
    with parameters_without_values():
        other = LlamaForCausalLM(LlamaConfig(**{**small_config().to_dict(), "hidden_size": 32}))
    with pytest.raises(InvalidModelError, match="not the quantized form"):
        load_quantized(other, tmp_path / "model.safetensors", torch.device("cpu"))
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(InvalidModelError):
        load_quantized(other, tmp_path / "bad.safetensors", torch.device("cpu"))


def test_a_model_filled_layer_by_layer_equals_one_quantized_whole(model: LlamaForCausalLM) -> None:
    state = {name: each.clone() for name, each in model.state_dict().items()}
    with parameters_without_values():
        bare = LlamaForCausalLM(small_config()).eval()
    assert all(each.is_meta for each in bare.parameters())
    choices = plan_choices(model, Quantization("int4", group_size=32))
    fill(bare, lambda name, _: state[name], torch.device("cpu"), torch.float32, Packing(choices))
    quantize(model, choices)
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, bare(tokens).logits)


@pytest.mark.parametrize("choice", [INT8, INT4], ids=lambda each: each.scheme)
def test_memory_is_predicted_on_tensors_without_values(choice: LayerChoice) -> None:
    with FakeTensorMode():
        model = LlamaForCausalLM(small_config()).eval()
        quantize(model, {each.name: choice for each in linear_layers(model)}, measure=False)
        cache = model_cache(model, 4)
        with torch.no_grad():
            logits = model(torch.zeros((1, 70), dtype=torch.int64), past_key_values=cache).logits
        assert logits.shape == (1, 70, 96)
        assert cache_bytes(cache) == kv_cache_bytes(CacheShape(2, 2, 16, 4), 70, 4)


# -- the cache


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=6), st.sampled_from([4, 8]))
def test_a_cache_gives_back_what_it_was_given(lengths: list[int], bits: int) -> None:
    generator = torch.Generator().manual_seed(sum(lengths))
    layer, given_keys, given_values = QuantizedCacheLayer(bits), [], []
    for length in lengths:
        keys, values = torch.randn(2, 1, 2, length, 16, generator=generator).unbind(0)
        given_keys.append(keys)
        given_values.append(values)
        all_keys, all_values = layer.update(keys, values)
        # The new tokens exactly, older ones nearly.
        assert torch.equal(all_keys[..., -length:, :], keys)
        assert torch.equal(all_values[..., -length:, :], values)
        step = 8.0 / (2**bits - 1)
        assert (all_keys - torch.cat(given_keys, -2)).abs().max() <= step
        assert (all_values - torch.cat(given_values, -2)).abs().max() <= step
    assert layer.get_seq_length() == sum(lengths)
    shape = CacheShape(1, 2, 16, 4)
    assert layer.n_bytes == kv_cache_bytes(shape, sum(lengths), bits)


def test_a_model_generates_with_a_quantized_cache(model: LlamaForCausalLM) -> None:
    tokens = torch.arange(90).unsqueeze(0) % 96
    cache = model_cache(model, 8)
    with torch.no_grad():
        whole = model(tokens).logits
        first = model(tokens[:, :80], past_key_values=cache).logits
        rest = model(tokens[:, 80:], past_key_values=cache).logits
    torch.testing.assert_close(torch.cat((first, rest), 1), whole, atol=0.02, rtol=0.0)
    assert cache_bytes(cache) == kv_cache_bytes(CacheShape(2, 2, 16, 4), 90, 8)
    written = model.generate(
        tokens[:, :70], past_key_values=model_cache(model, 4), max_new_tokens=5, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    assert written.shape == (1, 75)


def test_a_cache_reorders_its_sequences_and_cannot_be_cropped() -> None:
    layer = QuantizedCacheLayer(8)
    keys, values = torch.randn(2, 2, 1, 70, 8).unbind(0)
    layer.update(keys, values)
    layer.reorder_cache(torch.tensor([1, 0]))
    nothing = keys[..., :0, :]
    swapped, _ = layer.update(nothing, nothing)
    torch.testing.assert_close(swapped, keys.flip(0), atol=0.05, rtol=0.0)
    with pytest.raises(NotImplementedError, match="cropped"):
        layer.crop(-1)


# -- mixing


_OPTIONS = st.dictionaries(
    st.sampled_from("abcde"),
    st.lists(
        st.builds(LayerOption, st.just(INT8), st.integers(1, 50), st.floats(0.0, 10.0)),
        min_size=1, max_size=4,
    ),
    min_size=1,
)  # fmt: skip


@given(_OPTIONS, st.integers(0, 300))
def test_a_mixture_keeps_its_budget(options: dict[str, list[LayerOption]], budget: int) -> None:
    least = sum(each.n_bytes for each in smallest(options).values())
    if least > budget:
        with pytest.raises(CannotFitError, match="smallest"):
            choose_within(options, budget)
        return
    chosen = choose_within(options, budget)
    assert chosen.keys() == options.keys()
    assert sum(each.n_bytes for each in chosen.values()) <= budget
    damage = sum(each.damage for each in chosen.values())
    assert damage <= sum(each.damage for each in smallest(options).values()) + 1e-9


@given(_OPTIONS)
def test_upgrades_avoid_most_damage_per_byte_first(options: dict[str, list[LayerOption]]) -> None:
    slopes = [each.less_damage / each.more_bytes for each in upgrades(options)]
    assert all(each.more_bytes > 0 and each.less_damage > 0 for each in upgrades(options))
    assert all(a >= b * (1 - 1e-9) for a, b in pairwise(slopes))


def test_sensitive_layers_keep_more_bits(model: LlamaForCausalLM) -> None:
    pieces = windows([n * 7 % 96 for n in range(120)], 40)
    layers = [each.name for each in linear_layers(model)]
    calibration = calibrate(model, pieces[:1], layers)
    errors = measured_errors(model, (INT4, INT8), calibration, pieces[1:])
    assert all(each.loss_increase is not None for each in errors)
    options = layer_options(model, errors)
    plain = perplexity(model, pieces)
    found = mixed_by_quality(model, options, pieces, plain * 1.0005, calibration)
    assert found is not None
    assert found.perplexity <= plain * 1.0005
    quantize(model, found.choices, calibration)
    assert perplexity(model, pieces) == pytest.approx(found.perplexity, rel=1e-5)


def test_uniform_guessing_has_the_vocabulary_as_perplexity(model: LlamaForCausalLM) -> None:
    nn.init.zeros_(model.lm_head.weight)
    pieces = windows(list(range(60)), 25)
    assert [len(each) for each in pieces] == [25, 25, 10]
    assert perplexity(model, pieces) == pytest.approx(96.0, rel=1e-5)
    cached = perplexity(model, pieces, lambda: model_cache(model, 8), chunk_tokens=7)
    assert cached == pytest.approx(96.0, rel=1e-5)


def test_adapters_learn_on_frozen_nf4_weights(model: LlamaForCausalLM) -> None:
    quantize(model, {each.name: NF4 for each in linear_layers(model)})
    adapted = with_adapters(model, rank=4).train()
    trained = [each for each in adapted.parameters() if each.requires_grad]
    assert sum(each.numel() for each in trained) == sum(
        4 * (each.n_in + each.n_out) for each in linear_layers(LlamaForCausalLM(small_config()))
    )
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    tokens = torch.arange(32).unsqueeze(0)
    losses = []
    for _ in range(4):
        loss = adapted(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert math.isfinite(losses[-1])


def test_pure_bytes_of_llama_7b() -> None:
    shapes = [
        LayerShape(f"{layer}.{place}", *size)
        for layer in range(32)
        for place, size in enumerate([(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)])
    ]
    as_it_is = bytes_of(shapes, {})
    assert as_it_is == 2 * 6_476_005_376
    int4 = bytes_of(shapes, {each.name: LayerChoice("int4", 64) for each in shapes})
    assert int4 == 6_476_005_376 * 4.5 / 8
