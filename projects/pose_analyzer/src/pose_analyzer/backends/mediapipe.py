"""MediaPipe's pose landmarker through the Tasks API: the Apache-2.0 way, 33 landmarks."""

import contextlib
import ctypes
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from pose_analyzer.errors import BackendFailedError
from pose_analyzer.skeletons import BLAZEPOSE_OF_COCO
from pose_analyzer.types import BlazePoseLandmarks, Pose
from pose_analyzer.video_chunking import restart_of

Mode = Literal["image", "video"]

_VISIBLE: Final = 0.5  # landmarks above this span the person's box
# Dispatcher first: the other two need it.
_GL_LIBRARIES: Final = ("libGLdispatch.so.0", "libEGL.so.1", "libGLESv2.so.2")
_GL_FOLDER: Final = Path(sys.prefix) / "lib" / "glvnd"  # filled by the workspace's set-up
# What MediaPipe prints at every start, whatever the log level; anything else is passed on.
_CHATTER: Final = re.compile(
    rb"XNNPACK delegate for CPU|before absl::InitializeLog\(\)|inference_feedback_manager\.cc"
    rb"|landmark_projection_calculator\.cc"
)
_stderr_lock = threading.Lock()


class MediaPipePoseDetector:
    """Finds people with BlazePose; 33 landmarks with world coordinates beside the 17 keypoints.

    A keypoint's confidence is the smaller of the landmark's visibility and presence: visibility
    alone stays high for some points that left the image. The person's box spans the landmarks with
    confidence of at least 0.5 (all of them where fewer than two have it), within the image; it is
    tighter than a box around the body's outline. The person's score is the mean confidence of the
    17 keypoints, as the Tasks API does not tell its own.

    Parameters
    ----------
    model_path
        A ``pose_landmarker_*.task`` bundle.
    name
        Model as the user names it; the file's stem by default.
    mode
        ``video`` follows people from frame to frame, which is faster and steadier, and needs
        times; ``image`` looks at each image afresh.
    n_people
        Find at most so many.
    min_confidence
        For detection, presence and tracking, 0..1.
    restarting
        In video mode, forget everybody whenever a multiple of `video_chunking.RESTART_S` passes. An
        answer then depends on no image before that, so a video may be analysed in chunks.

    Raises
    ------
    BackendFailedError
        The bundle cannot be read, or the system libraries it needs are missing.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        name: str | None = None,
        mode: Mode = "video",
        n_people: int = 1,
        min_confidence: float = 0.5,
        restarting: bool = False,
    ) -> None:
        self._name = name or model_path.stem
        self._mode = mode
        self._restarting = restarting
        self._last_ms = -1
        self._last_s = float("-inf")
        self._stretch = 0
        _preload_gl(self._name)
        # Imported late: it takes about a second.
        import mediapipe  # noqa: PLC0415
        from mediapipe.tasks.python import BaseOptions, vision  # noqa: PLC0415

        self._mediapipe = mediapipe
        self._landmarker_type = vision.PoseLandmarker
        self._options = vision.PoseLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model_path)),
            running_mode=vision.RunningMode[mode.upper()],
            num_poses=n_people,
            min_pose_detection_confidence=min_confidence,
            min_pose_presence_confidence=min_confidence,
            min_tracking_confidence=min_confidence,
        )
        self._landmarker = self._start()

    @property
    def name(self) -> str:
        """Model as the user names it."""
        return self._name

    @property
    def device(self) -> str:
        """Always ``cpu``."""
        return "cpu"

    def detect(
        self,
        images_bgr: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        times_s: Sequence[float] | None = None,
    ) -> list[list[Pose]]:
        """Find the people in each image, best first; see `ports.PoseDetector.detect`.

        In video mode a time before the previous one starts a new video.

        Raises
        ------
        ValueError
            Video mode without times.
        BackendFailedError
            MediaPipe broke.
        """
        if self._mode == "image":
            return [self._detect_one(image, None) for image in images_bgr]
        if times_s is None:
            raise ValueError("video mode needs the images' times")
        return [
            self._detect_one(image, self._timestamp_ms(time_s))
            for image, time_s in zip(images_bgr, times_s, strict=True)
        ]

    def restart(self) -> None:
        """Forget everybody; the next image may be of any video."""
        if self._last_ms >= 0:
            self._landmarker.close()
            self._landmarker = self._start()
            self._last_ms = -1
            self._last_s = float("-inf")

    def close(self) -> None:
        """Free the model."""
        self._landmarker.close()

    def _start(self) -> Any:  # noqa: ANN401 - untyped library
        self._first = True
        try:
            with _without_chatter():
                return self._landmarker_type.create_from_options(self._options)
        except (OSError, RuntimeError, ValueError) as error:
            raise BackendFailedError(self._name, str(error)) from error

    def _timestamp_ms(self, time_s: float) -> int:
        """Strictly increasing milliseconds, which MediaPipe insists on, close to the time."""
        stretch_over = self._restarting and restart_of(time_s) != self._stretch
        if time_s < self._last_s or stretch_over:
            self.restart()
        self._stretch = restart_of(time_s)
        self._last_s = time_s
        self._last_ms = max(self._last_ms + 1, round(time_s * 1000))
        return self._last_ms

    def _detect_one(self, image: UInt8[np.ndarray, "_ _ 3"], time_ms: int | None) -> list[Pose]:
        rgb = self._mediapipe.Image(
            image_format=self._mediapipe.ImageFormat.SRGB,
            data=cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
        )
        # The first image may bring the last of the start-up messages. Later ones are not worth a
        # redirection: it is the whole process's, and makes detectors wait for each other.
        first, self._first = self._first, False
        try:
            with _without_chatter() if first else contextlib.nullcontext():
                if time_ms is None:
                    result = self._landmarker.detect(rgb)
                else:
                    result = self._landmarker.detect_for_video(rgb, time_ms)
        except (OSError, RuntimeError, ValueError) as error:
            raise BackendFailedError(self._name, str(error)) from error
        poses = [
            _pose(landmarks, world, image.shape[:2])
            for landmarks, world in zip(
                result.pose_landmarks, result.pose_world_landmarks, strict=True
            )
        ]
        return sorted(poses, key=lambda pose: -pose.score)


def _pose(landmarks: Sequence[Any], world: Sequence[Any], image_hw: tuple[int, int]) -> Pose:
    """One person in pixels; `landmarks` are fractions of the image, z in the scale of x."""
    height, width = image_hw
    values = np.array([(p.x, p.y, p.z, p.visibility, p.presence) for p in landmarks])
    image_px = values[:, :3] * [width, height, width]
    confidences = values[:, 3:].min(axis=1)
    keypoint_confidences = confidences[BLAZEPOSE_OF_COCO]
    return Pose(
        keypoints_px=image_px[BLAZEPOSE_OF_COCO, :2],
        confidences=keypoint_confidences,
        box_px=_box(image_px[:, :2], confidences, image_hw),
        score=float(keypoint_confidences.mean()),
        landmarks=BlazePoseLandmarks(
            image_px=image_px,
            world_m=np.array([(p.x, p.y, p.z) for p in world]),
            visibility=values[:, 3].copy(),
            presence=values[:, 4].copy(),
        ),
    )


def _box(
    points_px: Float[np.ndarray, "33 2"],
    confidences: Float[np.ndarray, "33"],
    image_hw: tuple[int, int],
) -> Float[np.ndarray, "4"]:
    visible = points_px[confidences >= _VISIBLE]
    spanned = visible if len(visible) > 1 else points_px
    limits = np.array(image_hw[::-1], dtype=np.float64)
    return np.concatenate(
        [np.clip(spanned.min(axis=0), 0, limits), np.clip(spanned.max(axis=0), 0, limits)]
    )


def _preload_gl(name: str) -> None:
    """Make libEGL and libGLESv2 known to the loader; MediaPipe links them even on a CPU.

    Where the system lacks them, copies inside this Python environment are used.
    """
    if sys.platform != "linux":
        return
    try:
        for library in _GL_LIBRARIES[1:]:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        try:
            for library in _GL_LIBRARIES:
                found = next(_GL_FOLDER.rglob(library), Path(library))
                ctypes.CDLL(str(found), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise BackendFailedError(
                name,
                f"MediaPipe needs libEGL.so.1 and libGLESv2.so.2 ({error}). Install the system "
                "packages libegl1 and libgles2, or run `make install`, which puts them into the "
                "environment where it can, or use --detector yolo.",
            ) from error


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Hold back what native code writes to stderr and pass on all but MediaPipe's start-up lines.

    After an exception all lines are passed on, as they may tell why. The lock keeps two detectors
    from restoring each other's redirection.
    """
    with _stderr_lock, tempfile.TemporaryFile() as captured:
        sys.stderr.flush()
        real_stderr = os.dup(2)
        os.dup2(captured.fileno(), 2)
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            os.dup2(real_stderr, 2)
            os.close(real_stderr)
            captured.seek(0)
            for line in captured:
                if not (succeeded and _CHATTER.search(line)):
                    os.write(2, line)
