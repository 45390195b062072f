"""How Ultralytics (AGPL-3.0, optional extra `yolo`) is imported: quietly, and asking nobody."""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

from PIL import Image


def ultralytics_installed() -> bool:
    """Whether .pt weights can be read here."""
    return importlib.util.find_spec("ultralytics") is not None


def import_ultralytics(config_dir: Path) -> Any:  # noqa: ANN401 - untyped
    """Import Ultralytics so that it neither calls home nor installs packages on its own.

    It reads these variables once, at its first import in the process; downloads therefore have a
    process of their own, see `model_files.sources.download_yolo`.

    Parameters
    ----------
    config_dir
        Where it may write its settings; it would use the home folder otherwise.

    Raises
    ------
    ImportError
        It is not installed.
    """
    os.environ["YOLO_OFFLINE"] = "true"
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ.setdefault("YOLO_VERBOSE", "false")
    config_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("YOLO_CONFIG_DIR", str(config_dir))
    open_image = Image.open
    ultralytics = importlib.import_module("ultralytics")
    importlib.import_module("ultralytics.utils.patches")
    # It replaces Pillow's function for the whole process with one that looks for more packages.
    Image.open = open_image
    return ultralytics
