"""``gpu-optimizer quantize``: a language model in fewer bits, and what that costs in quality."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from gpu_optimizer.cli.options import Json, Quiet
from gpu_optimizer.cli.output import OutputFailedError, print_json, result_console, say, steps
from shared_utils.units import format_bytes

if TYPE_CHECKING:
    from gpu_optimizer.runs.quantizing import QuantizingResult

_N_ROWS = 12


class _Scheme(StrEnum):
    INT8 = "int8"
    INT4 = "int4"
    NF4 = "nf4"


class _KvBits(StrEnum):
    FOUR = "4"
    EIGHT = "8"


def show_quantization(  # noqa: PLR0913 - one parameter per option of the command
    folder: Annotated[Path, typer.Argument(help="Folder with config.json and .safetensors files.")],
    *,
    scheme: Annotated[_Scheme, typer.Option(help="How weights are stored.")] = _Scheme.INT4,
    group: Annotated[
        int | None,
        typer.Option(min=2, help="Weights that share a scale; default: 64 for int4, else a row."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Text the quality is measured on (.json: a list of token numbers)."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Another text, that scales and layers are chosen by.")
    ] = None,
    kv_bits: Annotated[
        _KvBits | None, typer.Option(help="Measure with a key-value cache of so many bits, too.")
    ] = None,
    budget_gib: Annotated[
        float | None,
        typer.Option(min=0.001, help="Mix layers so that all parameters take so many GiB."),
    ] = None,
    max_increase: Annotated[
        float | None,
        typer.Option(min=0.0, help="Mix layers so that perplexity rises by so much (0.01: 1%)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the model here (.safetensors).")] = None,
    device: Annotated[str, typer.Option(help="Where it is done: cpu or cuda.")] = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Store a language model's weights in fewer bits; perplexity before and after, layer errors."""
    if device not in {"cpu", "cuda"}:
        raise typer.BadParameter("must be cpu or cuda", param_hint="--device")
    if out is not None and not out.parent.is_dir():
        raise OutputFailedError(out, "its folder does not exist")
    with steps(quiet=quiet or as_json) as progress:
        progress.say("loading PyTorch")
        from gpu_optimizer.runs.quantizing import (  # noqa: PLC0415 -- takes seconds
            QuantizingRequest,
            quantize_folder,
        )

        usual_group = 64 if scheme is _Scheme.INT4 else None
        bits: Literal[4, 8] | None = None
        if kv_bits is not None:
            bits = 4 if kv_bits is _KvBits.FOUR else 8
        request = QuantizingRequest(
            folder=folder,
            scheme=scheme.value,
            group_size=group or usual_group,
            text=text,
            calibration=calibration,
            kv_cache_bits=bits,
            budget_bytes=None if budget_gib is None else round(budget_gib * 2**30),
            max_increase_ratio=max_increase,
            out=out,
            device=device,
        )
        result = quantize_folder(request, progress.say)
    if as_json:
        print_json(_as_dict(result))
    elif not quiet:
        _print(result, folder)


def _as_dict(result: "QuantizingResult") -> dict[str, Any]:
    return {
        "bytes_before": result.bytes_before,
        "bytes_after": result.bytes_after,
        "perplexity_before": result.perplexity_before,
        "perplexity_after": result.perplexity_after,
        "perplexity_with_cache": result.perplexity_with_cache,
        "steps": [
            {"scheme": step.scheme, "group_size": step.group_size, "modules": list(step.modules)}
            for step in result.steps
        ],
        "layers": [
            {
                "layer": error.layer,
                "scheme": error.choice.scheme,
                "group_size": error.choice.group_size,
                "bytes": error.n_bytes,
                "weight_error_ratio": error.weight_error_ratio,
                "output_error_ratio": error.output_error_ratio,
            }
            for error in result.errors
        ],
    }


def _print(result: "QuantizingResult", folder: Path) -> None:
    schemes = ", ".join(f"{len(step.modules)} layers {step.scheme}" for step in result.steps)
    say(f"{folder.name}: {schemes or 'nothing quantized'}")
    ratio = result.bytes_after / max(result.bytes_before, 1)
    say(
        f"parameters {format_bytes(result.bytes_before)} -> {format_bytes(result.bytes_after)} "
        f"({ratio:.1%})"
    )
    before, after = result.perplexity_before, result.perplexity_after
    if before is None or after is None:
        say("quality not measured: give a text (--text)")
    else:
        say(f"perplexity {before:.4f} -> {after:.4f} ({after / before - 1.0:+.2%})")
        if result.perplexity_with_cache is not None:
            with_cache = result.perplexity_with_cache
            say(f"with the cache {with_cache:.4f} ({with_cache / before - 1.0:+.2%})")
    worst_first = sorted(
        result.errors,
        key=lambda each: each.output_error_ratio or each.weight_error_ratio,
        reverse=True,
    )
    table = Table("layer", "scheme", "size", "error of weights", "error of outputs")
    for column in table.columns[2:]:
        column.justify = "right"
    for error in worst_first[:_N_ROWS]:
        output = error.output_error_ratio
        table.add_row(
            error.layer,
            error.choice.scheme,
            format_bytes(error.n_bytes),
            f"{error.weight_error_ratio:.2%}",
            "" if output is None else f"{output:.2%}",
        )
    result_console().print(table)
    if len(worst_first) > _N_ROWS:
        say(f"and {len(worst_first) - _N_ROWS} layers with smaller errors (--json)")
