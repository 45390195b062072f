"""The routes: unpack, call, put into words."""

from http import HTTPStatus
from importlib import metadata
from typing import Final

from anyio import to_thread
from fastapi import APIRouter, UploadFile

from pose_analyzer.api.dependencies import (
    DatabaseWatchDep,
    DetectorNameDep,
    DetectorsDep,
    LazyArtifactsDep,
    ManagerDep,
    SettingsDep,
)
from pose_analyzer.api.schemas import (
    DatabaseHealth,
    Detection,
    FilesHealth,
    Gpu,
    Health,
    LoadedDetector,
    ModelInfo,
    Person,
)
from pose_analyzer.api.uploads import decode_image
from pose_analyzer.form_session import PoseObservation, SessionConfig, initial_state, step
from pose_analyzer.model_files import model_states
from pose_analyzer.ports import FramePipeline, PoseDetector
from pose_analyzer.types import Pose
from shared_utils.gpu import read_gpus
from shared_utils.problems import documented_problems

REPORTED_PACKAGES: Final = (
    "pose-analyzer",
    "mediapipe",
    "onnxruntime",
    "opencv-python-headless",
    "torch",
    "ultralytics",
)

_NO_EXERCISE: Final = SessionConfig(movements=())

router = APIRouter()


@router.get("/health")
def health(
    settings: SettingsDep,
    detectors: DetectorsDep,
    manager: ManagerDep,
    database: DatabaseWatchDep,
    files: LazyArtifactsDep,
) -> Health:
    """Tell versions, device and which models are here."""
    problem = files.problem()
    loaded: list[PoseDetector | FramePipeline] = [*detectors.loaded, *manager.pipelines]
    gpus = [Gpu.model_validate(gpu, from_attributes=True) for gpu in read_gpus()]
    return Health(
        status="ok",
        versions={name: _version(name) for name in REPORTED_PACKAGES},
        device="cuda" if gpus else "cpu",
        gpus=gpus,
        detectors=[LoadedDetector(name=item.name, device=item.device) for item in loaded],
        models=[
            ModelInfo(name=file.published.name, licence=file.published.licence, state=file.state)
            for file in model_states(settings)
        ],
        database=DatabaseHealth.model_validate(database.status, from_attributes=True),
        files=FilesHealth(state="ok" if problem is None else "unavailable", reason=problem),
    )


@router.post(
    "/detect",
    responses=documented_problems(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
)
async def detect(
    file: UploadFile,
    settings: SettingsDep,
    detectors: DetectorsDep,
    detector: DetectorNameDep,
) -> Detection:
    """Find the people in an image, with their keypoints and joint angles."""
    image_bgr = await to_thread.run_sync(
        decode_image, await file.read(), file.filename or "upload", settings.max_image_pixels
    )
    used, poses = await detectors.detect(detector, image_bgr)
    height_px, width_px = image_bgr.shape[:2]
    return Detection(
        detector=used.name,
        device=used.device,
        width_px=width_px,
        height_px=height_px,
        people=[_measured(pose) for pose in poses],
    )


def _measured(pose: Pose) -> Person:
    """Measure one person as in the first frame of a recording."""
    _, seen = step(_NO_EXERCISE, initial_state(_NO_EXERCISE), PoseObservation(1, 0, 0.0, pose))
    return Person.of(pose, seen.angles, seen.angles_3d)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
