"""The ``gpu-optimizer`` command; each sub-command has a module of its own.

Nothing here imports PyTorch before a command needs it: that takes seconds.
"""

import os
from typing import Final

import typer

from gpu_optimizer.cli.batch_size import show_batch_size
from gpu_optimizer.cli.cost import show_cost
from gpu_optimizer.cli.devices import show_devices
from gpu_optimizer.cli.exits import Commands
from gpu_optimizer.cli.fits import show_fits
from gpu_optimizer.cli.fragmentation import show_fragmentation
from gpu_optimizer.cli.optimize import show_optimization
from gpu_optimizer.cli.predict import show_prediction
from gpu_optimizer.cli.profile import show_profile
from gpu_optimizer.cli.quantize import show_quantization
from gpu_optimizer.cli.trace import show_trace

app: Final = typer.Typer(
    name="gpu-optimizer",
    help="A model and a run -> where every byte of GPU memory goes, with or without a GPU.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 failed or fits nowhere, 2 wrong usage or unusable input, "
    "3 no plan fits.",
)
app.command("devices")(show_devices)
app.command("predict")(show_prediction)
app.command("fits")(show_fits)
app.command("batch-size")(show_batch_size)
app.command("optimize")(show_optimization)
app.command("profile")(show_profile)
app.command("quantize")(show_quantization)
app.command("fragmentation")(show_fragmentation)
app.command("cost")(show_cost)
# What stands behind the script belongs to the script.
app.command("trace", context_settings={"allow_interspersed_args": False})(show_trace)


@app.callback()
def main() -> None:
    """A model and a run -> where every byte of GPU memory goes, with or without a GPU."""
    # Advice to those who train with transformers; read when the library is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


__all__ = ["app"]
