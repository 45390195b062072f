"""YOLO pose networks in ONNX Runtime: the fast way on a CPU."""

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from pose_analyzer.backends._ultralytics import load_pose_network
from pose_analyzer.errors import BackendFailedError
from shared_utils.machine import n_usable_cores

# From its import on, ONNX Runtime reports its use to Microsoft unless told not to.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

# They have no base class of their own but Exception.
_ORT_ERRORS: Final = (
    ort_state.EPFail,
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)


# PyTorch's exporter and the redirections around it belong to the whole process.
_export_lock = threading.Lock()


class OnnxBackend:
    """Runs an exported pose network.

    Parameters
    ----------
    path
        The .onnx file, exported with any batch and image size or with fixed ones.
    name
        Model as the user names it; the file's stem by default.
    n_threads
        Threads of one inference; None takes every core this process may use.
    cuda
        Use the first NVIDIA GPU; needs the GPU build of ONNX Runtime.

    Raises
    ------
    BackendFailedError
        The file is not a network of this kind, or the GPU build is missing.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str | None = None,
        n_threads: int | None = None,
        cuda: bool = False,
    ) -> None:
        self._name = name or path.stem
        if cuda and "CUDAExecutionProvider" not in ort.get_available_providers():
            raise BackendFailedError(self._name, "this ONNX Runtime has no CUDA support.")
        self._device = "cuda:0" if cuda else "cpu"
        options = ort.SessionOptions()
        options.intra_op_num_threads = n_threads or n_usable_cores()
        # Spinning gains 3 ms of 18 on idle cores and costs two thirds of the rate when decoding and
        # writing share them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        providers = ["CUDAExecutionProvider"] if cuda else ["CPUExecutionProvider"]
        try:
            self._session = ort.InferenceSession(path, options, providers=providers)
        except _ORT_ERRORS as error:
            raise BackendFailedError(self._name, f"cannot read {path}: {error}") from error
        self._input = self._session.get_inputs()[0]
        if len(self._input.shape) != 4 or self._input.type != "tensor(float)":
            raise BackendFailedError(
                self._name, f"{path} takes {self._input.type} {self._input.shape}, not images."
            )
        self._max_batch = _fixed(self._input.shape[:1])

    @property
    def name(self) -> str:
        """Model as the user names it."""
        return self._name

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:0``."""
        return self._device

    @property
    def fixed_hw(self) -> tuple[int, int] | None:
        """The only input size the network takes; None when it takes any."""
        size = _fixed(self._input.shape[2:])
        return None if size is None else (size[0], size[1])

    def infer(
        self, batch: Float32[np.ndarray, "batch 3 height width"]
    ) -> Float32[np.ndarray, "batch rows columns"]:
        """Raw network output for RGB images scaled to 0..1."""
        size = self._max_batch[0] if self._max_batch else len(batch)
        try:
            parts = [self._run(batch[i : i + size], size) for i in range(0, len(batch), size)]
        except _ORT_ERRORS as error:
            raise BackendFailedError(self._name, str(error)) from error
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def close(self) -> None:
        """Free the model."""
        del self._session

    def _run(
        self, part: Float32[np.ndarray, "_ 3 height width"], size: int
    ) -> Float32[np.ndarray, "_ rows columns"]:
        n_images = len(part)
        if n_images < size:
            padding = np.zeros((size - n_images, *part.shape[1:]), np.float32)
            part = np.concatenate([part, padding])
        output: Any = self._session.run(None, {self._input.name: part})[0]
        # Many networks take images. If rows and columns are those of people, the decoder tells.
        is_array = isinstance(output, np.ndarray)
        if not is_array or output.ndim != 3 or len(output) != len(part):
            form = f"shape {output.shape}" if is_array else f"a {type(output).__name__}"
            raise BackendFailedError(
                self._name,
                f"it is not a pose network: its output for {len(part)} images is {form}, not "
                "(images, rows, columns). Name the ONNX export of a YOLO pose model.",
            )
        people: np.ndarray = output[:n_images].astype(np.float32, copy=False)
        return people


def _fixed(shape: Sequence[Any]) -> tuple[int, ...] | None:
    """Return the sizes if all are numbers; a symbol is a size the caller may choose."""
    return tuple(shape) if all(isinstance(size, int) for size in shape) else None


def export_onnx(weights: Path, target: Path, config_dir: Path) -> None:
    """Write the ONNX form of .pt weights, for any batch and image size.

    Parameters
    ----------
    weights
        The .pt file; a pickle, see `load_pose_network`.
    target
        The .onnx file; it appears under its name only when complete.
    config_dir
        Where Ultralytics may write its settings.

    Raises
    ------
    BackendFailedError
        The weights cannot be read, or the extra `yolo` is needed and not installed.
    """
    # Ultralytics writes beside the weights, which may lie in a read-only folder.
    with (
        _export_lock,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder,
    ):
        copy = Path(folder) / weights.name
        shutil.copyfile(weights, copy)
        # Its exporter reports on stdout, which belongs to our own output.
        with contextlib.redirect_stdout(sys.stderr):
            model = load_pose_network(copy, config_dir)
            try:
                with warnings.catch_warnings():
                    # Tracing a network always warns, about nothing its user could change.
                    warnings.simplefilter("ignore")
                    exported = model.export(
                        format="onnx", dynamic=True, simplify=False, device="cpu", verbose=False
                    )
            except (ImportError, AssertionError, RuntimeError) as error:
                raise BackendFailedError(
                    weights.stem, f"{weights} cannot be exported to ONNX: {error}"
                ) from error
        Path(exported).replace(target)
