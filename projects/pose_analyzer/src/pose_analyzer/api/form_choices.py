"""What form is judged by: files, and references and athletes of the database where it is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends
from starlette.requests import HTTPConnection

from pose_analyzer.api.dependencies import DatabaseWatchDep, LibraryDep
from pose_analyzer.athlete_forms import FormWish, choose_form
from pose_analyzer.background_database import BackgroundDatabase
from pose_analyzer.db_connector import Database
from pose_analyzer.errors import DatabaseUnavailableError, InvalidReferenceError, UnknownNameError
from pose_analyzer.exercises import Exercise
from pose_analyzer.form_library import FormLibrary
from pose_analyzer.form_references import FormReference
from pose_analyzer.form_types import FormChoice
from pose_analyzer.reference_files import delete_reference, save_reference
from pose_analyzer.storage.references import (
    forget_reference,
    list_references,
    reference_of,
    store_reference,
)


@dataclass(frozen=True, slots=True)
class ShelvedReference:
    """A reference, and whose it is."""

    reference: FormReference
    athlete_id: UUID | None = None


class FormShelf:
    """References of the files and of the database; for threads.

    While the database is away only files are there, and what needs it is refused.

    Parameters
    ----------
    library
        The files.
    watch
        The database.
    has_database
        Whether there is to be one; if not, taught references go into files.
    """

    def __init__(
        self, library: FormLibrary, watch: BackgroundDatabase, *, has_database: bool
    ) -> None:
        self.library = library
        self._watch = watch
        self._has_database = has_database

    def references(self) -> dict[str, ShelvedReference]:
        """All that can be reached now, by name; raises as `FormLibrary.references`."""
        found = {name: ShelvedReference(one) for name, one in self.library.references().items()}
        try:
            database = self._database()
            if database is not None:
                with database.session() as session:
                    for one in list_references(session):
                        found[one.name] = ShelvedReference(reference_of(one), one.athlete_id)
        except DatabaseUnavailableError:
            return found
        return found

    def keep(self, reference: FormReference, athlete_id: UUID | None) -> None:
        """Keep a reference, unless its name is that of a built-in one.

        Raises
        ------
        InvalidReferenceError
            It is.
        UnknownAthleteError
            There is no such athlete.
        DatabaseUnavailableError
            It cannot be kept at present, or an athlete is named and there is to be no database.
        """
        folders = self.library.folders
        if (folders.references / f"{reference.name}.json").exists():
            raise InvalidReferenceError(reference.name, "a built-in reference has this name")
        database = self._watch.get() if athlete_id is not None else self._database()
        if database is None:
            save_reference(folders.taught_references, reference)
            return
        with database.session() as session:
            store_reference(session, reference, athlete_id)

    def forget(self, name: str) -> None:
        """Delete a taught reference, wherever it is.

        Raises
        ------
        UnknownNameError
            There is none of this name.
        DatabaseUnavailableError
            The database is away.
        """
        database, there = self._database(), False
        if database is not None:
            with database.session() as session:
                there = forget_reference(session, name)
        try:
            delete_reference(self.library.folders.taught_references, name)
        except UnknownNameError:
            if not there:
                raise

    def choose(self, exercises: Sequence[Exercise], wish: FormWish) -> FormChoice:
        """What these exercises are judged by.

        Raises
        ------
        UnknownAthleteError
            There is no such athlete.
        DatabaseUnavailableError
            It is away, and an athlete or a reference that is in no file was asked for.
        """
        plain = FormChoice(wish.reference, wish.language)
        if not self._has_database and wish.athlete_id is None:
            return plain
        try:
            return choose_form(self._watch.get(), self.library, exercises, wish)
        except DatabaseUnavailableError:
            elsewhere = wish.reference is not None and (
                wish.reference not in self.library.references()
            )
            if elsewhere or wish.athlete_id is not None:
                raise
            return plain

    def _database(self) -> Database | None:
        return self._watch.get() if self._has_database else None


def _shelf(connection: HTTPConnection, library: LibraryDep, watch: DatabaseWatchDep) -> FormShelf:
    return FormShelf(library, watch, has_database=connection.state.storage is not None)


ShelfDep = Annotated[FormShelf, Depends(_shelf)]
