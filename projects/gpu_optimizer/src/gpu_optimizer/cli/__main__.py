"""The program ``gpu-optimizer``, also ``python -m gpu_optimizer.cli``: one command a process."""

import atexit
import gc
import sys
from contextlib import nullcontext
from typing import Final

from gpu_optimizer.cli import app
from gpu_optimizer.models.transformers_library import building_only

_PREDICTING: Final = (["predict"], ["fits"])
_OF_A_USER: Final = ["trace"]


def main() -> None:
    """Run one command in a process that ends with it.

    With PyTorch and transformers come some hundred thousand objects that stay until the end. To
    look through them for garbage while they come, and once more when the process ends, took a fifth
    of a prediction. What makes garbage are the recordings, and they collect it themselves.
    """
    command = sys.argv[1:2]
    predicting = command in _PREDICTING
    if predicting:
        gc.disable()
    if command != _OF_A_USER:
        atexit.register(gc.freeze)
    with building_only() if predicting else nullcontext():
        app(prog_name="gpu-optimizer")


if __name__ == "__main__":
    main()
