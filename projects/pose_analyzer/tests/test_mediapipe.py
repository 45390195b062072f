"""What only the MediaPipe detector has."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from pose_analyzer.backends import (
    MediaPipePoseDetector,
    mediapipe,
)
from pose_analyzer.errors import BackendFailedError
from pose_analyzer.skeletons import BLAZEPOSE_OF_COCO
from pose_analyzer.sources import open_source
from pose_analyzer.types import Frame

from .builders import pictures_without_people


@pytest.fixture(scope="session")
def squat(shared_data: Path) -> list[Frame]:
    """Frames of one person squatting, in close succession."""
    frames = open_source(shared_data / "videos" / "squat_air_34view_360p24.mp4").frames()
    return [next(frames) for _ in range(12)]


@pytest.mark.shared_data
class TestMediaPipe:
    """What only MediaPipe has: landmarks, and memory of the frames before."""

    @pytest.fixture
    def lite(self, shared_data: Path) -> Path:
        return shared_data / "models" / "pose_landmarker_lite.task"

    def test_landmarks_stand_beside_the_keypoints(self, lite: Path, squat: list[Frame]) -> None:
        detector = MediaPipePoseDetector(lite, mode="image")
        [[pose]] = detector.detect([squat[0].image_bgr])
        detector.close()
        marks = pose.landmarks
        assert marks is not None
        np.testing.assert_array_equal(pose.keypoints_px, marks.image_px[BLAZEPOSE_OF_COCO, :2])
        np.testing.assert_array_equal(
            pose.confidences, np.minimum(marks.visibility, marks.presence)[BLAZEPOSE_OF_COCO]
        )
        np.testing.assert_allclose(marks.world_m[[23, 24]].mean(axis=0), 0, atol=0.05)
        assert 0.5 < np.ptp(marks.world_m[:, 1]) < 2.5

    def test_any_times_are_accepted(self, lite: Path, squat: list[Frame]) -> None:
        detector = MediaPipePoseDetector(lite)
        times_s = [0.0, 0.0, 0.0001, 0.004, 0.0083, 0.0125]  # repeated, 1,000 Hz, 240 Hz
        images = [frame.image_bgr for frame in squat[:6]]
        people = detector.detect(images, times_s)
        detector.close()
        assert [len(found) for found in people] == [1] * 6

    def test_an_earlier_time_starts_a_new_video(self, lite: Path, squat: list[Frame]) -> None:
        detector = MediaPipePoseDetector(lite)
        images = [frame.image_bgr for frame in squat]
        times_s = [frame.time_s for frame in squat]
        first = detector.detect(images, times_s)
        again = detector.detect(images, times_s)
        detector.close()
        for [one], [other] in zip(first, again, strict=True):
            np.testing.assert_array_equal(one.keypoints_px, other.keypoints_px)

    def test_video_mode_needs_times(self, lite: Path, squat: list[Frame]) -> None:
        detector = MediaPipePoseDetector(lite)
        with pytest.raises(ValueError, match="times"):
            detector.detect([squat[0].image_bgr])
        detector.close()

    def test_it_is_quiet(
        self, lite: Path, squat: list[Frame], capfd: pytest.CaptureFixture[str]
    ) -> None:
        detector = MediaPipePoseDetector(lite)
        detector.detect([frame.image_bgr for frame in squat], [frame.time_s for frame in squat])
        detector.close()
        assert capfd.readouterr().err == ""

    def test_only_its_start_is_redirected(
        self, lite: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        redirected = []
        real = mediapipe._without_chatter
        monkeypatch.setattr(
            mediapipe, "_without_chatter", lambda: redirected.append("stderr") or real()
        )
        detector = MediaPipePoseDetector(lite, mode="image")
        images = pictures_without_people()
        assert [detector.detect([image]) for image in images] == [[[]]] * 3
        detector.close()
        assert len(redirected) == 2


def test_native_messages_before_a_failure_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    chatter = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"
    with mediapipe._without_chatter():
        os.write(2, chatter + b"of use\n")
    assert capfd.readouterr().err == "of use\n"
    with contextlib.suppress(RuntimeError), mediapipe._without_chatter():
        os.write(2, chatter)
        raise RuntimeError
    assert capfd.readouterr().err == chatter.decode()


class TestOpenGlLibraries:
    """MediaPipe links two libraries that headless machines lack."""

    @pytest.fixture
    def loaded(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
        """What a loader that finds nothing by bare name was asked for with success."""
        loaded = []

        def load(name: str, mode: int) -> None:
            if not Path(name).is_file():
                raise OSError(f"{name}: cannot open shared object file")
            loaded.append(Path(name).name)

        monkeypatch.setattr(mediapipe.ctypes, "CDLL", load)
        monkeypatch.setattr(mediapipe, "_GL_FOLDER", tmp_path)
        return loaded

    def test_those_of_the_environment_are_used(self, loaded: list[str], tmp_path: Path) -> None:
        (tmp_path / "usr" / "lib").mkdir(parents=True)
        for library in ("libEGL.so.1", "libGLESv2.so.2", "libGLdispatch.so.0"):
            (tmp_path / "usr" / "lib" / library).touch()
        mediapipe._preload_gl("mediapipe-lite")
        assert loaded == ["libGLdispatch.so.0", "libEGL.so.1", "libGLESv2.so.2"]

    def test_none_anywhere(self, loaded: list[str]) -> None:
        with pytest.raises(BackendFailedError, match="libegl1 and libgles2"):
            mediapipe._preload_gl("mediapipe-lite")


def test_damaged_bundle(tmp_path: Path) -> None:
    path = tmp_path / "pose_landmarker_lite.task"
    path.write_bytes(b"not a bundle")
    with pytest.raises(BackendFailedError, match="pose_landmarker_lite"):
        MediaPipePoseDetector(path)
