"""Fixtures shared by the tests of the pose analyzer."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The evaluation data beside the checkout; its absence skips the test."""
    folder = Path(os.environ.get("SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the evaluation data at {folder} (SHARED_DATA)")
    return folder
