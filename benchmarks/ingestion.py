"""Can 64 streams be kept without holding anybody up, and ten million rows be asked afterwards.

Everything goes the way it goes in the service: a stream's recording, the queue, the writer's
thread, COPY into the embedded database, the query behind ``/sessions/{id}/timeseries``.

Run: ``python benchmarks/ingestion.py`` (a quarter of an hour on two cores; 5 GB in a folder of
``--data``, which is removed). Writes docs/reports/ingestion.md.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from angle_accuracy import table
from sqlalchemy import text
from sqlalchemy.orm import Session
from streams.usage import _cpu_model

from pose_analyzer.db_connector import Database, open_database
from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.exercises import load_exercises, select_exercises
from pose_analyzer.form_library import folders_of, load_form_library
from pose_analyzer.frame_rows import ROW, pack_people
from pose_analyzer.live_analysis.session import LiveSession
from pose_analyzer.recording import LiveRecording, SessionRecorder
from pose_analyzer.session_records import FrameBlock, SessionOpened, SessionRecord
from pose_analyzer.settings import Settings
from pose_analyzer.skeletons import N_KEYPOINTS
from pose_analyzer.storage.ingestion import Ingestion, essence_of
from pose_analyzer.storage.pose_rows import RowFilter
from pose_analyzer.storage.session_writer import microseconds, write_records
from pose_analyzer.storage.spill import SpillFolder
from pose_analyzer.storage.timeseries import SIGNALS, read_courses
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.stream_analyzer import AnalysisConfig, StreamAnalyzer
from pose_analyzer.stream_types import AnalysedFrame, Encoding, StreamFrame, StreamOptions
from pose_analyzer.types import Pose

REPOSITORY = Path(__file__).resolve().parents[1]
REPORT = REPOSITORY / "docs" / "reports" / "ingestion.md"
N_STREAMS = 64
FPS = 30.0
# As the service sets it: else a thread may keep the event loop's from running for 5 ms.
SWITCH_INTERVAL_S = 0.0005
BATCH_S = 0.5
STRETCH_S = 15 * 60.0
TARGET_PUT_MS, TARGET_QUERY_MS = 1.0, 50.0


def some_rows(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, ROW)
    rows["track_id"] = 1
    rows["keypoints"] = rng.normal(300.0, 100.0, (n, N_KEYPOINTS, 3))
    rows["angles"] = rng.normal(120.0, 30.0, (n, 12))
    # From the side half of the arms and both ankles are not trusted.
    rows["angles"][:, [1, 3, 8, 9]] = np.nan
    for name in ("confidence", "progress", "score"):
        rows[name] = rng.random(n)
    return rows


@dataclass(frozen=True)
class PutFigures:
    """How long `put` takes where the event loop calls it, and how late rows arrive."""

    put_ms: np.ndarray
    lag_s: np.ndarray
    tick_late_ms: np.ndarray
    n_rows: int
    n_written: int
    n_dropped: int


class Streams:
    """All streams, frame by frame, each at its time."""

    def __init__(self, ingestion: Ingestion) -> None:
        recorder = SessionRecorder(ingestion)
        options = StreamOptions("squat", "yolo11n-pose")
        self.recordings: list[LiveRecording] = [
            recorder.begin(f"stream{number}", options, "yolo11n-pose")
            for number in range(N_STREAMS)
        ]
        self._rows = some_rows(1024, 0)
        self._frame = 0
        self.put_s: list[float] = []
        self.late_s: list[float] = []

    def play(self, duration_s: float) -> None:
        """Hand over frames of everybody for so long; streams are spread within a frame's time."""
        began_s = time.perf_counter()
        for _ in range(round(duration_s * FPS)):
            for number, recording in enumerate(self.recordings):
                due_s = began_s + (self._tick + number / N_STREAMS) / FPS
                wait_s = due_s - time.perf_counter()
                if wait_s > 0.0:
                    time.sleep(wait_s)
                self.late_s.append(max(time.perf_counter() - due_s, 0.0))
                self._put(number, recording)
            self._frame += 1
            self._tick += 1
        self._tick = 0

    _tick = 0

    def _put(self, number: int, recording: LiveRecording) -> None:
        row = self._rows[(self._frame + number) % len(self._rows)]
        row["frame_index"], row["time_s"] = self._frame, self._frame / FPS
        frame = StreamFrame("stream", self._frame, self._frame / FPS, time.monotonic(), b"")
        analysed = AnalysedFrame(b"", 1, 0, 0.0, rows=row.tobytes())
        began_s = time.perf_counter()
        recording.add(frame, analysed)
        self.put_s.append(time.perf_counter() - began_s)

    def end(self) -> None:
        for recording in self.recordings:
            recording.close(b"")


