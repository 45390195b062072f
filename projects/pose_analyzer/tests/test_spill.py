"""Batches on disk: in order, within a limit, whole or not at all, whoever left them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.storage.spill import SpilledBatch, SpillFolder


def no_essence(data: bytes) -> bytes:
    return b""


def first_byte(data: bytes) -> bytes:
    return data[:1]


def batch(number: int, n_bytes: int = 100, n_rows: int = 10) -> SpilledBatch:
    return SpilledBatch(bytes([number]) * n_bytes, n_rows, float(number))


def drained(folder: SpillFolder) -> list[SpilledBatch]:
    found = []
    while segment := folder.oldest():
        found += segment
        folder.forget_oldest()
    return found


def test_first_in_is_first_out(tmp_path: Path) -> None:
    spill = SpillFolder(tmp_path, 10_000, no_essence)
    batches = [batch(number) for number in range(1, 40)]
    assert [spill.append(one) for one in batches] == [0] * 39
    assert spill.n_rows == 390
    assert spill.oldest_s == 1.0
    assert drained(spill) == batches
    assert (spill.n_bytes, spill.n_rows, spill.oldest_s) == (0, 0, None)
    spill.close()


def test_what_comes_while_the_oldest_is_read_is_not_lost(tmp_path: Path) -> None:
    spill = SpillFolder(tmp_path, 10_000, no_essence)
    spill.append(batch(1))
    assert spill.oldest() == [batch(1)]
    spill.append(batch(2))
    spill.forget_oldest()
    assert drained(spill) == [batch(2)]
    spill.close()


def test_the_next_process_takes_over(tmp_path: Path) -> None:
    first = SpillFolder(tmp_path, 10_000, no_essence)
    first.append(batch(1))
    second = SpillFolder(tmp_path, 10_000, no_essence)
    second.append(batch(2))
    first.close()
    third = SpillFolder(tmp_path, 10_000, no_essence)
    third.append(batch(3))
    assert drained(third) == [batch(1), batch(3)]
    assert drained(second) == [batch(2)]
    second.close()
    third.close()


@pytest.mark.parametrize("n_cut", [1, 99, 101, 127])
def test_a_cut_segment_keeps_what_is_whole(tmp_path: Path, n_cut: int) -> None:
    spill = SpillFolder(tmp_path, 10_000, no_essence)
    spill.append(batch(1))
    spill.append(batch(2))
    spill.close()
    (path,) = tmp_path.rglob("*.batches")
    path.write_bytes(path.read_bytes()[:-n_cut])
    spill = SpillFolder(tmp_path, 10_000, no_essence)
    assert drained(spill) == ([batch(1)] if n_cut < 124 else [])
    spill.close()


def test_a_damaged_batch_is_not_taken(tmp_path: Path) -> None:
    spill = SpillFolder(tmp_path, 10_000, no_essence)
    spill.append(batch(1))
    spill.close()
    (path,) = tmp_path.rglob("*.batches")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    spill = SpillFolder(tmp_path, 10_000, no_essence)
    assert drained(spill) == []
    spill.close()


@given(
    sizes=st.lists(st.integers(1, 3000), max_size=60),
    max_bytes=st.integers(1000, 8000),
)
def test_the_oldest_rows_go_first(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], max_bytes: int
) -> None:
    spill = SpillFolder(tmp_path_factory.mktemp("spill"), max_bytes, no_essence)
    batches = [batch(n, size, n_rows=n + 1) for n, size in enumerate(sizes)]
    n_dropped = 0
    for one in batches:
        n_dropped += spill.append(one)
        assert spill.n_bytes <= max_bytes
    n_left = spill.n_rows
    kept = drained(spill)
    # Too large ones were not taken at all.
    fitting = [one for one in batches if len(one.data) + 24 <= max_bytes]
    assert kept == fitting[len(fitting) - len(kept) :]
    assert n_left == sum(one.n_rows for one in kept)
    assert n_dropped + n_left == sum(one.n_rows for one in batches)
    spill.close()


def test_what_matters_of_dropped_rows_stays(tmp_path: Path) -> None:
    spill = SpillFolder(tmp_path, 4_000, first_byte)
    batches = [batch(number, 300) for number in range(1, 60)]
    n_dropped = sum(spill.append(one) for one in batches)
    assert n_dropped > 400
    left = drained(spill)
    whole = [one for one in left if one.n_rows]
    assert whole == batches[len(batches) - len(whole) :]
    assert [one.data for one in left if not one.n_rows] == [
        one.data[:1] for one in batches[: len(batches) - len(whole)]
    ]
    spill.close()
