"""The rows of users, teams, limits and prices: made, changed, dropped and read in pages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

from msgspec import structs
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)

from auth_worker.errors import InvalidCommandError, ResourceNotFoundError
from auth_worker.principals.checks import LAST_SECOND
from auth_worker.principals.definitions import limit_of, price_of, team_of, user_of
from auth_worker.principals.limit_rules import Limit
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.prices import Price, begin_of
from auth_worker.principals.webhooks import StoredWebhook
from auth_worker.records.operations import (
    AddResource,
    AuditEntry,
    ChangeResourceRow,
    DropResource,
    MoveWebhook,
    PutMember,
    ReadResources,
    ResourcePage,
    Result,
)
from auth_worker.storage import schema
from auth_worker.storage.audit_table import noting_place, place_of_deleted
from auth_worker.storage.key_table import holds_entry
from protocol.wire.messages import (
    LimitSettings,
    Member,
    PriceSettings,
    Resource,
    ResourceKind,
    ResourceSettings,
    TeamSettings,
    UserSettings,
    WebhookSettings,
    WebhookState,
)

Change = tuple[Result, AuditEntry | None]
"""What became of an operation, and what the audit log should say; None when nothing changed."""


class _Spec(NamedTuple):
    """Where resources of a kind are kept.

    Attributes:
        settings: Their fields are columns of the same name.
    """

    table: Table
    id_column: Column[Any]
    settings: type[ResourceSettings]


_LIMITS: Final = _Spec(schema.limits, schema.limits.c.limit_id, LimitSettings)
_SPECS: Final[dict[ResourceKind, _Spec]] = {
    "user": _Spec(schema.users, schema.users.c.user_id, UserSettings),
    "team": _Spec(schema.teams, schema.teams.c.team_id, TeamSettings),
    "limit": _LIMITS,
    "budget": _LIMITS,
    "price": _Spec(schema.prices, schema.prices.c.price_id, PriceSettings),
    "webhook": _Spec(schema.webhooks, schema.webhooks.c.webhook_id, WebhookSettings),
}
_JSON_LISTS: Final = frozenset({"tags", "allowed_models", "endpoints", "thresholds", "events"})
_NEVER_NULL: Final[dict[str, Any]] = {"tags": (), "thresholds": (), "metadata": {}}
"""What says nothing when it is empty; an empty list of the others lets nothing through."""

_PRICED: Final = (
    *("models", "prompt", "cached_prompt", "completion", "reasoning", "embedding", "request"),
)
_members = schema.team_members.c


class ResourceTable:
    """The tables of resources within one transaction.

    Args:
        connection: In the transaction.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, operation: AddResource) -> Change:
        """Insert a resource, or a version of a price."""
        spec, resource = _SPECS[operation.kind], operation.resource
        values = _values(resource.settings) | {
            spec.id_column.name: resource.resource_id,
            "created_at": resource.created_at,
            "created_by": resource.created_by,
        }
        if isinstance(resource.settings, PriceSettings):
            del values["valid_from"]
            values |= {
                "version": resource.version,
                "is_ended": resource.is_ended,
                "valid_from_ms": begin_of(
                    resource.settings.valid_from or resource.created_at, operation.audit.at_ms
                ),
            }
        if operation.kind == "webhook":
            # It is told of what comes from now on.
            newest = select(func.coalesce(func.max(schema.audit_log.c.seq), 0))
            values["after_seq"] = self._connection.execute(newest).scalar_one()
            state = WebhookState(after_seq=values["after_seq"])
            resource = structs.replace(resource, webhook=state)
        self._connection.execute(insert(spec.table).values(values))
        return ResourcePage((resource,)), operation.audit

    def move_webhook(self, operation: MoveWebhook) -> None:
        """Note how a webhook fares; nothing when it is gone."""
        same_id = schema.webhooks.c.webhook_id == operation.webhook_id
        statement = update(schema.webhooks).where(same_id).values(**operation.values)
        self._connection.execute(statement)

    def change(self, operation: ChangeResourceRow) -> Change:
        """Change some columns; nothing when they say so already."""
        spec = _SPECS[operation.kind]
        row = self._row(spec, operation.resource_id)
        if row is None:
            return _missing(operation.kind, operation.resource_id), None
        if operation.kind == "price":
            return self._next_version(row, operation.values, operation.audit)
        values = {name: _stored(name, value) for name, value in operation.values.items()}
        entry = None
        if any(getattr(row, name) != value for name, value in values.items()):
            same_id = spec.id_column == operation.resource_id
            self._connection.execute(update(spec.table).where(same_id).values(values))
            entry = operation.audit
        return self._one(operation.kind, operation.resource_id), entry

    def drop(self, operation: DropResource) -> Change:
        """Delete a resource with what hangs on it; the answer is what it was."""
        kind, resource_id = operation.kind, operation.resource_id
        spec = _SPECS[kind]
        row = self._row(spec, resource_id)
        if row is None:
            return _missing(kind, resource_id), None
        if kind == "price":
            return self._next_version(row, {"is_ended": True}, operation.audit)
        was = self._one(kind, resource_id)
        self._connection.execute(delete(spec.table).where(spec.id_column == resource_id))
        if kind == "user" or kind == "team":
            self._drop_with_it(kind, resource_id, operation.at)
        return was, noting_place(operation.audit, row.seq)

    def drop_limits_of_key(self, key_id: str) -> None:
        """A key is gone, and so are its limits and those of its end users."""
        columns = schema.limits.c
        of_key = columns.holder.in_(("key", "end_user")) & (columns.holder_id == key_id)
        self._connection.execute(delete(schema.limits).where(of_key))

    def put_member(self, operation: PutMember) -> Change:
        """Make, change or end a membership; the answer is the team."""
        is_it = (_members.team_id == operation.team_id) & (_members.user_id == operation.user_id)
        known = self._connection.execute(select(_members.role).where(is_it)).scalar_one_or_none()
        entry = None if known == operation.role else operation.audit
        if operation.role is None:
            self._connection.execute(delete(schema.team_members).where(is_it))
        elif known is None:
            self._connection.execute(
                insert(schema.team_members).values(
                    team_id=operation.team_id,
                    user_id=operation.user_id,
                    role=operation.role,
                    added_at=operation.at,
                )
            )
        else:
            values = {"role": operation.role}
            self._connection.execute(update(schema.team_members).where(is_it).values(values))
        return self._one("team", operation.team_id), entry

    def page(self, operation: ReadResources) -> Result:
        """The resource of an id (a price with all versions), or a page, newest first."""
        kind = operation.kind
        spec = _SPECS[kind]
        if operation.resource_id:
            if self._row(spec, operation.resource_id) is None:
                return _missing(kind, operation.resource_id)
            return self._one(kind, operation.resource_id)
        columns = spec.table.c
        newest_first = (
            select(spec.table)
            .where(*_conditions(operation))
            .order_by(columns.seq.desc())
            .limit(operation.limit + 1)
        )
        if operation.after_id:
            place = self._place(kind, operation.after_id)
            if place is None:
                return _missing(kind, operation.after_id, param="after")
            newest_first = newest_first.where(columns.seq < place)
        rows = self._connection.execute(newest_first).all()
        return ResourcePage(
            self._resources(kind, rows[: operation.limit]), has_more=len(rows) > operation.limit
        )

    def _place(self, kind: ResourceKind, resource_id: str) -> int | None:
        """Where in the list a resource stands, or stood before it was deleted."""
        row = self._row(_SPECS[kind], resource_id)
        if row is None:
            return place_of_deleted(self._connection, f"{kind}_deleted", resource_id)
        return cast(int, row.seq)

    def all_users(self) -> tuple[StoredUser, ...]:
        """Every user as the authority knows it; likewise the next three."""
        rows = self._connection.execute(select(schema.users).order_by(schema.users.c.seq))
        return tuple(user_of(_resource("user", row)) for row in rows)

    def all_teams(self) -> tuple[StoredTeam, ...]:
        """With their members."""
        members: dict[str, list[Member]] = {}
        for row in self._connection.execute(select(schema.team_members)):
            members.setdefault(row.team_id, []).append(_member(row))
        return tuple(
            team_of(_resource("team", row, members=members.get(row.team_id, ())))
            for row in self._connection.execute(select(schema.teams))
        )

    def all_limits(self) -> tuple[Limit, ...]:
        """Budgets among them."""
        rows = self._connection.execute(select(schema.limits).order_by(schema.limits.c.seq))
        return tuple(
            limit_of(
                row.limit_id,
                LimitSettings(**_read(_LIMITS, row)),
                row.counts_since or row.created_at,
            )
            for row in rows
        )

    def all_webhooks(self) -> tuple[StoredWebhook, ...]:
        """With their secrets."""
        rows = self._connection.execute(select(schema.webhooks).order_by(schema.webhooks.c.seq))
        return tuple(
            StoredWebhook(
                webhook_id=row.webhook_id,
                url=row.url,
                events=tuple(json.loads(row.events)),
                secret=row.secret,
                suspended_at=row.suspended_at,
                after_seq=row.after_seq,
                num_failed=row.num_failed,
                next_attempt_ms=row.next_attempt_ms,
            )
            for row in rows
        )

    def all_prices(self) -> tuple[Price, ...]:
        """All versions."""
        rows = self._connection.execute(select(schema.prices).order_by(schema.prices.c.seq))
        return tuple(
            price_of(
                row.price_id,
                row.version,
                _price_settings(row),
                valid_from_ms=row.valid_from_ms,
                is_ended=row.is_ended,
            )
            for row in rows
        )

    def _next_version(self, row: Row[Any], values: Mapping[str, Any], entry: AuditEntry) -> Change:
        """Add a version of a price, which is the one valid at its begin but for these values.

        Args:
            row: Of the newest version, which may begin later.
            values: What is named; `valid_from` in Unix seconds.
            entry: When it is said, and by whom.
        """
        at = entry.at_ms // 1000
        begins_ms = begin_of(values.get("valid_from") or 0, entry.at_ms)
        new = {name: value for name, value in values.items() if name != "valid_from"}
        before = self._version_at(row, begins_ms)
        if row.valid_from_ms > begins_ms and not new.get("is_ended"):
            lost = [
                name
                for name in _PRICED
                if name not in new and getattr(row, name) != getattr(before, name)
            ]
            if lost:
                return _before_announced(row, lost), None
        same = {name: value for name, value in before._mapping.items() if name != "seq"}
        version = {
            **same,
            "is_ended": False,
            **new,
            "version": row.version + 1,
            "valid_from_ms": begins_ms,
            "created_at": at,
            "created_by": entry.actor_key_id,
        }
        self._connection.execute(insert(schema.prices).values(version))
        return self._one("price", row.price_id), entry

    def _version_at(self, row: Row[Any], at_ms: int) -> Row[Any]:
        """The version of a price that is in force at a moment; the newest where none is."""
        columns = schema.prices.c
        of_moment = (
            select(schema.prices)
            .where(columns.price_id == row.price_id, columns.valid_from_ms <= at_ms)
            .order_by(columns.version.desc())
            .limit(1)
        )
        found = self._connection.execute(of_moment).one_or_none()
        return row if found is None or found.is_ended else found

    def _drop_with_it(self, kind: ResourceKind, resource_id: str, at: int) -> None:
        owner = schema.keys.c.user_id if kind == "user" else schema.keys.c.team_id
        of_it = (owner == resource_id) & schema.keys.c.revoked_at.is_(None)
        self._connection.execute(update(schema.keys).where(of_it).values(revoked_at=at))
        member = _members.user_id if kind == "user" else _members.team_id
        self._connection.execute(delete(schema.team_members).where(member == resource_id))
        columns = schema.limits.c
        of_holder = columns.holder.in_((kind, "end_user")) & (columns.holder_id == resource_id)
        self._connection.execute(delete(schema.limits).where(of_holder))

    def _row(self, spec: _Spec, resource_id: str) -> Row[Any] | None:
        newest = spec.table.c.seq.desc()  # of a price's versions
        wanted = select(spec.table).where(spec.id_column == resource_id).order_by(newest).limit(1)
        return self._connection.execute(wanted).one_or_none()

    def _one(self, kind: ResourceKind, resource_id: str) -> ResourcePage:
        """A resource that is there, whole."""
        spec = _SPECS[kind]
        wanted = (
            select(spec.table)
            .where(spec.id_column == resource_id)
            .order_by(spec.table.c.seq.desc())
        )
        rows = self._connection.execute(wanted).all()
        if kind == "team":
            of_team = select(schema.team_members).where(_members.team_id == resource_id)
            in_order = of_team.order_by(_members.added_at, _members.user_id)
            members = [_member(row) for row in self._connection.execute(in_order)]
            return ResourcePage((_resource(kind, rows[0], members=members),))
        return ResourcePage(self._resources(kind, rows))

    def _resources(self, kind: ResourceKind, rows: Iterable[Row[Any]]) -> tuple[Resource, ...]:
        rows = list(rows)
        if kind != "user":
            return tuple(_resource(kind, row) for row in rows)
        of_users = _members.user_id.in_([row.user_id for row in rows])
        teams: dict[str, list[str]] = {}
        wanted = select(schema.team_members).where(of_users).order_by(_members.added_at)
        for row in self._connection.execute(wanted):
            teams.setdefault(row.user_id, []).append(row.team_id)
        return tuple(
            _resource(kind, row, team_ids=tuple(teams.get(row.user_id, ()))) for row in rows
        )


