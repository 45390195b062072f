"""What a known athlete's form is judged by: stored references, and their own way so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from pose_analyzer.db_connector import Database
from pose_analyzer.exercises import Exercise
from pose_analyzer.form_library import FormLibrary
from pose_analyzer.form_references import FormReference, signals_for
from pose_analyzer.form_types import FormChoice
from pose_analyzer.reference_files import format_reference, select_reference
from pose_analyzer.storage.athletes import get_athlete
from pose_analyzer.storage.own_ways import exercises_of, own_reference
from pose_analyzer.storage.references import document_of, reference_of, references_for


@dataclass(frozen=True, slots=True)
class FormWish:
    """What somebody asks for."""

    reference: str | None
    """Name of a reference; None: what there is."""
    language: str
    athlete_id: UUID | None = None
    session_id: UUID | None = None
    """What is to be analysed, if it is stored already: nothing is learned from it beforehand."""


def choose_form(
    database: Database, library: FormLibrary, exercises: Sequence[Exercise], wish: FormWish
) -> FormChoice:
    """Add to a wish what the database knows; reads and computes for a tenth of a second.

    An athlete's own way is the reference they were taught last, or else what their accepted
    repetitions amount to.

    Raises
    ------
    UnknownAthleteError
        There is no such athlete.
    DatabaseUnavailableError
        The database is away.
    """
    with database.session() as session:
        if wish.athlete_id is not None:
            get_athlete(session, wish.athlete_id)
        stored = references_for(session, wish.reference, wish.athlete_id)
        own: dict[str, FormReference] = {}
        if wish.athlete_id is not None:
            known = library.references() | {one.name: reference_of(one) for one in stored}
            done = exercises_of(session, wish.athlete_id)
            for exercise in exercises:
                if exercise.name not in done:
                    continue
                learned = own_reference(
                    session,
                    wish.athlete_id,
                    exercise.name,
                    signals_for(exercise.main_angles),
                    select_reference(known, exercise.name),
                    but=wish.session_id,
                )
                if learned is not None:
                    own[exercise.name] = learned
            own |= {
                one.exercise: reference_of(one)
                for one in stored
                if one.athlete_id == wish.athlete_id and one.document["mode"] == "personal"
            }
    return FormChoice(
        reference=wish.reference,
        language=wish.language,
        documents=tuple(document_of(one) for one in stored),
        own=tuple(format_reference(one) for one in own.values()),
    )
