"""A model and how it is run, as a value; needs no PyTorch."""

from dataclasses import dataclass

from gpu_optimizer.errors import UnknownNameError
from gpu_optimizer.types import Mode

DTYPES = ("fp32", "bf16", "fp16")
OPTIMIZERS = ("sgd", "sgd-momentum", "adam", "adamw")


@dataclass(frozen=True, slots=True)
class Workload:
    """A model and how it is run; everything that decides how much memory that takes."""

    family: str
    """Name of a registered model (see `models.registered`), or of one that is handed over."""
    mode: Mode = Mode.TRAIN
    batch_size: int = 1
    n_tokens: int | None = None
    """Sequence length; None: the family's usual one."""
    image_size_px: int | None = None
    """Height and width; None: the family's usual one."""
    dtype: str = "fp32"
    """Of parameters and inputs."""
    autocast: str | None = None
    """Dtype of `torch.autocast`; None: off."""
    optimizer: str = "adamw"
    foreach: bool = False
    """Whether the optimizer works on all parameters at once, as PyTorch does unless told not to."""
    checkpointing: bool = False
    """Whether every block of the model is recomputed in the backward pass."""
    n_new_tokens: int = 0
    """To generate after the prompt, one at a time, with a key-value cache."""
    n_micro_batches: int = 1
    """Equal parts that a batch in training is run in, their gradients added up."""

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("dtype", self.dtype, DTYPES),
            ("dtype", self.autocast or "fp32", DTYPES),
            ("optimizer", self.optimizer, OPTIMIZERS),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
