"""What routes ask for; HTTPConnection, so that WebSocket routes can ask for the same."""

from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import HTTPConnection

from pose_analyzer.api.detectors import DetectorPool
from pose_analyzer.backends import DETECTOR_NAMES
from pose_analyzer.errors import UnknownNameError
from pose_analyzer.settings import Settings


def _settings(connection: HTTPConnection) -> Settings:
    settings: Settings = connection.state.settings
    return settings


def _detectors(connection: HTTPConnection) -> DetectorPool:
    detectors: DetectorPool = connection.state.detectors
    return detectors


def _detector_name(
    connection: HTTPConnection,
    detector: Annotated[
        str | None,
        Query(
            description="auto, mediapipe, yolo, or a model such as mediapipe-full or "
            "yolo11s-pose; by default the one in the settings."
        ),
    ] = None,
) -> str:
    if detector is None:
        return _settings(connection).detector
    # `create_detector` also takes paths of weights, which run code when they are loaded: those
    # are for whoever runs the service, not for its clients.
    if detector not in DETECTOR_NAMES:
        raise UnknownNameError("detector", detector, DETECTOR_NAMES)
    return detector


SettingsDep = Annotated[Settings, Depends(_settings)]
DetectorsDep = Annotated[DetectorPool, Depends(_detectors)]
DetectorNameDep = Annotated[str, Depends(_detector_name)]
