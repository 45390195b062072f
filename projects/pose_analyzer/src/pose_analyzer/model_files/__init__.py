"""Model files and sample clips: what they are, where they are, how to get them."""

from pose_analyzer.model_files.registry import CLIPS, MODELS, PublishedFile
from pose_analyzer.model_files.sources import DownloadProgress
from pose_analyzer.model_files.store import (
    FileState,
    LocalFile,
    clip_states,
    exported_onnx_path,
    fetch_clip,
    fetch_model,
    locate_clip,
    locate_model,
    model_states,
)

__all__ = [
    "CLIPS",
    "MODELS",
    "DownloadProgress",
    "FileState",
    "LocalFile",
    "PublishedFile",
    "clip_states",
    "exported_onnx_path",
    "fetch_clip",
    "fetch_model",
    "locate_clip",
    "locate_model",
    "model_states",
]
