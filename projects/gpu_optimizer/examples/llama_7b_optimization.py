"""Llama-7B on a card of 8 GB: what fits as it is, what does in four bits, and how it is tuned.

    python llama_7b_optimization.py            # on a GPU, of which 7.66 GiB are used
    python llama_7b_optimization.py --small    # a tiny Llama, seconds on a CPU

Weights are random: this shows memory and time. For quality with weights of your own:
``gpu-optimizer quantize``. Needs ``gpu-optimizer[quantize]``.
"""

import argparse
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import gpu_optimizer
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.optimizing import Wishes
from gpu_optimizer.plans import Budgeted, Exactness
from gpu_optimizer.quantization.adapters import with_adapters
from gpu_optimizer.quantization.filling import Packing, fill, parameters_without_values
from gpu_optimizer.quantization.schemes import LayerChoice
from gpu_optimizer.quantizer import linear_layers, model_bytes, model_cache

CARD_GIB = 7.66
"""What an RTX 3070 Ti leaves to programs."""


@dataclass(frozen=True)
class Sizes:
    """A Llama and how it is run."""

    config: LlamaConfig
    n_prompt: int
    n_new: int
    n_tuning: int
    device: torch.device
    dtype: torch.dtype


def sizes(*, small: bool) -> Sizes:
    """Return those of Llama-7B, or tiny ones."""
    if small:
        config = LlamaConfig(
            vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
            attn_implementation="sdpa",
        )  # fmt: skip
        return Sizes(config, 48, 4, 32, torch.device("cpu"), torch.float32)
    config = LlamaConfig(max_position_embeddings=16_384, attn_implementation="sdpa")
    return Sizes(config, 2048, 32, 1024, torch.device("cuda"), torch.bfloat16)


def plan_full_training(asked: Sizes, *, small: bool) -> None:
    """Ask whether all weights could be trained: planned without a GPU."""
    if small:
        tokens = torch.randint(asked.config.vocab_size, (32, asked.n_tuning))
        found = gpu_optimizer.optimize(
            LlamaForCausalLM(asked.config),
            own_loss,
            "80MiB",
            inputs={"input_ids": tokens, "labels": tokens},
            wishes=Wishes(budget_of=Budgeted.ALLOCATED, verify=False),
        )
    else:
        workload = Workload("llama-7b", n_tokens=asked.n_tuning, dtype="bf16")
        wishes = Wishes(gpu="RTX 3070 Ti", exactness=Exactness.APPROXIMATE, verify=False)
        found = gpu_optimizer.optimize(workload, budget=f"{CARD_GIB}GiB", wishes=wishes)
    if found.fits:
        print(f"full training fits: {found.plan.predicted_peak}")
    else:
        print(f"full training cannot fit: {getattr(found.answer, 'reason', '')}")


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss that a transformers model computes when it is given labels."""
    loss: Tensor = model(**batch).loss
    return loss


def llama(asked: Sizes, choice: LayerChoice) -> LlamaForCausalLM:
    """Build a Llama layer by layer, so that it is never in 16 bits as a whole."""
    with parameters_without_values():
        model = LlamaForCausalLM(asked.config).eval()
    generator = torch.Generator(asked.device).manual_seed(0)

    def weights(name: str, shape: torch.Size) -> Tensor:
        if "norm" in name:
            return torch.ones(shape, device=asked.device)
        made = torch.empty(shape, device=asked.device, dtype=asked.dtype)
        return made.normal_(0.0, 0.02, generator=generator)

    choices = {layer.name: choice for layer in linear_layers(model)}
    fill(model, weights, asked.device, asked.dtype, Packing(choices))
    return model


def generate(asked: Sizes, model: LlamaForCausalLM) -> None:
    """Read a prompt and write some tokens, with keys and values in four bits."""
    cache: Any = model_cache(model, 4)
    tokens = torch.randint(asked.config.vocab_size, (1, asked.n_prompt), device=asked.device)
    began_s = time.perf_counter()
    with torch.inference_mode():
        for _ in range(asked.n_new):
            output = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens = output.logits[:, -1:].argmax(-1)
    took_s = time.perf_counter() - began_s
    print(f"int4 weights {model_bytes(model) / 2**20:,.1f} MiB, {took_s:.2f} s; {peak(asked)}")


def tune(asked: Sizes) -> None:
    """Take some steps of QLoRA: adapters learn beside frozen nf4 weights (arXiv 2305.14314)."""
    model = with_adapters(llama(asked, LayerChoice("nf4")), rank=8)
    model.train()
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    tokens = torch.randint(asked.config.vocab_size, (1, asked.n_tuning), device=asked.device)
    losses = []
    for _ in range(4):
        with torch.autocast(asked.device.type, torch.bfloat16):
            loss = own_loss(model, {"input_ids": tokens, "labels": tokens})
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    print(f"QLoRA loss {losses[0]:.3f} -> {losses[-1]:.3f}; {peak(asked)}")


def peak(asked: Sizes) -> str:
    """Say what was taken of the GPU since this was asked last."""
    if asked.device.type != "cuda":
        return "no GPU to measure on"
    taken = torch.cuda.max_memory_reserved() / 2**30
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return f"{taken:.2f} GiB reserved at most"


def main() -> None:
    """Plan, generate, tune."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="seconds on a CPU")
    small = parser.parse_args().small
    asked = sizes(small=small)
    torch.manual_seed(0)
    plan_full_training(asked, small=small)
    if asked.device.type == "cuda":
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(CARD_GIB * 2**30 / total_bytes)
    generate(asked, llama(asked, LayerChoice("int4", 64 if not small else 32)))
    tune(asked)


if __name__ == "__main__":
    main()
