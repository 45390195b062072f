"""DATABASE_URL, as people write it, as the one driver here wants it."""

from typing import Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from pose_analyzer.errors import InvalidDatabaseUrlError
from pose_analyzer.storage.server_folder import ServerAddress

_DRIVER: Final = "postgresql+psycopg2"
_SPELLINGS: Final = ("postgresql", "postgres", _DRIVER, "postgresql+asyncpg")


def normalised_url(text: str) -> URL:
    """Read a database's URL in any of its usual spellings.

    Raises
    ------
    InvalidDatabaseUrlError
        It is no URL, or one of something other than PostgreSQL. The message has no part of it that
        could be a password.
    """
    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError):
        # Their messages may quote what they could not read.
        raise InvalidDatabaseUrlError("it cannot be read as an address") from None
    if url.drivername not in _SPELLINGS:
        known = ", ".join(f"{name}://" for name in _SPELLINGS)
        raise InvalidDatabaseUrlError(f"it begins with {url.drivername}:// and not with {known}")
    if not url.database:
        raise InvalidDatabaseUrlError("it names no database")
    # What asyncpg calls ssl is libpq's sslmode.
    query = {"sslmode" if name == "ssl" else name: value for name, value in url.query.items()}
    return url.set(drivername=_DRIVER, query=query)


def url_of(address: ServerAddress) -> URL:
    """URL of an embedded server."""
    return URL.create(
        _DRIVER,
        username=address.user,
        database=address.database,
        port=address.port,
        query={"host": address.socket_dir},
    )
