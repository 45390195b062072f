"""The ``pose-analyzer`` command; each sub-command has a module of its own."""

from typing import Final

import typer

from pose_analyzer.cli.analyze import analyze_video
from pose_analyzer.cli.cost import show_cost
from pose_analyzer.cli.demo import run_demo
from pose_analyzer.cli.exits import Commands
from pose_analyzer.cli.models import models_app
from pose_analyzer.cli.teach import teach_exercise

app: Final = typer.Typer(
    name="pose-analyzer",
    help="Video of people -> poses -> joint angles -> repetitions.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or unusable input.",
)
app.command("analyze")(analyze_video)
app.command("cost")(show_cost)
app.command("demo")(run_demo)
app.command("teach")(teach_exercise)
app.add_typer(models_app, name="models")


@app.callback()
def main() -> None:
    """Video of people -> poses -> joint angles -> repetitions."""


__all__ = ["app"]
