"""Runs a user's own script, unchanged, and traces the memory of the model in it."""

import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from gpu_optimizer.memory_tracer import MemoryTrace, MemoryTracer, TraceMode, cuda_index

MakeTracer = Callable[[nn.Module], MemoryTracer]


def on_gpu(model: nn.Module) -> bool:
    """Whether a model has parameters on a CUDA device."""
    return cuda_index(model) is not None


class FirstModelTracer:
    """Traces the first model that is run inside the ``with`` block, from its first call on.

    Parameters
    ----------
    make
        Makes the tracer of a model.
    is_meant
        Whether a model is the one to trace; a model that is called from another comes later.
    """

    def __init__(self, make: MakeTracer, is_meant: Callable[[nn.Module], bool] = on_gpu) -> None:
        self._make = make
        self._is_meant = is_meant
        self._tracer: MemoryTracer | None = None
        self._original = nn.Module.__call__
        self.model_kind = ""
        """Class of the traced model; empty: none was run."""

    @property
    def trace(self) -> MemoryTrace | None:
        """What was seen, once the block is left; None: no such model was run."""
        return None if self._tracer is None else self._tracer.trace

    def __enter__(self) -> "FirstModelTracer":  # noqa: PYI034 -- the checker of shapes refuses Self
        watch = self._watch
        original = self._original

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any module
            watch(module)
            return original(module, *args, **kwargs)

        # A forward hook would come too late: PyTorch has looked up `forward` by then.
        nn.Module.__call__ = call  # type: ignore[method-assign]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_watching()
        if self._tracer is not None:
            self._tracer.__exit__(kind, error, traceback)

    def _watch(self, module: nn.Module) -> None:
        if not self._is_meant(module):
            return
        self._stop_watching()
        self.model_kind = type(module).__name__
        tracer = self._make(module)
        tracer.__enter__()
        self._tracer = tracer

    def _stop_watching(self) -> None:
        nn.Module.__call__ = self._original  # type: ignore[method-assign]


def gpu_tracer(mode: TraceMode) -> MakeTracer:
    """Makes tracers of models on a GPU."""
    return lambda model: MemoryTracer(model, mode=mode)


def run_script(path: Path, arguments: Sequence[str]) -> None:
    """Run a Python file as ``python FILE ARGUMENTS`` would, in this process.

    Its exceptions are not caught, but for `SystemExit` that says all went well.
    """
    with _as_main(path, arguments):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            if end.code not in {None, 0}:
                raise


@contextmanager
def _as_main(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Let the script find its arguments and its neighbours."""
    before, folders = sys.argv, sys.path
    sys.argv = [str(path), *arguments]
    sys.path = [str(path.resolve().parent), *folders]
    try:
        yield
    finally:
        sys.argv, sys.path = before, folders
