import ctypes

import pytest

from shared_utils.machine import give_memory_back, n_usable_cores, trim_memory


def test_there_is_a_core_to_run_on() -> None:
    assert n_usable_cores() >= 1


def test_malloc_is_set_where_it_is_glibc() -> None:
    assert give_memory_back() is hasattr(ctypes.CDLL(None), "mallopt")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert give_memory_back() is False
    assert trim_memory() is False


def test_memory_can_be_returned_at_any_time() -> None:
    assert trim_memory() in {True, False}
