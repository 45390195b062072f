"""The Python client's uploads against the real service, its own database and files."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pose_analyzer.api.main import create_app
from pose_analyzer.settings import Settings
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer_client import (
    ClientOptions,
    PoseAnalyzerClient,
    ReconnectPolicy,
    RequestRefusedError,
    VideoOptions,
)

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects" / "pose_analyzer" / "tests"))

from live_server import LiveServer, serving
from sample_videos import sha256, video_bytes

AT_ONCE = ClientOptions(reconnect=ReconnectPolicy(first_delay_s=0.01, max_delay_s=0.05))
CONTENT, N_PARTS = video_bytes(20_000_000), 3


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("service")
    storage = StorageSettings(
        database_url=None, s3_bucket=None, data_dir=folder / "data", local_workers=0
    )
    settings = Settings(model_path=(), model_dir=folder / "models", analysis_processes=0)
    with serving(create_app(settings, storage=storage)) as server:
        while server.call("GET", "/health")[1]["database"]["state"] != "ok":
            server.thread.join(0.1)
        yield server


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Three parts."""
    path = tmp_path / "squats.mp4"
    path.write_bytes(CONTENT)
    return path


def break_connections(live: LiveServer) -> None:
    """Cut all connections, as a network would."""
    for connection in tuple(live.server.server_state.connections):
        connection.loop.call_soon_threadsafe(connection.transport.abort)


async def test_a_video_arrives_though_the_connection_breaks(live: LiveServer, video: Path) -> None:
    n_breaks = 0

    def interfere(progress: object) -> None:
        nonlocal n_breaks
        if progress.stage == "sending" and progress.n_bytes > n_breaks * 6_000_000 < 18_000_000:
            n_breaks += 1
            break_connections(live)

    address = f"ws://127.0.0.1:{live.port}"
    async with PoseAnalyzerClient(address, "squat", options=AT_ONCE) as client:
        stored = await client.upload_video(video, on_progress=interfere)
    assert n_breaks == N_PARTS
    assert (stored.state, stored.filename) == ("stored", "squats.mp4")
    assert stored.sha256 == sha256(CONTENT)
    assert stored.duration_s == pytest.approx(2.0, abs=0.15)
    assert stored.job_id is not None
    assert live.call("DELETE", f"/videos/{stored.video_id}")[0] == 204


async def test_refusals_reach_the_client(live: LiveServer, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no video")
    fake = tmp_path / "fake.mp4"
    fake.write_text("no video")
    async with PoseAnalyzerClient(f"ws://127.0.0.1:{live.port}", options=AT_ONCE) as client:
        with pytest.raises(RequestRefusedError) as caught:
            await client.upload_video(notes)
        assert (caught.value.status, caught.value.code) == (415, "unsupported-video-type")
        with pytest.raises(RequestRefusedError) as caught:
            await client.upload_video(fake)
        assert (caught.value.status, caught.value.code) == (422, "not-a-video")
        with pytest.raises(RequestRefusedError) as caught:
            await client.upload_video(fake, VideoOptions(language="xx"))
        assert caught.value.code == "unknown-name"
