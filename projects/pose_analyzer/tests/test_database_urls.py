"""DATABASE_URL as people write it."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.errors import InvalidDatabaseUrlError
from pose_analyzer.storage.urls import normalised_url

SECRET = "s3cret%40"  # noqa: S105


@pytest.mark.parametrize(
    "scheme", ["postgresql", "postgres", "postgresql+psycopg2", "postgresql+asyncpg"]
)
def test_spellings_of_the_address(scheme):
    url = normalised_url(f"{scheme}://me:{SECRET}@host:5433/coach?ssl=require")
    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host, url.port) == ("me", "s3cret@", "host", 5433)
    assert url.query == {"sslmode": "require"}
    assert "s3cret" not in str(url)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (f"mysql://me:{SECRET}@host/x", "begins with mysql"),
        (f"postgresql://me:{SECRET}@host:port/x", "cannot be read"),
        (f"{SECRET} at the host", "cannot be read"),
        (f"postgresql://me:{SECRET}@host", "names no database"),
    ],
)
def test_wrong_addresses_are_refused_without_quoting_them(wrong, why):
    with pytest.raises(InvalidDatabaseUrlError, match=why) as refused:
        normalised_url(wrong)
    assert "s3cret" not in str(refused.value)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_refused(words):
    with contextlib.suppress(InvalidDatabaseUrlError):
        assert normalised_url(words).drivername == "postgresql+psycopg2"