def _conditions(operation: ReadResources) -> list[ColumnElement[bool]]:
    kind = operation.kind
    columns = _SPECS[kind].table.c
    conditions: list[ColumnElement[bool]] = []
    if kind == "user" or kind == "team":
        if operation.status:
            is_active = columns.suspended_at.is_(None)
            conditions.append(is_active if operation.status == "active" else ~is_active)
        if operation.tag:
            conditions.append(holds_entry(columns.tags, _json(operation.tag)))
        if operation.member:
            own, other = ("user_id", "team_id") if kind == "user" else ("team_id", "user_id")
            fits = schema.team_members.c[other] == operation.member
            ids = select(schema.team_members.c[own]).where(fits)
            conditions.append(_SPECS[kind].id_column.in_(ids))
    elif kind == "price":
        newest = schema.prices.alias()
        version = select(func.max(newest.c.version)).where(newest.c.price_id == columns.price_id)
        conditions.append(columns.version == version.scalar_subquery())
    elif kind == "webhook":
        if operation.status:
            is_active = columns.suspended_at.is_(None)
            conditions.append(is_active if operation.status == "active" else ~is_active)
    else:
        is_budget = columns.measure == "money"
        conditions.append(is_budget if kind == "budget" else ~is_budget)
        if operation.holder:
            conditions.append(columns.holder == operation.holder)
        if operation.holder_id:
            conditions.append(columns.holder_id == operation.holder_id)
    return conditions


