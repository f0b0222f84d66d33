"""The rows of keys: added, replaced, ended and read in pages."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from auth_worker import schema
from auth_worker.errors import InvalidCommandError, KeyNotFoundError
from auth_worker.keys import StoredKey
from auth_worker.operations import AddKey, AuditEntry, EndKey, KeyPage, PutKey, ReadKeys, Result
from protocol.wire.messages import KeyRecord

Change = tuple[Result, AuditEntry | None]
"""What became of an operation, and what the audit log should say; None when nothing changed."""


class KeyTable:
    """The table of keys within one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, operation: AddKey) -> Change:
        """Insert a key. Asked again for the very same key, the answer is the first one's."""
        key = operation.key
        row = self._row(schema.keys.c.digest == key.digest)
        if row is None:
            self._connection.execute(insert(schema.keys).values(_values(key)))
            return self._answer(key.key_id), operation.audit
        known = stored_key(row)
        if known != replace(key, key_id=known.key_id, created_at=known.created_at):
            return InvalidCommandError("This key exists already.", param="key_digest"), None
        return KeyPage(records=(key_record(row),)), None

    def put(self, operation: PutKey) -> Change:
        """Insert a key or replace the one of its id, whose totals stay."""
        key = operation.key
        same_id = schema.keys.c.key_id == key.key_id
        if self._row(same_id) is None:
            self._connection.execute(insert(schema.keys).values(_values(key)))
        else:
            self._connection.execute(update(schema.keys).where(same_id).values(_values(key)))
        return self._answer(key.key_id), operation.audit

    def end(self, operation: EndKey) -> Change:
        """Mark a key as revoked, once."""
        same_id = schema.keys.c.key_id == operation.key_id
        row = self._row(same_id)
        if row is None:
            return KeyNotFoundError(f"There is no key '{operation.key_id}'.", param="key_id"), None
        if row.revoked_at is not None:
            return KeyPage(records=(key_record(row),)), None
        self._connection.execute(
            update(schema.keys).where(same_id).values(revoked_at=operation.revoked_at)
        )
        return self._answer(operation.key_id), operation.audit

    def page(self, operation: ReadKeys) -> Result:
        """A page of keys, newest first."""
        column = schema.keys.c
        newest_first = select(schema.keys).order_by(column.seq.desc()).limit(operation.limit + 1)
        if operation.after_key_id:
            after = self._row(column.key_id == operation.after_key_id)
            if after is None:
                return KeyNotFoundError(
                    f"There is no key '{operation.after_key_id}' to continue after.", param="after"
                )
            newest_first = newest_first.where(column.seq < after.seq)
        rows = self._connection.execute(newest_first).all()
        return KeyPage(
            records=tuple(key_record(row) for row in rows[: operation.limit]),
            has_more=len(rows) > operation.limit,
        )

    def _row(self, condition: Any) -> Row[Any] | None:
        return self._connection.execute(select(schema.keys).where(condition)).one_or_none()

    def _answer(self, key_id: str) -> KeyPage:
        same_id = schema.keys.c.key_id == key_id
        row = self._connection.execute(select(schema.keys).where(same_id)).one()
        return KeyPage(records=(key_record(row),))


def stored_key(row: Row[Any]) -> StoredKey:
    """A row of the table as the authority knows it."""
    return StoredKey(
        key_id=row.key_id,
        digest=row.digest,
        hint=row.hint,
        name=row.name,
        role=row.role,
        tenant=row.tenant,
        created_at=row.created_at,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def key_record(row: Row[Any]) -> KeyRecord:
    """A row of the table as people may see it."""
    tenant_id = stored_key(row).tenant_id
    return KeyRecord(
        key_id=row.key_id,
        name=row.name,
        role=row.role,
        hint=row.hint,
        created_at=row.created_at,
        tenant=tenant_id,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        total_requests=row.total_requests,
        total_prompt_tokens=row.total_prompt_tokens,
        total_completion_tokens=row.total_completion_tokens,
    )


def _values(key: StoredKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "digest": key.digest,
        "hint": key.hint,
        "name": key.name,
        "role": key.role,
        "tenant": key.tenant,
        "created_at": key.created_at,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }
