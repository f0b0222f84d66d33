"""The rows of keys: added, changed, dropped and read in pages."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from auth_worker.errors import InvalidCommandError, KeyNotFoundError
from auth_worker.principals.key_rules import NO_RULES, PRIORITIES, KeyRules, networks_of
from auth_worker.principals.keys import StoredKey, status_of
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.records.operations import (
    AddKey,
    AuditEntry,
    ChangeKey,
    DropKey,
    KeyPage,
    PutKey,
    ReadKeys,
    Result,
)
from auth_worker.storage import schema
from auth_worker.storage.audit_table import noting_place, place_of_deleted
from auth_worker.storage.bulk import run
from protocol.wire.messages import KeyDetails, KeySettings, PriorityClass

Change = tuple[Result, AuditEntry | None]
"""What became of an operation, and what the audit log should say; None when nothing changed."""

_LISTS: Final = (
    "scopes",
    "tags",
    "allowed_models",
    "allowed_endpoints",
    "allowed_ip_addresses",
    "blocked_ip_addresses",
)
_NEVER_NULL: Final = {"tags": (), "blocked_ip_addresses": ()}
"""Lists that say nothing when they are empty; an empty one of the others lets nothing through."""

_OWN: Final = (
    *("key_id", "digest", "hint", "name", "role", "tenant", "created_at"),
    *("requests_per_minute", "tokens_per_minute", "expires_at", "revoked_at", "suspended_at"),
)
_RULED: Final = (
    *("scopes", "allowed_models", "allowed_endpoints"),
    *("allowed_ip_addresses", "blocked_ip_addresses"),
    *("max_parallel_requests", "max_tokens_per_request"),
    *("enable_streaming", "enable_function_calling", "priority"),
)
_LATER: Final = (
    *("previous_digest", "previous_until", "user_id", "team_id", "may_name_end_users"),
)
"""The columns of a stored key in the order of its fields; between the first and the last stand its
rules, which are made of those in the middle."""
_ROWS_A_STEP: Final = 1000
_make: Callable[..., StoredKey] = StoredKey

_columns = schema.keys.c


class KeyTable:
    """The table of keys within one transaction.

    Args:
        connection: In the transaction.
        wall_s: Unix seconds, for what a key's status is now.
    """

    def __init__(self, connection: Connection, wall_s: float) -> None:
        self._connection = connection
        self._wall_s = wall_s
        self._sharing_teams: frozenset[str] | None = None  # read when the first key needs it

    def add(self, operation: AddKey) -> Change:
        """Insert a key. Asked again for the very same key, the answer is the first one's."""
        key = operation.key
        row = self._row(_columns.digest == key.digest)
        if row is None:
            settings = {} if operation.settings is None else setting_values(operation.settings)
            values = settings | _values(key) | {"created_by": operation.created_by}
            self._connection.execute(insert(schema.keys).values(values))
            return self._answer(key.key_id), operation.audit
        known = stored_key(row)
        if known != replace(key, key_id=known.key_id, created_at=known.created_at):
            return InvalidCommandError("This key exists already.", param="key_digest"), None
        return KeyPage(records=(self._details(row),)), None

    def put(self, operation: PutKey) -> Change:
        """Insert a key or replace the one of its id, whose totals stay."""
        key = operation.key
        same_id = _columns.key_id == key.key_id
        if self._row(same_id) is None:
            self._connection.execute(insert(schema.keys).values(_values(key)))
        else:
            self._connection.execute(update(schema.keys).where(same_id).values(_values(key)))
        return self._answer(key.key_id), operation.audit

    def change(self, operation: ChangeKey) -> Change:
        """Change some columns of a key; nothing when they say so already."""
        same_id = _columns.key_id == operation.key_id
        row = self._row(same_id)
        if row is None:
            return _missing(operation.key_id), None
        values = dict(operation.values)
        if all(getattr(row, name) == value for name, value in values.items()):
            return KeyPage(records=(self._details(row),)), None
        self._connection.execute(update(schema.keys).where(same_id).values(values))
        return self._answer(operation.key_id), operation.audit

    def drop(self, operation: DropKey) -> Change:
        """Delete a key; the answer is what it was."""
        same_id = _columns.key_id == operation.key_id
        row = self._row(same_id)
        if row is None:
            return _missing(operation.key_id), None
        self._connection.execute(delete(schema.keys).where(same_id))
        return KeyPage(records=(self._details(row),)), noting_place(operation.audit, row.seq)

    def page(self, operation: ReadKeys) -> Result:
        """The key of an id, or a page of those that fit, newest first."""
        if operation.key_id:
            row = self._row(_columns.key_id == operation.key_id)
            return _missing(operation.key_id) if row is None else self._answer(operation.key_id)
        newest_first = (
            select(schema.keys)
            .where(*self._conditions(operation))
            .order_by(_columns.seq.desc())
            .limit(operation.limit + 1)
        )
        if operation.after_key_id:
            place = self._place(operation.after_key_id)
            if place is None:
                return KeyNotFoundError(
                    f"There is no key '{operation.after_key_id}' to continue after.", param="after"
                )
            newest_first = newest_first.where(_columns.seq < place)
        rows = self._connection.execute(newest_first).all()
        return KeyPage(
            records=tuple(self._details(row) for row in rows[: operation.limit]),
            has_more=len(rows) > operation.limit,
        )

    def _place(self, key_id: str) -> int | None:
        """Where in the list a key stands, or stood before it was deleted."""
        row = self._row(_columns.key_id == key_id)
        return place_of_deleted(self._connection, "key_deleted", key_id) if row is None else row.seq

    def _conditions(self, operation: ReadKeys) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = []
        if operation.role:
            conditions.append(_columns.role == operation.role)
        if operation.owner:
            conditions.append(_columns.owner == operation.owner)
        if operation.user_id:
            conditions.append(_columns.user_id == operation.user_id)
        if operation.team_id:
            conditions.append(_columns.team_id == operation.team_id)
        if operation.tag:
            conditions.append(holds_entry(_columns.tags, _json(operation.tag)))
        if operation.status:
            conditions.append(status_conditions(self._wall_s)[operation.status])
        return conditions

    def _row(self, condition: ColumnElement[bool]) -> Row[Any] | None:
        return self._connection.execute(select(schema.keys).where(condition)).one_or_none()

    def _answer(self, key_id: str) -> KeyPage:
        row = self._connection.execute(select(schema.keys).where(_columns.key_id == key_id)).one()
        return KeyPage(records=(self._details(row),))

    def _details(self, row: Row[Any]) -> KeyDetails:
        if row.team_id and self._sharing_teams is None:
            sharing = select(schema.teams.c.team_id).where(schema.teams.c.tenant_is_shared)
            self._sharing_teams = frozenset(self._connection.execute(sharing).scalars())
        shares = row.team_id in (self._sharing_teams or ())
        return key_details(row, self._wall_s, shares_with_team=shares)


