"""Opens the database: the one that DATABASE_URL names, or a server of the service's own."""

from pose_analyzer.storage.database import Database, find_database
from pose_analyzer.storage.schema import bring_up_to_date, check_version
from pose_analyzer.storage_settings import StorageSettings

__all__ = ["Database", "open_database"]


def open_database(settings: StorageSettings, *, migrate: bool = True) -> Database:
    """Open the database of the settings; start or join the embedded server where they name none.

    Parameters
    ----------
    settings
        As read by the shell.
    migrate
        Whether tables of an older version are brought up to date; otherwise they are refused.

    Raises
    ------
    DatabaseUnavailableError
        It cannot be reached or started.
    InvalidDatabaseUrlError
        DATABASE_URL names no PostgreSQL server.
    SchemaVersionError
        Its tables are of another version.
    """
    database = find_database(settings)
    try:
        with database.absence_told():
            (bring_up_to_date if migrate else check_version)(database.engine)
    except BaseException:
        database.close()
        raise
    return database