def _resource(
    kind: ResourceKind,
    row: Row[Any],
    *,
    members: Iterable[Member] = (),
    team_ids: tuple[str, ...] = (),
) -> Resource:
    spec = _SPECS[kind]
    has_status = kind in ("user", "team", "webhook")
    return Resource(
        resource_id=getattr(row, spec.id_column.name),
        settings=_price_settings(row) if kind == "price" else spec.settings(**_read(spec, row)),
        created_at=row.created_at,
        created_by=row.created_by,
        suspended_at=row.suspended_at if has_status else None,
        version=row.version if kind == "price" else 0,
        is_ended=row.is_ended if kind == "price" else False,
        members=tuple(members),
        team_ids=team_ids,
        webhook=_webhook_state(row) if kind == "webhook" else None,
    )


def _webhook_state(row: Row[Any]) -> WebhookState:
    return WebhookState(
        after_seq=row.after_seq,
        num_failed=row.num_failed,
        last_delivered_at=row.last_delivered_at,
        last_error=row.last_error,
    )


def _price_settings(row: Row[Any]) -> PriceSettings:
    names = [name for name in PriceSettings.__struct_fields__ if name != "valid_from"]
    fields = {name: getattr(row, name) for name in names}
    return PriceSettings(valid_from=row.valid_from_ms // 1000, **fields)


def _read(spec: _Spec, row: Row[Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in spec.settings.__struct_fields__:
        if name == "secret":
            continue  # shown to nobody once it is stored
        value = getattr(row, name)
        if _is_json(name):
            value = _NEVER_NULL.get(name) if value is None else json.loads(value)
            value = tuple(value) if isinstance(value, list) else value
        fields[name] = value
    return fields


def _values(settings: ResourceSettings) -> dict[str, Any]:
    """Settings by column."""
    return {
        name: _stored(name, getattr(settings, name)) for name in type(settings).__struct_fields__
    }


def _stored(name: str, value: Any) -> Any:
    """A setting as its column holds it."""
    if isinstance(value, str) or not _is_json(name):
        return value  # the `models` of a price are one text
    return None if value is None or value == _NEVER_NULL.get(name) else _json(value)


def _is_json(name: str) -> bool:
    return name in _JSON_LISTS or name in ("metadata", "models")


def _json(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _member(row: Row[Any]) -> Member:
    return Member(user_id=row.user_id, role=row.role, added_at=row.added_at)


def _before_announced(row: Row[Any], lost: Sequence[str]) -> InvalidCommandError:
    begins_s = min(row.valid_from_ms // 1000, LAST_SECOND)  # of an older release, perhaps
    begins = datetime.fromtimestamp(begins_s, UTC).isoformat(timespec="seconds")
    return InvalidCommandError(
        f"Version {row.version} of this price begins on {begins}, and a change that begins before"
        f" takes its place. Say {' and '.join(lost)} as well, or let the change begin then"
        f" (valid_from {row.valid_from_ms // 1000}).",
        param="valid_from",
    )


def _missing(kind: ResourceKind, resource_id: str, param: str = "id") -> ResourceNotFoundError:
    return ResourceNotFoundError(f"There is no {kind} '{resource_id[:100]}'.", param=param)