def holds_entry(column: Column[Any], entry: str) -> ColumnElement[bool]:
    """Whether the JSON list in a column holds an entry, whole and with its case.

    SQLite's LIKE would take `Prod` for `prod`, and what stands between two entries for one.
    """
    entries = literal(",") + func.substr(column, 2, func.length(column) - 2) + ","
    return func.replace(entries, f",{entry},", "") != entries


def status_conditions(wall_s: float) -> dict[str, ColumnElement[bool]]:
    """The same as `status_of`, for the database."""
    is_ended = _columns.revoked_at.is_not(None)
    has_expired = and_(_columns.expires_at.is_not(None), _columns.expires_at <= int(wall_s))
    lives = and_(
        _columns.revoked_at.is_(None),
        or_(_columns.expires_at.is_(None), _columns.expires_at > int(wall_s)),
    )
    return {
        "revoked": is_ended,
        "expired": and_(_columns.revoked_at.is_(None), has_expired),
        "suspended": and_(lives, _columns.suspended_at.is_not(None)),
        "active": and_(lives, _columns.suspended_at.is_(None)),
    }


def load_keys(
    connection: Connection, users: Iterable[StoredUser] = (), teams: Iterable[StoredTeam] = ()
) -> Iterator[StoredKey]:
    """All keys, as the authority knows them, with their users and teams, some thousand a step.

    Past SQLAlchemy, whose rows take longer than all the rest; a hundred thousand keys should be
    there within a second or two. Rules that are alike are one object.
    """
    statement = select(*(_columns[name] for name in (*_OWN, *_RULED, *_LATER)))
    cursor = run(connection, str(statement.compile(dialect=connection.dialect)))
    known: dict[tuple[Any, ...], KeyRules] = {}
    user_of = {user.user_id: user for user in users}.get
    team_of = {team.team_id: team for team in teams}.get
    rules_end = len(_OWN) + len(_RULED)
    while rows := cursor.fetchmany(_ROWS_A_STEP):
        for row in rows:
            ruled = row[len(_OWN) : rules_end]
            rules = known.get(ruled)
            if rules is None:
                rules = known[ruled] = _rules(*ruled)
            *later, may_name_end_users = row[rules_end:]
            of_whom = user_of(later[-2]), team_of(later[-1])
            yield _make(*row[: len(_OWN)], rules, *later, bool(may_name_end_users), "", *of_whom)


def stored_key(row: Row[Any]) -> StoredKey:
    """A row of the table as the authority knows it."""
    own, later = ([getattr(row, name) for name in names] for names in (_OWN, _LATER))
    return _make(*own, _rules(*(getattr(row, name) for name in _RULED)), *later)


def key_details(row: Row[Any], wall_s: float, *, shares_with_team: bool = False) -> KeyDetails:
    """A row of the table as people may see it.

    Args:
        row: Of a key.
        wall_s: Unix seconds.
        shares_with_team: Whether its team's keys are one tenant.
    """
    settings: dict[str, Any] = {
        name: getattr(row, name) for name in KeySettings.__struct_fields__ if name != "metadata"
    }
    for name in _LISTS:
        settings[name] = _list(getattr(row, name), _NEVER_NULL.get(name))
    metadata = {} if row.metadata is None else json.loads(row.metadata)
    key = stored_key(row)
    names_none = key.tenant_id == key.key_id
    if names_none:
        settings["tenant"] = ""
    return KeyDetails(
        key_id=row.key_id,
        hint=row.hint,
        status=status_of(row.revoked_at, row.expires_at, row.suspended_at, wall_s),
        settings=KeySettings(metadata=metadata, **settings),
        tenant_id=key.team_id if names_none and shares_with_team else key.tenant_id,
        created_at=row.created_at,
        created_by=row.created_by,
        suspended_at=row.suspended_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        last_rotated_at=row.last_rotated_at,
        last_rotated_by=row.last_rotated_by,
        previous_until=row.previous_until,
        total_requests=row.total_requests,
        total_prompt_tokens=row.total_prompt_tokens,
        total_completion_tokens=row.total_completion_tokens,
        total_cost_micros=row.total_cost_micros,
    )


def setting_values(settings: KeySettings) -> dict[str, Any]:
    """Settings by column."""
    values: dict[str, Any] = {
        name: getattr(settings, name) for name in KeySettings.__struct_fields__
    }
    for name in _LISTS:
        if values[name] == _NEVER_NULL.get(name):
            values[name] = None
        else:
            values[name] = _json(list(values[name]))
    values["metadata"] = _json(settings.metadata) if settings.metadata else None
    return values


def _values(key: StoredKey) -> dict[str, Any]:
    """What a key of the authority says by itself, by column; its rules come with its settings."""
    return {
        name: getattr(key, name)
        for name in (
            *("key_id", "digest", "hint", "name", "role", "tenant", "created_at"),
            *("requests_per_minute", "tokens_per_minute", "expires_at"),
            *("revoked_at", "suspended_at", "previous_digest", "previous_until"),
            *("user_id", "team_id", "may_name_end_users"),
        )
    }


def _rules(
    scopes: str | None,
    allowed_models: str | None,
    allowed_endpoints: str | None,
    allowed_ip_addresses: str | None,
    blocked_ip_addresses: str | None,
    max_parallel_requests: int | None,
    max_tokens_per_request: int | None,
    enable_streaming: bool | int,
    enable_function_calling: bool | int,
    priority: PriorityClass,
) -> KeyRules:
    """The columns of `_RULED`, which in SQLite have no booleans."""
    allowed = _list(allowed_ip_addresses, None)
    narrowed = _list(scopes, None)
    rules = KeyRules(
        scopes=None if narrowed is None else frozenset(narrowed),
        allowed_models=_list(allowed_models, None),
        allowed_endpoints=_list(allowed_endpoints, None),
        allowed_networks=None if allowed is None else networks_of(allowed),
        blocked_networks=networks_of(_list(blocked_ip_addresses, ()) or ()),
        max_parallel_requests=max_parallel_requests,
        max_tokens_per_request=max_tokens_per_request,
        enable_streaming=bool(enable_streaming),
        enable_function_calling=bool(enable_function_calling),
        priority=PRIORITIES[priority],
    )
    return NO_RULES if rules == NO_RULES else rules


def _list(text: str | None, if_null: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return if_null if text is None else tuple(json.loads(text))


def _json(value: list[str] | Mapping[str, str] | str) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _missing(key_id: str) -> KeyNotFoundError:
    return KeyNotFoundError(f"There is no key '{key_id[:100]}'.", param="key_id")
