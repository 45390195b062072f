"""What Ultralytics' own `predict` manages on the same pictures, as the thing to beat."""

import tempfile
import time
from pathlib import Path
from typing import Any, Final

import cv2

from pose_analyzer.errors import ModelUnavailableError
from pose_analyzer.model_files import locate_model
from pose_analyzer.settings import Settings
from pose_analyzer.ultralytics_library import import_ultralytics, ultralytics_installed

BATCHES: Final = (1, 4, 8, 16)
_MODEL: Final = "yolo11n-pose"
_N_PICTURES: Final = 32  # decoded 1080p pictures take 6 MB each
_WARM_UP: Final = 3
_SECONDS: Final = 4.0


def ultralytics_rates(folder: Path, device: str) -> dict[str, Any] | None:
    """Frames per second of `predict` by batch, pictures decoded beforehand.

    Parameters
    ----------
    folder
        Of JPEG files.
    device
        ``cpu`` or ``cuda:0``; half precision on a GPU.

    Returns
    -------
    dict or None
        None where the library or the model is not installed.
    """
    if not ultralytics_installed():
        return None
    try:
        weights = locate_model(_MODEL, Settings())
    except ModelUnavailableError:
        return None
    with tempfile.TemporaryDirectory() as config:
        library = import_ultralytics(Path(config))
        model = library.YOLO(str(weights))
        paths = sorted(folder.glob("*.jp*g"))[:_N_PICTURES]
        images = [cv2.imread(str(path)) for path in paths]
        rates = {}
        for batch in BATCHES:
            picked = [images[i % len(images)] for i in range(batch)]
            options = {"device": device, "half": device != "cpu", "verbose": False}
            for _ in range(_WARM_UP):
                model.predict(picked, **options)
            began, n_done = time.perf_counter(), 0
            while time.perf_counter() - began < _SECONDS:
                model.predict(picked, **options)
                n_done += batch
            rates[str(batch)] = round(n_done / (time.perf_counter() - began), 1)
    return {
        "version": library.__version__,
        "model": _MODEL,
        "device": device,
        "frames_per_s": rates,
    }
