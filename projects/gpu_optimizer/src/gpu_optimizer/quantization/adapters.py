"""QLoRA (arXiv 2305.14314): low-rank adapters that are trained on top of frozen nf4 weights."""

from typing import Any

from torch import nn

from gpu_optimizer.quantization.libraries import is_nf4, library


def with_adapters(
    model: nn.Module, rank: int = 16, alpha: float = 32.0, dropout: float = 0.0
) -> nn.Module:
    """Put a trainable adapter beside each nf4 layer of a transformers model.

    Everything else is frozen; blocks are recomputed in the backward pass, since what they would
    keep takes more than the weights. Unlike peft's own preparation this leaves embeddings, norms
    and head in their dtype: in fp32 those of Llama-7B alone would take another 0.5 GB.

    Parameters
    ----------
    model
        With layers from `libraries.nf4_linear`.
    rank
        Of the adapters' matrices.
    alpha
        Adapters are scaled by ``alpha / rank``.
    dropout
        Of an adapter's input.

    Returns
    -------
    peft's model around the same modules; its adapters are fp32.

    Raises
    ------
    MissingLibraryError
        peft or bitsandbytes is not installed.
    ValueError
        No layer is nf4.
    """
    peft = library("peft", "QLoRA")
    library("bitsandbytes", "QLoRA")
    targets = [name for name, module in model.named_modules() if is_nf4(module)]
    if not targets:
        raise ValueError("no layer is nf4: quantize with the scheme nf4 first")
    transformer: Any = model
    model.requires_grad_(requires_grad=False)
    # What peft asks for before it looks for bitsandbytes' layers.
    transformer.is_loaded_in_4bit = True
    # Renamed in transformers 5.20 or so.
    recompute = getattr(transformer, "activation_checkpointing_enable", None)
    (recompute or transformer.gradient_checkpointing_enable)({"use_reentrant": False})
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted
