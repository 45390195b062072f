"""Forgetting people: rows and files of a session, or of all sessions of an athlete."""

from uuid import UUID

from pose_analyzer.artifact_keys import session_prefix
from pose_analyzer.db_connector import Database
from pose_analyzer.ports import FileStore
from pose_analyzer.storage.athletes import delete_athlete_rows, get_athlete, session_ids_of
from pose_analyzer.storage.sessions import delete_session_rows, get_session


def delete_session(database: Database, files: FileStore, session_id: UUID) -> None:
    """Delete a session: files first, so that nothing is left that nobody knows of.

    Whoever is interrupted may begin again.

    Raises
    ------
    UnknownSessionError
        There is none.
    DatabaseUnavailableError, StorageUnavailableError
        It is not deleted, or not all of it.
    """
    with database.session() as session:
        get_session(session, session_id)
    files.delete_prefix(session_prefix(session_id))
    with database.session() as session:
        delete_session_rows(session, session_id)
    # What a worker stored meanwhile.
    files.delete_prefix(session_prefix(session_id))


def delete_athlete(database: Database, files: FileStore, athlete_id: UUID) -> None:
    """Delete an athlete with all their sessions; as `delete_session`.

    Raises
    ------
    UnknownAthleteError
        There is none.
    DatabaseUnavailableError, StorageUnavailableError
        They are not deleted, or not all of it.
    """
    with database.session() as session:
        get_athlete(session, athlete_id)
        known = session_ids_of(session, athlete_id)
    for session_id in known:
        files.delete_prefix(session_prefix(session_id))
    with database.session() as session:
        deleted = delete_athlete_rows(session, athlete_id)
    for session_id in deleted:
        files.delete_prefix(session_prefix(session_id))
