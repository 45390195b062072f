"""Taught references in the database, as `pose-analyzer teach` writes them.

Every function works within the transaction of the session it is given.
"""

import json
import re
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import delete, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pose_analyzer.errors import UnknownAthleteError
from pose_analyzer.form_references import FormReference
from pose_analyzer.reference_files import NAME_PATTERN, format_reference, parse_reference
from pose_analyzer.storage.models import Athlete, StoredReference


def store_reference(
    session: Session, reference: FormReference, athlete_id: UUID | None = None
) -> None:
    """Keep a reference, in place of one of the same name.

    Raises
    ------
    UnknownAthleteError
        There is no such athlete.
    """
    if athlete_id is not None and session.get(Athlete, athlete_id) is None:
        raise UnknownAthleteError(athlete_id)
    values = {
        "exercise": reference.exercise,
        "athlete_id": athlete_id,
        "document": json.loads(format_reference(reference)),
    }
    session.execute(
        insert(StoredReference)
        .values(name=reference.name, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values)
    )


def list_references(session: Session) -> Sequence[StoredReference]:
    """All there are, by name."""
    return session.scalars(select(StoredReference).order_by(StoredReference.name)).all()


def references_for(
    session: Session, name: str | None, athlete_id: UUID | None
) -> Sequence[StoredReference]:
    """The one that is named, those for everyone, and those of an athlete."""
    row = StoredReference
    wanted = [row.document["mode"].astext == "general"]
    if name is not None and _is_name(name):
        wanted.append(row.name == name)
    if athlete_id is not None:
        wanted.append(row.athlete_id == athlete_id)
    return session.scalars(select(row).where(or_(*wanted)).order_by(row.created_at)).all()


def forget_reference(session: Session, name: str) -> bool:
    """Delete a reference; whether there was one."""
    if not _is_name(name):
        return False
    deleted = session.scalar(
        delete(StoredReference).where(StoredReference.name == name).returning(StoredReference.name)
    )
    return deleted is not None


def document_of(stored: StoredReference) -> str:
    """Text of a reference, as a file holds it."""
    return json.dumps(stored.document, separators=(",", ":"))


def reference_of(stored: StoredReference) -> FormReference:
    """Read a reference.

    Raises
    ------
    InvalidReferenceError
        It is none of this version.
    """
    return parse_reference(document_of(stored), stored.name)


def _is_name(text: str) -> bool:
    """Whether a reference can be called this; the server takes not every text."""
    return re.fullmatch(NAME_PATTERN, text) is not None
