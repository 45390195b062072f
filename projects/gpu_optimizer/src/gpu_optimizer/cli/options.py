"""Options that several commands share: how a model is run, and how the answer is printed."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.types import Mode

Json = Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout; sizes in bytes.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Model = Annotated[
    str,
    typer.Argument(
        help="A registered name (a wrong one lists them), or the path of a config.json."
    ),
]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a model is run; each field is an option of the command line."""

    mode: Annotated[Mode, typer.Option(help="What the model is run for.")] = Mode.TRAIN
    batch: Annotated[int, typer.Option(min=1, max=1 << 20, help="Items per step.")] = 1
    seq: Annotated[
        int | None,
        typer.Option("--seq", "--tokens", min=1, max=1 << 22, help="Tokens per item."),
    ] = None
    image: Annotated[
        int | None, typer.Option(min=1, max=1 << 14, help="Height and width of images, pixels.")
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of parameters: fp32, bf16, fp16; default: as its weights are published."
        ),
    ] = None
    autocast: Annotated[
        str | None, typer.Option(help="Dtype of torch.autocast: bf16 or fp16; default: off.")
    ] = None
    optimizer: Annotated[
        str, typer.Option(help="sgd, sgd-momentum, adam or adamw; for training.")
    ] = "adamw"
    foreach: Annotated[
        bool,
        typer.Option("--foreach", help="The optimizer works on all parameters at once."),
    ] = False
    checkpointing: Annotated[
        bool,
        typer.Option("--checkpointing", help="Every block is recomputed in the backward pass."),
    ] = False
    new_tokens: Annotated[
        int,
        typer.Option(min=0, max=1 << 20, help="Generate so many tokens with a key-value cache."),
    ] = 0
    expandable_segments: Annotated[
        bool,
        typer.Option(
            "--expandable-segments", help="As with PYTORCH_ALLOC_CONF=expandable_segments:True."
        ),
    ] = False

    @property
    def allocator(self) -> AllocatorConfig:
        """Settings of PyTorch's allocator."""
        return AllocatorConfig(expandable_segments=self.expandable_segments)


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes ``run: RunOptions`` one option for each of its fields."""
    hints = get_type_hints(RunOptions, include_extras=True)
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(RunOptions)
    ]
    signature = inspect.signature(command)
    own = [each for each in signature.parameters.values() if each.name != "run"]
    first = [each for each in own if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    last = [each for each in own if each.kind is inspect.Parameter.KEYWORD_ONLY]

    @wraps(command)
    def run_command(**arguments: Any) -> None:  # noqa: ANN401 - typer's values
        run = RunOptions(**{option.name: arguments.pop(option.name) for option in options})
        command(run=run, **arguments)

    parameters = [*first, *options, *last]
    run_command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run_command.__annotations__ = {each.name: each.annotation for each in parameters}
    return run_command