def measure_puts(database: Database, folder: Path, duration_s: float) -> PutFigures:
    spill = SpillFolder(folder / "spill", 1 << 29, essence_of)
    ingestion = Ingestion(database.session, spill)
    streams = Streams(ingestion)
    lags: list[float] = []
    with sampled(lambda: lags.append(ingestion.stats().lag_s), 0.05):
        streams.play(duration_s)
    streams.end()
    ingestion.close()
    stats = ingestion.stats()
    return PutFigures(
        put_ms=1e3 * np.array(streams.put_s),
        lag_s=np.array(lags),
        tick_late_ms=1e3 * np.array(streams.late_s),
        n_rows=len(streams.put_s),
        n_written=stats.n_rows_written,
        n_dropped=sum(stats.n_dropped.values()),
    )


@contextmanager
def sampled(read: Callable[[], None], every_s: float) -> Iterator[None]:
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_s):
            read()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    stop.set()
    thread.join()


@dataclass(frozen=True)
class OutageFigures:
    """What became of rows while the database was away."""

    away_s: float
    put_ms: np.ndarray
    n_spilled_bytes: int
    caught_up_s: float
    n_rows: int
    n_stored: int


def measure_outage(database: Database, folder: Path, away_s: float) -> OutageFigures:
    away = threading.Event()

    @contextmanager
    def door() -> Iterator[Session]:
        if away.is_set():
            raise DatabaseUnavailableError("here", "away for the benchmark")
        with database.session() as session:
            yield session

    spill = SpillFolder(folder / "spill", 1 << 29, essence_of)
    ingestion = Ingestion(door, spill)
    streams = Streams(ingestion)
    streams.play(3.0)
    away.set()
    streams.put_s.clear()
    streams.play(away_s)
    n_spilled_bytes = ingestion.stats().n_spilled_bytes
    put_ms = 1e3 * np.array(streams.put_s)
    away.clear()
    began_s = time.perf_counter()
    while ingestion.stats().n_spilled_bytes:
        streams.play(0.2)
    caught_up_s = time.perf_counter() - began_s
    streams.end()
    ingestion.close()
    ids = [str(recording.session_id) for recording in streams.recordings]
    with database.session() as session:
        n_stored = session.scalar(
            text(
                "SELECT count(DISTINCT (session_id, track_id, frame_index)) FROM pose_frames "
                "WHERE session_id = ANY(cast(:ids AS uuid[]))"
            ),
            {"ids": ids},
        )
        n_all = session.scalar(
            text("SELECT count(*) FROM pose_frames WHERE session_id = ANY(cast(:ids AS uuid[]))"),
            {"ids": ids},
        )
    assert n_all == n_stored, "a row was stored twice"
    n_rows = round((3.0 + away_s) * FPS) * N_STREAMS + len(streams.put_s) - len(put_ms)
    return OutageFigures(away_s, put_ms, n_spilled_bytes, caught_up_s, n_rows, n_all)


@dataclass(frozen=True)
class LoadFigures:
    n_rows: int
    elapsed_s: float
    table_bytes: int
    index_bytes: int
    sessions: list[uuid.UUID]
    span_s: float


def load(database: Database, n_rows: int) -> LoadFigures:
    """Store as the writer does: a batch of all streams' half seconds, one transaction each."""
    ids = [uuid.uuid4() for _ in range(N_STREAMS)]
    began = datetime(2024, 1, 1, tzinfo=UTC)
    started_us = microseconds(began)
    opened: list[SessionRecord] = [
        SessionOpened(one, "stream", None, None, "squat", "yolo11n-pose", began) for one in ids
    ]
    with database.session() as session:
        write_records(session, opened)
    pool = some_rows(4096, 1)
    n_frames = round(BATCH_S * FPS)
    frame = n_done = 0
    began_s = time.perf_counter()
    while n_done < n_rows:
        blocks: list[SessionRecord] = []
        for number, session_id in enumerate(ids):
            offset = (frame + 37 * number) % (len(pool) - n_frames)
            rows = pool[offset : offset + n_frames].copy()
            rows["frame_index"] = np.arange(frame, frame + n_frames)
            rows["time_s"] = rows["frame_index"] / FPS
            blocks.append(FrameBlock(session_id, started_us, rows.tobytes()))
        with database.session() as session:
            n_done += write_records(session, blocks).n_rows
        frame += n_frames
    elapsed_s = time.perf_counter() - began_s
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # Autovacuum does so by itself after a while.
        connection.execute(text("VACUUM ANALYZE pose_frames"))
        sizes = connection.execute(
            text("SELECT pg_table_size('pose_frames'), pg_indexes_size('pose_frames')")
        ).one()
    return LoadFigures(n_done, elapsed_s, sizes[0], sizes[1], ids, frame / FPS)


