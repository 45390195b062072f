"""``pose-analyzer-client``; says which extra it needs where that is missing."""

import sys
from importlib import import_module
from typing import Final

_NEEDED: Final = frozenset({"av", "rich", "typer"})


def main() -> None:
    """Run the command line."""
    try:
        demo = import_module("pose_analyzer_client.demo")
        import_module("pose_analyzer_client.upload_command")
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        sys.exit("This command needs more packages: pip install 'pose-analyzer-client[video]'")
    demo.app(prog_name="pose-analyzer-client")
