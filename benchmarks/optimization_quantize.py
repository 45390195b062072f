"""What quantization saves and costs on a GPU whose memory is capped at that of a small card.

    optimization_quantize.py --out quantize.json [--llm data/llm] [--smoke]

A Llama-7B with random weights is packed layer by layer, so that 16-bit weights are never in memory
as a whole. Quality is measured on the trained model of 15 M parameters, if its folder is given.
Each case stands for itself: an error is recorded as its result. --smoke: tiny, on the CPU.
"""

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch
from stories import N_TOKENS, story_model, story_tokens
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from gpu_optimizer.plans import Quantization
from gpu_optimizer.quantization.adapters import with_adapters
from gpu_optimizer.quantization.filling import (
    Packing,
    fill,
    parameters_without_values,
    quantized_linear,
)
from gpu_optimizer.quantization.kv_cache import KvBits, cache_bytes
from gpu_optimizer.quantization.libraries import with_torchao
from gpu_optimizer.quantization.quality import (
    Calibration,
    Window,
    calibrate,
    perplexity,
    stored_as,
    windows,
)
from gpu_optimizer.quantization.schemes import (
    CacheShape,
    LayerChoice,
    bytes_of,
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

CAP_BYTES: Final = int(7.66 * 2**30)
INT8: Final = LayerChoice("int8")
INT4: Final = LayerChoice("int4", 64)
NF4: Final = LayerChoice("nf4")


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    hidden: int = 4096
    inner: int = 11008
    n_layers: int = 32
    n_heads: int = 32
    vocabulary: int = 32000
    n_tokens: int = 2048
    n_long: int = 16384
    chunk: int = 2048
    n_trained: int = 1024
    n_new: int = 16


SMOKE: Final = Sizes(256, 704, 2, 4, 512, 192, 640, 128, 64, 4)


class Bench:
    """Runs cases, keeps their results, writes them after each."""

    def __init__(self, out: Path, sizes: Sizes, device: torch.device) -> None:
        self.out, self.sizes, self.device = out, sizes, device
        self.cuda = device.type == "cuda"
        self.results: dict[str, Any] = {"torch": torch.__version__, "sizes": vars(sizes)}
        if self.cuda:
            self.results["gpu"] = torch.cuda.get_device_name()

    def case(self, name: str, run: Callable[[], Mapping[str, Any]]) -> None:
        began = time.perf_counter()
        self.clean()
        try:
            found: Mapping[str, Any] = run()
        except Exception as error:  # noqa: BLE001 -- recorded; the other cases must still run
            found = {"error": f"{type(error).__name__}: {error}"[:600]}
        self.results[name] = {**found, "case_s": round(time.perf_counter() - began, 2)}
        self.clean()
        self.out.write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        print(name, json.dumps(self.results[name]), flush=True)

    def clean(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def begin_peak(self) -> None:
        self.clean()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def peaks(self) -> dict[str, int]:
        if not self.cuda:
            return {}
        free, total = torch.cuda.mem_get_info()
        return {
            "allocated_peak_bytes": torch.cuda.max_memory_allocated(),
            "reserved_peak_bytes": torch.cuda.max_memory_reserved(),
            "reserved_bytes": torch.cuda.memory_reserved(),
            "device_used_bytes": total - free,
        }

    def ms(self, run: Callable[[], object], n: int = 7) -> float:
        times = []
        for _ in range(n + 2):
            self.sync()
            began = time.perf_counter()
            run()
            self.sync()
            times.append(time.perf_counter() - began)
        return 1e3 * median(times[2:])

    # -- models

    def llama(self, choice: LayerChoice | None) -> LlamaForCausalLM:
        sizes = self.sizes
        config = LlamaConfig(
            vocab_size=sizes.vocabulary, hidden_size=sizes.hidden, intermediate_size=sizes.inner,
            num_hidden_layers=sizes.n_layers, num_attention_heads=sizes.n_heads,
            num_key_value_heads=sizes.n_heads, max_position_embeddings=sizes.n_long + 1024,
            attn_implementation="sdpa",
        )  # fmt: skip
        with parameters_without_values():
            model = LlamaForCausalLM(config).eval()
        choices = {} if choice is None else {s.name: choice for s in linear_layers(model)}
        generator = torch.Generator(self.device).manual_seed(0)

        def weights(name: str, shape: torch.Size) -> Tensor:
            if "norm" in name:
                return torch.ones(shape, device=self.device)
            dtype = torch.bfloat16
            made = torch.empty(shape, device=self.device, dtype=dtype)
            return made.normal_(0.0, 0.02, generator=generator)

        fill(model, weights, self.device, torch.bfloat16, Packing(choices))
        return model

    def tokens(self, n: int) -> Tensor:
        return torch.randint(0, self.sizes.vocabulary, (1, n), device=self.device)

    # -- cases

    def kernels(self) -> dict[str, Any]:
        """One layer: agreement of the kernels, and time for one, 16 and many tokens."""
        found: dict[str, Any] = {}
        sizes = self.sizes
        weight = torch.randn(sizes.inner, sizes.hidden, device=self.device) * 0.02
        weight = weight.to(torch.bfloat16)
        layers: dict[str, nn.Module] = {}
        plain = nn.Linear(sizes.hidden, sizes.inner, bias=False, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        layers["bf16"] = plain
        for label, choice in (("int4", INT4), ("int8", INT8), ("nf4", NF4)):
            holder = nn.Sequential(quantized_linear(weight, None, choice))
            layers[label] = holder[0]
            if label != "nf4":
                copied = nn.Sequential(quantized_linear(weight, None, choice))
                changed = with_torchao(copied)
                if changed:
                    layers[f"{label} torchao"] = copied[0]
                found[f"{label} torchao"] = bool(changed)
        exact: dict[str, Tensor] = {}
        with torch.inference_mode():
            for n in (1, 16, sizes.n_tokens):
                x = torch.randn(n, sizes.hidden, device=self.device, dtype=torch.bfloat16)
                for label, layer in layers.items():
                    found[f"{label} {n} tokens ms"] = round(self.ms(lambda: layer(x)), 4)  # noqa: B023
                    exact[label] = layer(x).float()
                for scheme in ("int4", "int8"):
                    if f"{scheme} torchao" in exact:
                        change = exact[f"{scheme} torchao"] - exact[scheme]
                        ratio = float(change.norm() / exact[scheme].norm())
                        found[f"{scheme} torchao difference, {n} tokens"] = ratio
        return found

    def inference(self, model: LlamaForCausalLM, bits: KvBits | None) -> dict[str, Any]:
        """A prompt of 2,048 tokens and some new ones, as generation runs them."""
        return self.generate(model, bits, self.sizes.n_tokens, self.sizes.n_tokens)

    def generate(
        self, model: LlamaForCausalLM, bits: KvBits | None, n_tokens: int, chunk: int
    ) -> dict[str, Any]:
        prompt = self.tokens(n_tokens)
        self.begin_peak()
        began = time.perf_counter()
        with torch.inference_mode():
            cache: Any = None if bits is None else model_cache(model, bits)
            for at in range(0, n_tokens, chunk):
                output = model(
                    prompt[:, at : at + chunk], past_key_values=cache, use_cache=True,
                    logits_to_keep=1,
                )  # fmt: skip
                cache = output.past_key_values
            self.sync()
            prompt_s = time.perf_counter() - began
            began = time.perf_counter()
            finite = True
            for _ in range(self.sizes.n_new):
                new = output.logits[:, -1:].argmax(-1)
                output = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
                finite = finite and bool(output.logits.isfinite().all())
            self.sync()
            new_s = (time.perf_counter() - began) / self.sizes.n_new
        found = {
            **self.peaks(), "prompt_s": prompt_s, "token_s": new_s, "finite": finite,
            "n_cached": int(cache.get_seq_length()), "weights_bytes": model_bytes(model),
        }  # fmt: skip
        if bits is not None:
            n_all = n_tokens + self.sizes.n_new
            shape = CacheShape(
                self.sizes.n_layers, self.sizes.n_heads, self.sizes.hidden // self.sizes.n_heads
            )
            found["cache_bytes"] = cache_bytes(cache)
            found["cache_predicted_bytes"] = kv_cache_bytes(shape, n_all, bits)
        return found

    def int4(self) -> None:
        """All inference with int4 weights, on one model."""
        held: dict[str, LlamaForCausalLM] = {}

        def build() -> dict[str, Any]:
            self.begin_peak()
            held["model"] = model = self.llama(INT4)
            with parameters_without_values():
                bare = LlamaForCausalLM(model.config)
            shapes = linear_layers(bare)
            # Made in fp32, run in bf16.
            rest = sum(each.nbytes for each in bare.parameters()) // 2
            rest -= sum(each.n_bytes for each in shapes) // 2
            predicted = rest + bytes_of(shapes, {each.name: INT4 for each in shapes})
            counted = model_bytes(model) - sum(each.nbytes for each in bare.buffers())
            return {**self.peaks(), "bytes": counted, "predicted_bytes": predicted}

        self.case("int4: build", build)
        if "model" not in held:
            return
        model = held["model"]
        both: tuple[KvBits | None, ...] = (None, 8, 4)
        for kernel in ("own", "torchao"):
            if kernel == "torchao":
                self.case("int4: to torchao", lambda: {"n_layers": len(with_torchao(model))})
            for bits in both:
                name = f"int4 {kernel}, cache {bits or 16} bits"
                self.case(f"{name}, prompt", lambda: self.inference(model, bits))  # noqa: B023
            self.case(
                f"int4 {kernel}, cache 4 bits, long",
                lambda: self.generate(model, 4, self.sizes.n_long, self.sizes.chunk),
            )

    def int8(self) -> None:
        """The first target: int8 layers, the rest in 16 bits."""
        held: dict[str, LlamaForCausalLM] = {}

        def build() -> dict[str, Any]:
            self.begin_peak()
            held["model"] = self.llama(INT8)
            return {**self.peaks(), "bytes": model_bytes(held["model"])}

        self.case("int8/16-bit: build", build)
        bits: KvBits | None
        for bits in (None, 8) if "model" in held else ():
            name = f"int8/16-bit own, cache {bits or 16} bits, prompt"
            self.case(name, lambda: self.inference(held["model"], bits))  # noqa: B023

    def qlora(self) -> dict[str, Any]:
        """Steps of training with adapters on nf4 weights."""
        self.begin_peak()
        model = with_adapters(self.llama(NF4)).train()
        trained = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=False)
        tokens = self.tokens(self.sizes.n_trained)
        losses, times = [], []
        for _ in range(3):
            self.sync()
            began = time.perf_counter()
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            times.append(time.perf_counter() - began)
        return {
            **self.peaks(), "losses": losses, "step_s": times,
            "n_trained": sum(each.numel() for each in trained),
        }  # fmt: skip

    def quality(self, llm: Path) -> None:
        """Perplexity of the trained model on nine stories; calibrated on what it writes itself."""
        model = story_model(llm).to(self.device)
        pieces = windows(story_tokens(llm), N_TOKENS)
        plain = perplexity(model, pieces)
        self.case("quality: plain", lambda: {"perplexity": plain})
        own = written_by(model, self.device)
        layers = [each.name for each in linear_layers(model)]
        calibration = calibrate(model, own, layers)

        def measured(choice: LayerChoice, *, calibrated: bool) -> dict[str, Any]:
            choices = plan_choices(model, Quantization(choice.scheme, (), choice.group_size))
            used = calibration if calibrated else None
            quantized = quantize(model, choices, used, keep_originals=True)
            try:
                found = perplexity(model, pieces)
            finally:
                quantized.undo()
            worst = max(quantized.errors, key=lambda each: each.weight_error_ratio)
            return {
                "n_layers": len(choices), "perplexity": found,
                "increase_ratio": found / plain - 1.0,
                "worst_layer": worst.layer, "worst_weight_error_ratio": worst.weight_error_ratio,
            }  # fmt: skip

        for label, choice in (
            ("int8", INT8), ("int4 rows", LayerChoice("int4")), ("int4 groups of 64", INT4),
            ("int4 groups of 32", LayerChoice("int4", 32)), ("nf4", NF4),
        ):  # fmt: skip
            self.case(f"quality: {label}", lambda: measured(choice, calibrated=False))  # noqa: B023
            if choice.scheme == "int4":
                name = f"quality: {label}, calibrated"
                self.case(name, lambda: measured(choice, calibrated=True))  # noqa: B023
        self.case(
            "quality: int4 and int8 mixed, calibrated",
            lambda: self.mixed(model, calibration, own, pieces, plain),
        )
        bits: KvBits
        for bits in (8, 4):
            self.case(
                f"quality: cache {bits} bits",
                lambda: self.cached(model, pieces, bits, plain),  # noqa: B023
            )

    def mixed(
        self,
        model: nn.Module,
        calibration: Calibration,
        own: tuple[Window, ...],
        pieces: tuple[Window, ...],
        plain: float,
    ) -> dict[str, Any]:
        """Layers chosen for at most 2% on the model's own text; measured on the stories."""
        options = layer_options(model, measured_errors(model, (INT4, INT8), calibration))
        found = mixed_by_quality(model, options, own, 1.02 * perplexity(model, own), calibration)
        if found is None:
            return {"error": "no mixture keeps the limit"}
        schemes = [each.scheme for each in found.choices.values()]
        with stored_as(model, found.choices, calibration.importance):
            reached = perplexity(model, pieces)
        n_weights = sum(each.n_out * each.n_in for each in linear_layers(model))
        return {
            "perplexity": reached, "increase_ratio": reached / plain - 1.0,
            "n_int4": schemes.count("int4"), "n_int8": schemes.count("int8"),
            "bits_per_weight": 8 * found.n_bytes / n_weights,
        }  # fmt: skip

    def cached(
        self, model: nn.Module, pieces: tuple[Window, ...], bits: KvBits, plain: float
    ) -> dict[str, Any]:
        found = perplexity(model, pieces, lambda: model_cache(model, bits), chunk_tokens=64)
        return {"perplexity": found, "increase_ratio": found / plain - 1.0}


def written_by(model: nn.Module, device: torch.device, n_stories: int = 8) -> tuple[Window, ...]:
    """Text the model makes up: it calibrates without seeing what quality is measured on."""
    generator = torch.Generator(device).manual_seed(0)
    tokens = torch.full((n_stories, 1), 1, device=device)
    cache: Any = None
    with torch.inference_mode():
        for _ in range(N_TOKENS - 1):
            output = model(tokens[:, -1:], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            odds = output.logits[:, -1].float().softmax(-1)
            tokens = torch.cat((tokens, torch.multinomial(odds, 1, generator=generator)), dim=1)
    return tuple(tokens.cpu().clone())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--llm", type=Path, help="folder with the trained model and its stories")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only-quality", action="store_true", help="also without a GPU")
    options = parser.parse_args()
    cuda = torch.cuda.is_available() and not options.smoke
    device = torch.device("cuda" if cuda else "cpu")
    bench = Bench(options.out, SMOKE if options.smoke else Sizes(), device)
    if cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(CAP_BYTES / total)
        bench.results["cap_bytes"] = CAP_BYTES
    if not options.only_quality:
        bench.case("kernels", bench.kernels)
        bench.int4()
        bench.case("qlora", bench.qlora)
        bench.int8()
    if options.llm is not None:
        bench.quality(options.llm)
    print("done")


if __name__ == "__main__":
    main()
