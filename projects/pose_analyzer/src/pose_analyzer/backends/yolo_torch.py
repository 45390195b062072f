"""YOLO pose networks in PyTorch: the way of CUDA machines."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from pose_analyzer.backends._ultralytics import load_pose_network
from pose_analyzer.errors import BackendFailedError


class TorchBackend:
    """Runs .pt weights, fused and in inference mode.

    A .pt file is a pickle and is opened by Ultralytics' loader: only weights of the official
    release or of the user's own making belong here, never an upload.

    Parameters
    ----------
    path
        The .pt file.
    config_dir
        Where Ultralytics may write its settings.
    name
        Model as the user names it; the file's stem by default.
    device
        ``cpu`` or ``cuda:0``.
    half
        Compute in FP16; on CUDA only.

    Raises
    ------
    BackendFailedError
        Ultralytics is missing, the file is not a pose model, or the device is not there.
    """

    def __init__(
        self,
        path: Path,
        config_dir: Path,
        *,
        name: str | None = None,
        device: str = "cpu",
        half: bool = False,
    ) -> None:
        self._name = name or path.stem
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise BackendFailedError(self._name, "no CUDA device is available.")
        dtype = torch.float16 if half and self._device.type == "cuda" else torch.float32
        network = load_pose_network(path, config_dir).model
        # YOLO26 has two heads; Ultralytics predicts and exports with the one that needs
        # suppression unless told otherwise, and fusing drops the other one.
        if hasattr(network, "end2end"):
            network.end2end = False
        self._network: torch.nn.Module = network.fuse(verbose=False).eval().to(self._device, dtype)
        self._dtype = dtype

    @property
    def name(self) -> str:
        """Model as the user names it."""
        return self._name

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:0``."""
        return str(self._device)

    @torch.inference_mode()
    def infer(
        self, batch: Float32[np.ndarray, "batch 3 height width"]
    ) -> Float32[np.ndarray, "batch rows columns"]:
        """Raw network output for RGB images scaled to 0..1."""
        images = torch.from_numpy(batch).to(self._device, self._dtype)
        output = self._network(images)
        # In inference Ultralytics returns the decoded output, or it and the raw feature maps.
        decoded: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return decoded.float().cpu().numpy()

    def close(self) -> None:
        """Free the model."""
        del self._network
