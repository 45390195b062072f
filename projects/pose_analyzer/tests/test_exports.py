"""What other programs read in exported files is what was seen."""

from pathlib import Path

import ezc3d
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.exports.markers import Markers, write_c3d, write_trc
from pose_analyzer.exports.resampling import Grid, grid_between, resample, usual_rate_hz
from pose_analyzer.exports.tables import write_csv, write_parquet
from pose_analyzer.frame_rows import ROW
from pose_analyzer.skeletons import KEYPOINT_NAMES

from .builders import squat_keypoints, squat_progress

STARTED_US = 1_714_979_289_123_456


def squat_rows(times_s) -> np.ndarray:
    rows = np.zeros(len(times_s), ROW)
    rows["track_id"] = 1
    rows["frame_index"] = np.arange(len(times_s))
    rows["time_s"] = times_s
    rows["keypoints"][:, :, 2] = 0.9
    rows["keypoints"][:, :, :2] = [squat_keypoints(squat_progress(t)) for t in times_s]
    rows["angles"] = 120.0
    rows["score"] = np.nan
    return rows


def in_pages(rows: np.ndarray, n_rows: int) -> list[np.ndarray]:
    return [rows[at : at + n_rows] for at in range(0, len(rows), n_rows)]


def read_trc(path: Path) -> tuple[dict[str, str], np.ndarray, np.ndarray]:
    """Header, times and coordinates, by the rules of OpenSim's TRCFileAdapter."""
    lines = path.read_text().split("\n")
    assert lines[0].split("\t")[:3] == ["PathFileType", "4", "(X/Y/Z)"]
    header = dict(zip(lines[1].split("\t"), lines[2].split("\t"), strict=True))
    names = [name for name in lines[3].split("\t") if name]
    assert names == ["Frame#", "Time", *KEYPOINT_NAMES]
    axes = [name for name in lines[4].split("\t") if name]
    assert axes == [f"{axis}{n}" for n in range(1, 18) for axis in "XYZ"]
    assert lines[5] == ""
    assert lines[-1] == ""
    cells = [line.split("\t") for line in lines[6:-1]]
    assert {len(row) for row in cells} == {2 + 3 * 17}
    assert [int(row[0]) for row in cells] == list(range(1, len(cells) + 1))
    numbers = np.array([[float(cell) for cell in row[1:]] for row in cells])
    assert int(header["NumFrames"]) == len(numbers)
    return header, numbers[:, 0], numbers[:, 1:].reshape(-1, 17, 3)


def test_resampling_a_regular_rate_changes_nothing() -> None:
    rows = squat_rows(2.0 + np.arange(100) / 25.0)
    grid = grid_between(2.0, float(rows["time_s"][-1]), usual_rate_hz(rows["time_s"]))
    assert grid == Grid(2.0, 25.0, 100)
    found = np.concatenate(list(resample(in_pages(rows, 7), grid)))
    np.testing.assert_allclose(found, rows["keypoints"][:, :, :2], atol=1e-3)


