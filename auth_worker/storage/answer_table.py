"""What came of administrators' requests with an `Idempotency-Key`: claimed once, kept for a day.

Answers are sealed by the gateway with the caller's own key, so nothing here opens anything.
"""

from typing import Final

from sqlalchemy import Connection, delete, insert, select, update

from auth_worker.records.operations import ClaimAnswerRow, ClaimedAnswer, KeepAnswerRow
from auth_worker.storage import schema

MAX_AGE_MS: Final = 86_400_000
MAX_OF_OWNER: Final = 1000
"""Of one key; beyond, its oldest are forgotten."""
_table = schema.admin_answers.c


def claim(connection: Connection, operation: ClaimAnswerRow) -> ClaimedAnswer:
    """Begin a request, unless it was begun before."""
    connection.execute(
        delete(schema.admin_answers).where(_table.at_ms < operation.at_ms - MAX_AGE_MS)
    )
    known = connection.execute(
        select(_table.owner, _table.fingerprint, _table.answer, _table.at_ms).where(
            _table.name == operation.name
        )
    ).one_or_none()
    if known is not None:
        if (known.owner, known.fingerprint) != (operation.owner, operation.fingerprint):
            return ClaimedAnswer("other")
        if known.answer:
            return ClaimedAnswer("kept", known.answer)
        return ClaimedAnswer("running", age_ms=max(0, operation.at_ms - known.at_ms))
    _make_room(connection, operation.owner)
    connection.execute(
        insert(schema.admin_answers).values(
            name=operation.name,
            owner=operation.owner,
            fingerprint=operation.fingerprint,
            at_ms=operation.at_ms,
            answer=b"",
        )
    )
    return ClaimedAnswer("new")


def keep(connection: Connection, operation: KeepAnswerRow) -> None:
    """Note what came of a request; one of which nothing came is forgotten."""
    own = (_table.name == operation.name, _table.owner == operation.owner)
    if operation.answer:
        connection.execute(update(schema.admin_answers).where(*own).values(answer=operation.answer))
    else:
        connection.execute(delete(schema.admin_answers).where(*own, _table.answer == b""))


def _make_room(connection: Connection, owner: str) -> None:
    newest = (
        select(_table.at_ms)
        .where(_table.owner == owner)
        .order_by(_table.at_ms.desc())
        .offset(MAX_OF_OWNER - 1)
        .limit(1)
    )
    oldest_kept = connection.execute(newest).scalar_one_or_none()
    if oldest_kept is not None:
        connection.execute(
            delete(schema.admin_answers).where(_table.owner == owner, _table.at_ms <= oldest_kept)
        )
