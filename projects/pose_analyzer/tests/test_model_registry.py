"""What is known of model files: names, contents, exports."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pose_analyzer.errors import UnknownNameError
from pose_analyzer.model_files import (
    CLIPS,
    MODELS,
    FileState,
    exported_onnx_path,
    fetch_clip,
    fetch_model,
    locate_clip,
    locate_model,
    model_states,
)
from pose_analyzer.settings import Settings

from .model_file_contents import archive, put


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        model_path=(tmp_path / "first", tmp_path / "second"),
        model_dir=tmp_path / "models",
        clips_dir=tmp_path / "clips",
        cache_dir=tmp_path / "cache",
    )


@pytest.mark.parametrize("find", [locate_model, fetch_model, locate_clip, fetch_clip])
def test_an_unknown_name_lists_the_known_ones(
    settings: Settings, find: Callable[[str, Settings], Path]
) -> None:
    with pytest.raises(UnknownNameError, match="Known: "):
        find("nonsense", settings)


def test_an_export_belongs_to_one_content_of_the_weights(settings: Settings) -> None:
    weights = put(settings.model_dir, "yolo11n-pose.pt", archive("first"))
    first = exported_onnx_path(weights, settings)
    assert first == exported_onnx_path(weights, settings)
    assert first.parent.is_dir()
    weights.write_bytes(archive("second, longer"))
    assert exported_onnx_path(weights, settings) != first


def test_the_registry_is_consistent() -> None:
    files = [*MODELS.values(), *CLIPS.values()]
    assert len({file.filename for file in files}) == len(files)
    for file in files:
        assert file.sources
        assert all(len(sha256) == 64 for sha256 in file.sha256)
        assert file.licence in {"Apache-2.0", "AGPL-3.0", "BSD-3-Clause"}


@pytest.mark.shared_data
def test_the_official_bundles_are_recognised(shared_data: Path, settings: Settings) -> None:
    here = settings.model_copy(update={"model_path": (shared_data / "models",)})
    states = {file.published.name: file.state for file in model_states(here)}
    assert states["mediapipe-lite"] is FileState.VERIFIED
    assert states["mediapipe-full"] is FileState.VERIFIED
    assert states["yolo11n-pose"] is FileState.UNVERIFIED
