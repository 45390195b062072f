"""How large the bodies of uploads may be, which are written to disk as they come."""

import re
from typing import Final

from starlette.types import Scope

from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.upload_rules import plan_parts
from shared_utils.body_limit import OwnLimit
from shared_utils.units import BYTES_PER_MIB

_PART: Final = re.compile(r"/videos/[^/]+/parts/[^/]+$")
_FORM: Final = re.compile(r"/videos$")
# The routes count by themselves, in batches, and say more when there is too much.
_SLACK_BYTES: Final = 4 * BYTES_PER_MIB


def video_body_limit(storage: StorageSettings) -> OwnLimit:
    """Limits of the routes that take parts of videos, and whole ones as a form."""
    max_part_bytes = plan_parts(storage.max_video_bytes).part_bytes

    def limit(scope: Scope) -> int | None:
        method, path = scope["method"], scope["path"]
        if method == "PUT" and _PART.search(path):
            return max_part_bytes + _SLACK_BYTES
        if method == "POST" and _FORM.search(path) and is_form(scope):
            return storage.max_video_bytes + _SLACK_BYTES
        return None

    return limit


def is_form(scope: Scope) -> bool:
    """Whether the request's body is a multipart form."""
    content_type: bytes = dict(scope["headers"]).get(b"content-type", b"")
    return content_type.lower().startswith(b"multipart/form-data")
