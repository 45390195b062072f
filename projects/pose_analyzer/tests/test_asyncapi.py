"""The published description of the WebSocket is the service's own, and true."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from pose_analyzer import wire
from pose_analyzer.api.asyncapi import asyncapi_document
from pose_analyzer.live_form import LiveForm
from pose_analyzer.stream_types import Encoding, StreamState

from .builders import person_frame, repetition

PUBLISHED = Path(__file__).parents[3] / "docs" / "asyncapi.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return asyncapi_document(metadata.version("pose-analyzer"))


def test_the_published_copy_is_up_to_date(document: dict[str, Any]) -> None:
    command = "python -m pose_analyzer.api.asyncapi > docs/asyncapi.json"
    assert json.loads(PUBLISHED.read_text()) == document, f"write it anew: {command}"


def references(part: object) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [ref for value in part.values() for ref in references(value)]
    return [ref for value in part for ref in references(value)] if isinstance(part, list) else []


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = references(document)
    assert found
    for reference in found:
        target: Any = document
        for key in reference.removeprefix("#/").split("/"):
            target = target[key]


NOW = LiveForm(0.5, 90.0, "left_knee", -12.0, "deg", 2.2)
MESSAGES = [
    wire.Ready(
        stream_id="a",
        next_frame=0,
        resumed=False,
        exercise="auto",
        detector="mediapipe-lite",
        device="cpu",
        state=StreamState.ACTIVE,
    ),
    wire.WrittenResult(
        frame=3,
        captured_s=0.1,
        received_s=0.2,
        answered_s=0.3,
        width_px=640,
        height_px=480,
        people=msgspec.Raw(
            wire.encode([wire.Person.of(person_frame(), repetition(), now=NOW)], Encoding.JSON)
        ),
        timing=wire.Timing(queue_s=0.0, decode_s=0.0, infer_s=0.0, postprocess_s=0.0),
        dropped={"stale": 1},
    ),
    wire.State(state=StreamState.SHED, reason="memory is short"),
    wire.Error(code="undecodable-frame", detail="torn", frame=4),
    wire.Pong(data="1", time_s=1.0),
    wire.FrameHeader(captured_s=1.5),
    wire.ChangeExercise(exercise="squat"),
    wire.Ping(),
    wire.Pause(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_are_as_described(document: dict[str, Any], message: msgspec.Struct) -> None:
    name = "Result" if isinstance(message, wire.WrittenResult) else type(message).__name__
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    written = json.loads(wire.encode(message, Encoding.JSON))
    jsonschema.validate(written, schema, cls=jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written | {"type": "other"}, schema)
