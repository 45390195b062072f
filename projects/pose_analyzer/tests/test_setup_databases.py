"""scripts/setup_databases.sh on a real server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from pose_analyzer.db_connector import open_database
from pose_analyzer.storage.urls import normalised_url
from pose_analyzer.storage_settings import StorageSettings

CHECKOUT = Path(__file__).resolve().parents[3]
SCRIPT = CHECKOUT / "scripts" / "setup_databases.sh"
# Names that are only right where they are quoted.
ROLE = "a coach"
DATABASE = "Coach/1"


@pytest.fixture
def prepare(database_server, tmp_path):
    address = database_server.server.address
    environment = {
        k: v for k, v in os.environ.items() if k not in ("POSE_DB_PASSWORD", "PGDATABASE")
    }
    environment |= {
        "PGHOST": address.socket_dir,
        "PGPORT": str(address.port),
        "PGUSER": address.user,
    }

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, "--role", ROLE, "--database", DATABASE, *arguments],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    yield run
    database_server.execute(f'DROP DATABASE IF EXISTS "{DATABASE}"')
    database_server.execute(f'DROP ROLE IF EXISTS "{ROLE}"')


def test_prepares_a_server_once(prepare, tmp_path):
    planned = prepare("--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert f"Would create role {ROLE}" in planned.stdout
    assert list(tmp_path.iterdir()) == []

    done = prepare()
    assert done.returncode == 0, done.stderr
    written = tmp_path / "database.env"
    assert written.stat().st_mode & 0o777 == 0o600
    url = written.read_text().strip().removeprefix("DATABASE_URL=")
    settings = StorageSettings(database_url=SecretStr(url), data_dir=tmp_path)
    with open_database(settings, migrate=False) as database, database.session() as session:
        assert session.scalar(text("SELECT current_user")) == ROLE
        assert (
            session.scalar(text("SELECT tableowner FROM pg_tables WHERE tablename = 'videos'"))
            == ROLE
        )
    password = normalised_url(url).password
    assert password
    assert password not in done.stdout + done.stderr

    again = prepare()
    assert again.returncode == 0, again.stderr
    assert url in written.read_text()
    assert "create role" not in prepare("--dry-run").stdout

    written.unlink()
    forgotten = prepare()
    assert forgotten.returncode == 1
    assert "POSE_DB_PASSWORD" in forgotten.stderr


def test_says_what_is_missing(prepare, tmp_path):
    nowhere = prepare("--dry-run", PGHOST=str(tmp_path))
    assert nowhere.returncode == 1
    assert "no server answers" in nowhere.stderr
    assert prepare("--nonsense").returncode == 2


def test_shellcheck_finds_nothing():
    found = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if found is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([found, SCRIPT], check=True)