def time_queries(
    database: Database, loaded: LoadFigures, bucket_s: int, signals: Sequence[str], n: int = 40
) -> np.ndarray:
    """Milliseconds of the query for a quarter of an hour, each of another stream or time."""
    rng = np.random.default_rng(2)
    taken_ms = []
    for number in range(n):
        session_id = loaded.sessions[number % len(loaded.sessions)]
        from_s = float(rng.uniform(0.0, max(loaded.span_s - STRETCH_S, 0.0)))
        wanted = RowFilter(session_id, None, from_s, from_s + STRETCH_S)
        began_s = time.perf_counter()
        with database.session() as session:
            courses = read_courses(session, wanted, bucket_s, signals)
        taken_ms.append(1e3 * (time.perf_counter() - began_s))
        assert courses
        assert courses[0].n_frames.sum() > 0
    return np.array(taken_ms)


def measure_packing(n_frames: int) -> tuple[list[float], list[float]]:
    """Milliseconds of one analysis step of one person, without and with rows, in turns."""
    settings = Settings()
    exercises = select_exercises(load_exercises(settings.exercises_dir), "squat")
    library = load_form_library(folders_of(settings))
    sessions = [LiveSession(exercises, library, with_rows=kept) for kept in (False, True)]
    taken: tuple[list[float], list[float]] = ([], [])
    for index in range(n_frames):
        pose = squatting(index / FPS)
        for session, times in zip(sessions, taken, strict=True):
            answer = session.analyse(index, index / FPS, [pose], Encoding.MSGPACK)
            times.append(1e3 * answer.analyse_s)
    return taken


def measure_pack_us(n: int = 5_000) -> float:
    """Microseconds to pack one person-frame, median."""
    exercises = select_exercises(load_exercises(Settings().exercises_dir), "squat")
    analyzer = StreamAnalyzer(None, AnalysisConfig(exercises))
    people = analyzer.observe([squatting(0.0)], 0, 0.0)
    taken = []
    for _ in range(n):
        began_s = time.perf_counter()
        pack_people(people, {1: 80.0})
        taken.append(time.perf_counter() - began_s)
    return 1e6 * statistics.median(taken)


def squatting(time_s: float) -> Pose:
    """Somebody who squats, drawn with a few lines."""
    depth = 0.5 - 0.5 * np.cos(np.pi * time_s)
    heights = np.array([0.0, -4.0, -4.0, 0.0, 0.0, 40, 40, 80, 80, 120, 120, 130, 130, 200, 200])
    ys = 100.0 + np.concatenate([heights, [270.0, 270.0]])
    ys[:13] += 70.0 * depth
    xs = 300.0 + np.array([0, 4, -4, 8, -8, 20, -20, 25, -25, 25, -25, 15, -15, 17, -17, 16, -16])
    noise = np.random.default_rng(round(1e3 * time_s)).normal(0.0, 0.5, (N_KEYPOINTS, 2))
    points = np.column_stack([xs, ys]) + noise
    return Pose(points, np.full(N_KEYPOINTS, 0.9), np.array([270.0, 90, 340, 380]), 0.9)


def percentiles(values: np.ndarray) -> str:
    figures = values.min(), *np.percentile(values, [50, 99]), values.max()
    return " / ".join(f"{figure:.3g}" for figure in figures)


@dataclass(frozen=True)
class Figures:
    puts: PutFigures
    outage: OutageFigures
    loaded: LoadFigures
    queries: dict[str, np.ndarray]
    packing: tuple[list[float], list[float]]
    pack_us: float
    version: str