@given(st.lists(st.floats(0.01, 0.5), min_size=2, max_size=60), st.integers(1, 20))
def test_pages_do_not_matter(steps_s: list[float], n_rows: int) -> None:
    rows = squat_rows(np.cumsum(steps_s))
    rows["keypoints"][len(rows) // 2, 3] = np.nan
    grid = grid_between(float(rows["time_s"][0]), float(rows["time_s"][-1]), 30.0)
    whole = np.concatenate(list(resample([rows], grid)))
    parts = np.concatenate(list(resample(in_pages(rows, n_rows), grid)))
    assert len(whole) == grid.n_frames
    np.testing.assert_array_equal(whole, parts)


def test_gaps_stay_gaps() -> None:
    times_s = np.array([0.0, 0.1, 0.2, 1.2, 1.3])
    rows = squat_rows(times_s)
    rows["keypoints"][:, :, :2] = times_s[:, None, None]
    rows["keypoints"][1, 5] = np.nan
    found = np.concatenate(list(resample([rows], grid_between(0.0, 1.3, 20.0))))
    at = np.arange(27) / 20.0
    inside = (at <= 0.2 + 1e-9) | (at >= 1.2 - 1e-9)
    np.testing.assert_allclose(found[inside, 0, 0], at[inside], atol=1e-6)
    assert np.isnan(found[~inside]).all()
    assert np.isnan(found[1:4, 5]).all()
    assert found[4, 5, 0] == pytest.approx(0.2)


def test_trc_says_what_was_seen(tmp_path: Path) -> None:
    rows = squat_rows(np.arange(60) / 29.97)
    rows["keypoints"][10:14, 9] = np.nan
    grid = grid_between(0.0, float(rows["time_s"][-1]), 29.97)
    path = tmp_path / "squat.trc"
    write_trc(Markers("squat.trc", grid, 2.5, resample(in_pages(rows, 16), grid)), path)
    header, times_s, points = read_trc(path)
    assert header["DataRate"] == header["OrigDataRate"] == "29.97"
    assert header["Units"] == "mm"
    assert header["NumMarkers"] == "17"
    np.testing.assert_allclose(times_s, rows["time_s"], atol=1e-6)
    pixels = rows["keypoints"][:, :, :2].astype(float)
    np.testing.assert_allclose(points[:, :, 0], 2.5 * pixels[:, :, 0], atol=1e-3)
    np.testing.assert_allclose(points[:, :, 1], -2.5 * pixels[:, :, 1], atol=1e-3)
    assert (points[:, 0, 2] == 0.0).all()
    assert np.isnan(points[10:14, 9]).all()


def test_c3d_says_what_was_seen(tmp_path: Path) -> None:
    rows = squat_rows(np.arange(60) / 30.0)
    rows["keypoints"][10:14, 9] = np.nan
    grid = grid_between(0.0, float(rows["time_s"][-1]), 30.0)
    path = tmp_path / "squat.c3d"
    write_c3d(Markers("squat.c3d", grid, 1.0, resample(in_pages(rows, 16), grid)), path)
    file = ezc3d.c3d(str(path))
    assert file["parameters"]["POINT"]["UNITS"]["value"] == ["mm"]
    assert file["parameters"]["POINT"]["RATE"]["value"] == [30.0]
    assert file["parameters"]["POSE"]["MM_PER_PX"]["value"] == [1.0]
    assert "pixels" in file["parameters"]["POSE"]["NOTE"]["value"][0]
    assert file["parameters"]["POINT"]["LABELS"]["value"] == list(KEYPOINT_NAMES)
    points = file["data"]["points"]
    assert points.shape == (4, 17, 60)
    pixels = rows["keypoints"][:, :, :2].astype(float)
    known = np.isfinite(pixels[:, :, 0]).T
    np.testing.assert_allclose(points[0][known], pixels[:, :, 0].T[known], rtol=1e-6)
    np.testing.assert_allclose(points[1][known], -pixels[:, :, 1].T[known], rtol=1e-6)
    assert (points[2][known] == 0.0).all()
    residuals = file["data"]["meta_points"]["residuals"][0]
    assert (residuals[~known] == -1.0).all()
    assert (residuals[known] == 0.0).all()


def test_c3d_refuses_more_frames_than_it_can_count(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="65535"):
        write_c3d(Markers("long.c3d", Grid(0.0, 30.0, 70_000), 1.0, ()), tmp_path / "long.c3d")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_say_what_was_seen(tmp_path: Path, kind: str) -> None:
    rows = squat_rows(np.arange(100) / 30.0)
    rows["angles"][:, 8] = np.nan
    rows["score"][50:] = 81.25
    path = tmp_path / f"table.{kind}"
    if kind == "csv":
        write_csv(in_pages(rows, 30), STARTED_US, path)
        read = pl.read_csv(path, try_parse_dates=True, infer_schema_length=None)
    else:
        write_parquet(in_pages(rows, 30), STARTED_US, path)
        read = pl.read_parquet(path)
        assert list(tmp_path.iterdir()) == [path]
    assert read.height == 100
    assert read["time"].dt.epoch("us").to_list()[:2] == [STARTED_US, STARTED_US + 33_333]
    np.testing.assert_array_equal(read["time_s"].to_numpy(), rows["time_s"])
    np.testing.assert_allclose(read["left_knee_x_px"].to_numpy(), rows["keypoints"][:, 13, 0])
    assert read["left_ankle_deg"].null_count() == 100
    assert read["score"].to_list()[49:51] == [None, 81.25]
    assert read["frame_index"].to_list() == list(range(100))


def test_a_session_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    write_csv([], STARTED_US, tmp_path / "a.csv")
    write_parquet([], STARTED_US, tmp_path / "a.parquet")
    assert (
        pl.read_csv(tmp_path / "a.csv").columns == pl.read_parquet(tmp_path / "a.parquet").columns
    )
