"""Names of the models this package builds itself, for those that must not import PyTorch."""

from typing import Final

REGISTERED_NAMES: Final = (
    "resnet50",
    "vit_b_16",
    "vit",
    "bert-base",
    "gpt2",
    "llama-1b",
    "llama-7b",
    "qwen",
    "mistral",
    "yolo11n-pose",
    "unet",
)
"""Keys of `models.registered.FAMILIES`."""
