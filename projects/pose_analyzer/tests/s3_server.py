"""A server that speaks S3's protocol, on a loopback port."""

import logging
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from pose_analyzer.storage_settings import StorageSettings


@contextmanager
def s3_server() -> Iterator[str]:
    """Serve until the block ends; gives the address. Credentials are any."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "tests")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "of-uploads")
        yield f"http://{host}:{port}"
    server.stop()


def bucket_settings(endpoint_url: str, data_dir: Path) -> StorageSettings:
    """Settings that name a new bucket there."""
    bucket = f"videos-{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(f"{endpoint_url}/{bucket}", method="PUT")  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
        assert answer.status == 200
    return StorageSettings(
        s3_bucket=bucket,
        s3_region="us-east-1",
        s3_endpoint_url=endpoint_url,
        data_dir=data_dir,
    )