def report(figures: Figures, command: str, load_average: float) -> str:
    puts, outage, loaded = figures.puts, figures.outage, figures.loaded
    without, kept = (statistics.median(times) for times in figures.packing)
    put = table(
        ["what", "least / p50 / p99 / most", "wanted"],
        [
            ["handing a frame over, ms", percentiles(puts.put_ms), f"p99 {TARGET_PUT_MS:g} ms"],
            ["the same while the database is away, ms", percentiles(outage.put_ms), ""],
            ["age of the oldest row not stored, s", percentiles(puts.lag_s), ""],
            ["how late the thread that hands over was, ms", percentiles(puts.tick_late_ms), ""],
        ],
    )
    queries = table(
        ["1-minute buckets of one stream for 15 minutes", "least / p50 / p99 / most, ms", "wanted"],
        [
            [name, percentiles(times), f"{TARGET_QUERY_MS:g} ms"]
            for name, times in figures.queries.items()
        ],
    )
    n_seconds = puts.n_rows / N_STREAMS / FPS
    where = paragraph(
        f"`{command}` on {os.cpu_count()} cores ({_cpu_model()}), {figures.version}; load"
        f" {load_average:.1f} at the end: what else ran on the machine is in the figures."
    )
    kept_all = paragraph(
        f"One person each: {puts.n_rows / n_seconds:,.0f} rows a second for {n_seconds:.0f} s,"
        " through the queue, the writer's thread and COPY into the embedded database, which forces"
        f" every commit to the disk. {puts.n_rows:,} rows handed over, {puts.n_written:,} stored,"
        f" {puts.n_dropped} dropped."
    )
    away = paragraph(
        f"Away for {outage.away_s:.0f} s: {outage.n_spilled_bytes / 2**20:.1f} MiB went to files"
        f" and were caught up with in {outage.caught_up_s:.1f} s while the streams went on. Of"
        f" {outage.n_rows:,} rows {outage.n_stored:,} are stored, none twice."
    )
    step = paragraph(
        f"An analysis step of one person takes {without:.3f} ms without and {kept:.3f} ms with rows"
        f" (medians of {len(figures.packing[0]):,} frames, in turns); packing one person-frame"
        f" takes {figures.pack_us:.1f} µs, and {ROW.itemsize} bytes go beside the answer."
    )
    store = paragraph(
        f"Stored in {loaded.elapsed_s:.0f} s, {loaded.n_rows / loaded.elapsed_s:,.0f} rows a"
        f" second, in batches of half a second of {N_STREAMS} streams, each a transaction;"
        f" {loaded.table_bytes / 2**30:.2f} GiB of rows and {loaded.index_bytes / 2**30:.2f} GiB of"
        " indexes. Then, each of another stream or another time:"
    )
    how = paragraph(
        "The longest are those whose rows have not been read for long and come from the disk."
        " Mean, least and largest value of every bucket are computed from the rows themselves; no"
        " sums are kept beside them."
    )
    return f"""# Keeping live streams

{where}

## {N_STREAMS} streams at {FPS:g} frames a second

{kept_all}

{put}

The writer empties the queue every {BATCH_S} s, so that rows are that old when they are written.

{away}

{step}

## {loaded.n_rows / 1e6:.1f} million rows

{store}

{queries}

{how}
"""


def paragraph(words: str) -> str:
    return textwrap.fill(words, 105, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--data", type=Path, default=None, help="where the database may grow")
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    folder = Path(tempfile.mkdtemp(prefix="ingestion-", dir=arguments.data))
    try:
        with open_database(StorageSettings(data_dir=folder)) as database:
            figures = measure(database, folder, arguments)
    finally:
        shutil.rmtree(folder)
    command = " ".join(["python", "benchmarks/ingestion.py", *changed(parser, arguments)])
    arguments.report.write_text(report(figures, command, os.getloadavg()[0]), encoding="utf-8")
    print(arguments.report.read_text(encoding="utf-8"))


def changed(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    """What was asked for beyond the defaults, but for folders."""
    return [
        f"--{name} {value:g}"
        for name in ("rows", "seconds")
        if (value := getattr(arguments, name)) != parser.get_default(name)
    ]


def measure(database: Database, folder: Path, arguments: argparse.Namespace) -> Figures:
    with database.session() as session:
        version = session.scalar(text("SELECT split_part(version(), ' on ', 1)"))
    packing = measure_packing(2_000)
    puts = measure_puts(database, folder, arguments.seconds)
    outage = measure_outage(database, folder, arguments.seconds / 3.0)
    loaded = load(database, arguments.rows)
    queries = {
        "score": time_queries(database, loaded, 60, ["score"]),
        "one angle": time_queries(database, loaded, 60, ["left_knee"]),
        "both knees and hips": time_queries(
            database, loaded, 60, ["left_knee", "right_knee", "left_hip", "right_hip"]
        ),
        f"all {len(SIGNALS)} signals": time_queries(database, loaded, 60, SIGNALS),
        f"all {len(SIGNALS)} signals, 1-second buckets": time_queries(database, loaded, 1, SIGNALS),
    }
    return Figures(puts, outage, loaded, queries, packing, measure_pack_us(), str(version))


if __name__ == "__main__":
    main()
