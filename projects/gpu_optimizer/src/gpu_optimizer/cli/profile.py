"""``gpu-optimizer profile``: which layer holds how much."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gpu_optimizer.cli.options import Json, Quiet, RunOptions, with_run_options
from gpu_optimizer.cli.output import print_json, result_console, say, steps, write_text
from gpu_optimizer.cli.runs import machine_for, model_run, read_model, run_dict, run_words
from gpu_optimizer.errors import NoGpuError
from gpu_optimizer.layers.views import tensor_layers
from gpu_optimizer.model_files.exported_programs import ExportedGraph
from gpu_optimizer.model_files.tensor_tables import TensorTable
from gpu_optimizer.reports.layer_tables import flat_table, tree_table
from gpu_optimizer.runs.fitting import ModelRun, record_on
from gpu_optimizer.types import LayerMemory, Machine
from shared_utils.gpu import read_gpus
from shared_utils.units import format_bytes


@dataclass(frozen=True, slots=True)
class _Profile:
    title: str
    layers: LayerMemory
    facts: dict[str, Any]
    """What else is known, for programs."""


@with_run_options
def show_profile(  # noqa: PLR0913 - one parameter per option of the command
    model: Annotated[
        str,
        typer.Argument(help="A registered name, a config.json, a .safetensors or a .pt2 file."),
    ],
    *,
    run: RunOptions,
    gpu: Annotated[str | None, typer.Option(help="GPU or machine whose kernels are used.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Really run it, on the GPU that is here.")
    ] = False,
    flat: Annotated[
        bool, typer.Option("--flat", help="Each module for itself, largest first.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="All rows; equal blocks apart.")] = False,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Levels of the tree; default: what is readable.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write a picture to this file.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the layers of a model: parameters, activations, gradients, peak, operations."""
    spec = read_model(model)
    with steps(quiet=quiet or as_json) as progress:
        if isinstance(spec, TensorTable | ExportedGraph):
            profile = _file_profile(Path(model).name, spec)
        elif measure:
            progress.say("running the step on the GPU")
            profile = _measured(model, model_run(spec, run))
        else:
            progress.say("loading PyTorch, running the step on tensors without values")
            profile = _estimated(model, model_run(spec, run), machine_for(gpu))
        if html is not None:
            progress.say("drawing")
            _draw(profile, html)
    if as_json:
        print_json({**profile.facts, "layers": asdict(profile.layers)})
    elif not quiet:
        say(profile.title)
        layers = profile.layers
        table = flat_table(layers, every=every) if flat else tree_table(layers, depth, every=every)
        result_console().print(table)
        if html is not None:
            say(str(html))


def _estimated(name: str, asked: ModelRun, machine: Machine) -> _Profile:
    recording = record_on(asked, machine)
    facts = {
        **run_dict(name, asked),
        "how": "estimate",
        "gpu": machine.gpu,
        "flops": recording.flops,
    }
    title = f"{run_words(name, asked)}; estimated for {machine.gpu}"
    return _Profile(title, recording.layers, facts)


def _measured(name: str, asked: ModelRun) -> _Profile:
    if not read_gpus():
        raise NoGpuError("Measuring a model's memory")
    # Imports PyTorch.
    from gpu_optimizer.runs.measured import measure_run  # noqa: PLC0415

    layers = measure_run(asked)
    facts = {**run_dict(name, asked), "how": "measure"}
    return _Profile(f"{run_words(name, asked)}; measured", layers, facts)


def _file_profile(name: str, spec: TensorTable | ExportedGraph) -> _Profile:
    sizes = spec.bytes_by_module()
    n_bytes = sizes[""]
    facts: dict[str, Any] = {"model": name, "weight_bytes": n_bytes, "n_tensors": len(spec.tensors)}
    words = f"{name}: {len(spec.tensors):,} tensors, {format_bytes(n_bytes)} of weights"
    if isinstance(spec, ExportedGraph):
        facts |= {"n_operations": spec.n_operations, "produced_bytes": spec.produced_bytes}
        words += f", {spec.n_operations:,} operations that make {format_bytes(spec.produced_bytes)}"
    return _Profile(words, tensor_layers(sizes, "weights"), facts)


def _draw(profile: _Profile, path: Path) -> None:
    # Imports plotly.
    from gpu_optimizer.reports.treemap import draw_treemap  # noqa: PLC0415

    write_text(path, draw_treemap(profile.layers, profile.title))
