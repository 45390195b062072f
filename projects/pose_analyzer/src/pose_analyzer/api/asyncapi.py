"""AsyncAPI 3.0 description of the WebSocket, made from the messages themselves.

``python -m pose_analyzer.api.asyncapi > docs/asyncapi.json`` writes the published copy.
"""

import json
from importlib import metadata
from typing import Any, Final, get_args

import msgspec

from pose_analyzer import wire

_REF: Final = "#/components/schemas/{name}"
_PICTURE: Final = {
    "name": "picture",
    "title": "Picture",
    "summary": "One JPEG, PNG or WebP file as a binary message.",
    "contentType": "application/octet-stream",
    "payload": {"type": "string", "format": "binary"},
}

_HANDSHAKE: Final = {
    "method": "GET",
    "headers": {
        "type": "object",
        "properties": {
            "Sec-WebSocket-Protocol": {
                "type": "string",
                "enum": [wire.JSON_SUBPROTOCOL, wire.MSGPACK_SUBPROTOCOL],
            }
        },
    },
    "bindingVersion": "0.1.0",
}


def asyncapi_document(version: str) -> dict[str, Any]:
    """Describe both directions of ``/stream/{stream_id}``.

    Parameters
    ----------
    version
        Of the service.
    """
    from_client, from_service = _kinds(wire.ClientMessage), _kinds(wire.ServerMessage)
    _, schemas = msgspec.json.schema_components(from_client + from_service, ref_template=_REF)
    messages = {kind.__name__: _message(kind) for kind in from_client + from_service}
    channel = "#/channels/stream"
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Pose analyzer, live streams",
            "version": version,
            "description": "Pictures in, people with angles and repetitions out. docs/API.md "
            "tells the close codes and what happens when either side is slow.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "stream": {
                "address": "/stream/{stream_id}",
                "parameters": {"stream_id": {"description": "From POST /stream/start."}},
                "messages": {
                    "Picture": {"$ref": "#/components/messages/Picture"},
                    **{name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                },
                "bindings": {"ws": _HANDSHAKE},
            }
        },
        "operations": {
            "sendToService": {
                "action": "receive",
                "channel": {"$ref": channel},
                "summary": "Text messages are JSON whatever the subprotocol.",
                "messages": [
                    {"$ref": f"{channel}/messages/{name}"}
                    for name in ("Picture", *(kind.__name__ for kind in from_client))
                ],
            },
            "receiveFromService": {
                "action": "send",
                "channel": {"$ref": channel},
                "summary": "JSON, or MessagePack with the subprotocol pose.v1.msgpack.",
                "messages": [
                    {"$ref": f"{channel}/messages/{kind.__name__}"} for kind in from_service
                ],
            },
        },
        "components": {"messages": {"Picture": _PICTURE, **messages}, "schemas": schemas},
    }


def _kinds(union: Any) -> list[type[msgspec.Struct]]:  # noqa: ANN401 - a union of types
    return list(get_args(union))


def _message(kind: type[msgspec.Struct]) -> dict[str, Any]:
    summary, _, _ = (kind.__doc__ or "").partition("\n")
    return {
        "name": kind.__struct_config__.tag,
        "title": kind.__name__,
        "summary": summary,
        "payload": {"$ref": _REF.format(name=kind.__name__)},
    }


if __name__ == "__main__":
    print(json.dumps(asyncapi_document(metadata.version("pose-analyzer")), indent=2))  # noqa: T201
