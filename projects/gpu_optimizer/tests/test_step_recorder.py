"""What a step allocates, against bytes worked out by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from gpu_optimizer.kernels.attention import CudaTarget
from gpu_optimizer.kernels.semantics import cuda_semantics
from gpu_optimizer.memory_predictor import device_constants, predict_from
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.registered import FAMILIES
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.steps.recorder import record_step
from gpu_optimizer.types import CATEGORIES, PHASES, Category, Mode, Phase

ADA = CudaTarget((8, 9))
CUBLAS_BYTES = (4096 * 2 + 16 * 8) * 1024
# Of a recording.
N_STEPS = 2


def make_family(build, features=64, blocks=lambda model: []):
    def squares(model, batch):
        out = model(batch["x"])
        return (out * out).sum()

    return Family(
        name="tiny",
        build=lambda workload: build(),
        inputs=lambda workload: {"x": torch.randn(workload.batch_size, features)},
        loss=squares,
        blocks=blocks,
        predict=lambda model, batch: model(batch["x"]),
    )


MLP = make_family(
    lambda: nn.Sequential(nn.Linear(64, 128, bias=False), nn.ReLU(), nn.Linear(128, 10, bias=False))
)
DEEP = make_family(
    lambda: nn.Sequential(
        *(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4))
    ),
    blocks=lambda model: model.children(),
)


def record(family=MLP, **options):
    return record_step(Workload("tiny", batch_size=32, **options), ADA, family)


def allocated(timeline, category, phase=None):
    rows = (timeline.size_bytes > 0) & (timeline.category == CATEGORIES.index(category))
    if phase is not None:
        rows &= timeline.phase == PHASES.index(phase)
    return int(timeline.size_bytes[rows].sum())


def test_every_byte_of_an_mlp_step_is_in_its_place():
    timeline = record(optimizer="sgd").timeline
    weights = 4 * (64 * 128 + 128 * 10)
    hidden, out = 4 * 32 * 128, 4 * 32 * 10
    assert allocated(timeline, Category.PARAMETER) == weights
    assert allocated(timeline, Category.INPUT) == 4 * 32 * 64
    # Two steps; kept are ReLU's output, the network's output, the loss and the loss's gradient.
    assert allocated(timeline, Category.ACTIVATION) == 2 * (hidden + out + 4 + 4)
    assert allocated(timeline, Category.GRADIENT, Phase.BACKWARD) == 2 * weights
    assert allocated(timeline, Category.GRADIENT) == 2 * weights
    assert allocated(timeline, Category.OPTIMIZER_STATE) == 0
    # Before ReLU, and the squares; one cuBLAS workspace in each of the two threads.
    assert (
        allocated(timeline, Category.WORKSPACE, Phase.FORWARD) == 2 * (hidden + out) + CUBLAS_BYTES
    )
    # Left at the end: weights, input, gradients, workspaces.
    left = weights + weights + 4 * 32 * 64 + 2 * CUBLAS_BYTES
    assert int(timeline.size_bytes.sum()) == left


def test_every_free_belongs_to_an_allocation_before_it():
    timeline = record(DEEP).timeline
    born = {}
    for row, (size, block) in enumerate(zip(timeline.size_bytes, timeline.block, strict=True)):
        if size > 0:
            assert block not in born
            born[block] = (size, row)
        else:
            assert born.pop(block)[0] == -size


@pytest.mark.parametrize(("optimizer", "states"), [("sgd-momentum", 1), ("adamw", 2)])
@pytest.mark.parametrize("foreach", [False, True])
def test_the_optimizer_keeps_its_states_on_the_gpu_and_its_counters_off_it(
    optimizer, states, foreach
):
    timeline = record(optimizer=optimizer, foreach=foreach).timeline
    weights = allocated(timeline, Category.PARAMETER)
    assert allocated(timeline, Category.OPTIMIZER_STATE) == states * weights


def test_checkpointing_keeps_less_and_computes_the_same_gradients():
    plain, saving = record(DEEP), record(DEEP, checkpointing=True)
    assert saving.layers.activation_bytes < plain.layers.activation_bytes / 2
    assert saving.layers.gradient_bytes == plain.layers.gradient_bytes
    # What is computed again is an activation again, in the backward pass.
    assert allocated(saving.timeline, Category.ACTIVATION, Phase.BACKWARD) > 0


def test_inference_keeps_only_what_it_returns():
    timeline = record(mode=Mode.INFER).timeline
    assert allocated(timeline, Category.ACTIVATION) == 0
    assert allocated(timeline, Category.OTHER) == N_STEPS * 4 * 32 * 10


def test_a_recording_is_the_same_every_time():
    first, second = record(DEEP, autocast="bf16"), record(DEEP, autocast="bf16")
    for column in ("size_bytes", "block", "module", "phase", "category"):
        np.testing.assert_array_equal(
            getattr(first.timeline, column), getattr(second.timeline, column)
        )


def test_layers_add_up_and_backward_allocations_find_their_layer():
    recording = record(DEEP, optimizer="sgd")
    root = recording.layers
    for quantity in ("parameter_bytes", "gradient_bytes", "flops"):
        assert getattr(root, quantity) == sum(getattr(each, quantity) for each in root.children)
    first = root.children[0].children[0]
    assert first.kind == "Linear"
    assert first.gradient_bytes == first.parameter_bytes == 4 * (64 * 256 + 256)
    assert first.flops == 2 * 32 * 64 * 256
    assert root.peak_bytes >= root.activation_bytes + root.parameter_bytes


def test_categories_add_up_to_the_allocated_peak():
    recording = record(DEEP)
    prediction = predict_from(recording, device_constants("NVIDIA GeForce RTX 4090"))
    assert sum(prediction.by_category_bytes.values()) == prediction.allocated_peak_bytes
    assert prediction.allocated_peak_bytes <= prediction.reserved_peak_bytes
    assert prediction.reserved_peak_bytes < prediction.total_bytes


def test_autocast_follows_cuda_not_the_cpu():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)

        def forward(self, x):
            return functional.softmax(self.norm(self.linear(x)), -1)

    timeline = record(make_family(Norm), autocast="bf16", mode=Mode.INFER).timeline
    # Softmax gives fp32 (in bf16 on the CPU); autocast's copies of weight and bias live as long.
    kept_bytes = 4 * 32 * 64 + 2 * (64 * 64 + 64)
    assert allocated(timeline, Category.OTHER) == N_STEPS * kept_bytes


def test_dropout_keeps_one_byte_per_value():
    family = make_family(lambda: nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 64, bias=False)))
    sizes = record(family, optimizer="sgd").timeline.size_bytes
    assert np.count_nonzero(sizes == 32 * 64) == 2


def test_real_tensors_keep_the_rules_of_the_cpu():
    values = torch.randn(2, 4, 8, 16)
    attention = functional.scaled_dot_product_attention
    expected = attention(values, values, values)
    with cuda_semantics(ADA, lambda kernel, call: pytest.fail("a real tensor was intercepted")):
        torch.testing.assert_close(attention(values, values, values), expected)
        assert functional.dropout(values, 0.5).shape == values.shape
    torch.testing.assert_close(attention(values, values, values), expected)


def test_a_shortened_generation_has_the_peak_of_the_whole():
    from gpu_optimizer.steps import recorder

    tiny = Family(
        name="tiny-llama",
        build=lambda workload: _tiny_llama(),
        inputs=FAMILIES["llama-1b"].inputs,
        loss=FAMILIES["llama-1b"].loss,
        blocks=FAMILIES["llama-1b"].blocks,
        predict=FAMILIES["llama-1b"].predict,
    )
    workload = Workload("tiny", Mode.INFER, 2, n_tokens=16, dtype="bf16", n_new_tokens=24)
    shortened = record_step(workload, ADA, tiny).timeline
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "_N_NEW_TOKENS", 24)
        whole = record_step(workload, ADA, tiny).timeline
    assert len(shortened) < len(whole) / 2
    assert np.cumsum(shortened.size_bytes).max() == np.cumsum(whole.size_bytes).max()


def _tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)
