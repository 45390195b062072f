import json

import pytest
import structlog

from shared_utils.logging import configure_logging


def test_events_go_to_stderr_as_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    try:
        log = structlog.get_logger()
        log.debug("not_written")
        log.info("frame_analysed", elapsed_s=0.5)
        captured = capsys.readouterr()
        assert captured.out == ""
        (event,) = map(json.loads, captured.err.splitlines())
        assert event["event"] == "frame_analysed"
        assert event["elapsed_s"] == 0.5
        assert event["level"] == "info"
    finally:
        structlog.reset_defaults()
