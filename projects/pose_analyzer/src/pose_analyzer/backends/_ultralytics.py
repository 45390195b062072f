"""Opening .pt weights with Ultralytics."""

from pathlib import Path
from typing import Any

from pose_analyzer.errors import BackendFailedError
from pose_analyzer.ultralytics_library import import_ultralytics


def load_pose_network(weights: Path, config_dir: Path) -> Any:  # noqa: ANN401 - untyped library
    """Open .pt weights as an `ultralytics.YOLO` pose model.

    A .pt file is a pickle: opening it can run code, so only weights of the official release or of
    the user's own making belong here, never an upload.

    Parameters
    ----------
    weights
        The .pt file.
    config_dir
        Where Ultralytics may write its settings; it would use the home folder otherwise.

    Raises
    ------
    BackendFailedError
        Ultralytics is not installed, the file is damaged, or it holds another kind of model.
    """
    try:
        ultralytics = import_ultralytics(config_dir)
    except ImportError as error:
        raise BackendFailedError(
            weights.stem,
            "the package ultralytics is missing. Install the extra `yolo` "
            "(pip install 'pose-analyzer[yolo]') or use --detector mediapipe.",
        ) from error
    if not weights.is_file():
        raise BackendFailedError(weights.stem, f"{weights} does not exist.")
    try:
        model = ultralytics.YOLO(str(weights))
    # Unpickling a damaged file may raise almost anything; all of it means the same to the user.
    except Exception as error:
        raise BackendFailedError(weights.stem, f"cannot read {weights}: {error}") from error
    if model.task != "pose":
        raise BackendFailedError(weights.stem, f"{weights} is a {model.task} model, not pose.")
    return model
