"""Run by alembic: connects it to the database of the settings, or to one it is handed.

`pose_analyzer.storage.schema` hands one over; ``alembic`` on the command line does not.
"""

import logging
import sys

from alembic import context
from sqlalchemy import Connection

from pose_analyzer.storage.database import find_database
from pose_analyzer.storage.models import Base
from pose_analyzer.storage.schema import is_in_models, lock_schema
from pose_analyzer.storage_settings import StorageSettings
from shared_utils.errors import ProjectError
from shared_utils.settings import read_settings


def run_on(connection: Connection) -> None:
    """Run the migrations that alembic was asked for; all of them or none."""
    context.configure(
        connection=connection, target_metadata=Base.metadata, include_object=is_in_models
    )
    with context.begin_transaction():
        lock_schema(connection)
        context.run_migrations()


def run_from_command_line() -> None:
    """Run them on the database of the settings, and say which."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
    if context.is_offline_mode():
        sys.exit("Error: what is to be done depends on the server, so --sql cannot tell it.")
    try:
        database = find_database(read_settings(StorageSettings))
        with database, database.absence_told(), database.engine.connect() as connection:
            run_on(connection)
    except ProjectError as error:
        sys.exit(f"Error: {error}")


handed_over: Connection | None = context.config.attributes.get("connection")
if handed_over is not None:
    run_on(handed_over)
else:
    run_from_command_line()
