"""Background responses in SQL: queued, taken by one gateway at a time, ended once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from gateway.errors import DeniedError, InvalidRequestError, StoredNotFoundError
from gateway.storage import conversations, responses
from gateway.storage.conversations import OWNER_DEAD_MS
from gateway.storage.database import Connection
from gateway.storage.records import (
    OVER,
    Bounds,
    ConversationItem,
    EventPiece,
    Job,
    StoredResponse,
)
from protocol.errors import ErrorCode

_AT_ONCE_MS: Final = 0
"""When a job is due that nobody has put off, whatever clocks say."""
_LONGEST_WAIT_MS: Final = 60_000
"""So long a job may be put off; then whoever takes it looks again."""
_BACK_OFF_S: Final = 5.0
_DEAD_OWNERS_MS: Final = 86_400_000


class Cancellation(NamedTuple):
    """What a response is after it was cancelled.

    Attributes:
        body: The response object.
        event: The event that says so, with the number that it was asked for.
    """

    body: bytes
    event: bytes


CancelMaker = Callable[[StoredResponse, int], Cancellation]
"""Makes it of what the response was, and of the number of its next event."""


def enqueue(
    connection: Connection,
    tenant: str,
    response: StoredResponse,
    request: bytes,
    events: EventPiece,
    bounds: Bounds,
    now_ms: int,
) -> None:
    """Keep a response that is to be made.

    Raises:
        DeniedError: The tenant has too many waiting, or what waits has too many bytes: nothing of
            that can be dropped.
    """
    num_queued, held = connection.execute(
        "SELECT COUNT(*), COALESCE(SUM(LENGTH(jobs.request) + responses.num_bytes), 0)"
        " FROM jobs JOIN responses ON responses.id = jobs.response_id WHERE jobs.tenant = ?",
        (tenant,),
    )[0]
    if num_queued >= bounds.max_queued:
        raise _too_much(
            f"{num_queued} background responses of yours have not ended, and {bounds.max_queued}"
            " may (PENSTOCK_STORE_MAX_QUEUED)"
        )
    num_bytes = held + len(request) + response.num_bytes
    if num_queued and num_bytes > bounds.max_tenant_bytes:
        raise _too_much(
            "With this one the background responses of yours that have not ended would have"
            f" {num_bytes} bytes, and {bounds.max_tenant_bytes} may"
            " (PENSTOCK_STORE_MAX_TENANT_BYTES)"
        )
    responses.insert(connection, tenant, response, now_ms)
    connection.execute(
        "INSERT INTO jobs VALUES (?, ?, NULL, ?, ?, 0, '', ?)",
        (response.id, tenant, response.created_ms, _AT_ONCE_MS, request),
    )
    connection.execute("INSERT INTO event_logs VALUES (?, 0, '')", (response.id,))
    _insert_events(connection, tenant, response.id, events)
    responses.make_room(connection, tenant, bounds, keep=response.id)


def beat(connection: Connection, owner: str, now_ms: int) -> set[str]:
    """A gateway lives; the responses that are still its own to make."""
    connection.execute(
        "INSERT INTO owners VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET"
        " alive_ms = excluded.alive_ms",
        (owner, now_ms),
    )
    connection.execute("DELETE FROM owners WHERE alive_ms < ?", (now_ms - _DEAD_OWNERS_MS,))
    # One of times to come has said so by a clock that was ahead: it may be gone long before.
    connection.execute(
        "UPDATE owners SET alive_ms = ? WHERE alive_ms > ?", (now_ms, now_ms + OWNER_DEAD_MS)
    )
    rows = connection.execute("SELECT response_id FROM jobs WHERE owner = ?", (owner,))
    return {row[0] for row in rows}


def forget_owners(connection: Connection) -> None:
    """No other gateway uses this store: whoever held something is gone."""
    connection.execute("DELETE FROM owners")


def claim(connection: Connection, owner: str, now_ms: int) -> Job | None:
    """The next job, now of this gateway: of the tenant with the fewest running, the oldest.

    One that it has already is none, however long the store has not heard of it: `beat` names it.
    One that is due later than anybody may put it off was put off by a clock that was ahead.
    """
    farthest_ms = now_ms + _LONGEST_WAIT_MS + OWNER_DEAD_MS
    rows = connection.execute(
        "UPDATE jobs SET owner = ?, takes = takes + 1 WHERE response_id = ("
        " SELECT response_id FROM jobs AS waiting WHERE (due_ms <= ? OR due_ms > ?)"
        " AND (owner IS NULL OR"
        "  owner <> ? AND NOT EXISTS"
        "  (SELECT 1 FROM owners WHERE owners.id = waiting.owner AND alive_ms >= ?))"
        " ORDER BY (SELECT COUNT(*) FROM jobs AS running WHERE running.tenant = waiting.tenant AND"
        "  running.owner IS NOT NULL), created_ms, response_id LIMIT 1)"
        " AND (owner IS NULL OR"
        "  NOT EXISTS (SELECT 1 FROM owners WHERE owners.id = jobs.owner AND alive_ms >= ?))"
        " RETURNING response_id, tenant, request, takes, leases, created_ms",
        (owner, now_ms, farthest_ms, owner, now_ms - OWNER_DEAD_MS, now_ms - OWNER_DEAD_MS),
    )
    if not rows:
        return None
    response_id, tenant, request, takes, leases, created_ms = rows[0]
    logs = connection.execute(
        "SELECT is_read, model FROM event_logs WHERE response_id = ?", (response_id,)
    )
    # An older gateway has queued one without a log: nobody knows who has read it.
    is_read, model = logs[0] if logs else (1, "")
    return Job(
        response_id=response_id,
        tenant=tenant,
        request=request,
        takes=takes,
        leases=tuple(leases.split()),
        created_ms=created_ms,
        num_events=_num_events(connection, response_id),
        is_read=bool(is_read),
        model=model,
    )


def due_at(now_ms: int, wait_s: float) -> int:
    """When a job is due that is put off for so many seconds now."""
    return now_ms + min(int(wait_s * 1000), _LONGEST_WAIT_MS) if wait_s else _AT_ONCE_MS


def release(
    connection: Connection,
    owner: str,
    response_id: str,
    due_ms: int,
    leases: tuple[str, ...] | None,
) -> None:
    """Put a job back: another gateway, or a later time, may make it. It was no fault of its own."""
    if leases is not None:
        note_leases(connection, owner, response_id, leases)
    connection.execute(
        "UPDATE jobs SET owner = NULL, due_ms = ?, takes = takes - 1"
        " WHERE response_id = ? AND owner = ?",
        (due_ms, response_id, owner),
    )


def note_leases(
    connection: Connection,
    owner: str,
    response_id: str,
    leases: tuple[str, ...],
    request: bytes | None = None,
) -> bool:
    """What a job is computed on; False when the job isn't this gateway's any more.

    Args:
        connection: In a transaction.
        owner: Of the job.
        response_id: Of the job.
        leases: Oldest first.
        request: What is asked for from now on; None when that hasn't changed.
    """
    return bool(
        connection.execute(
            "UPDATE jobs SET leases = ?, request = COALESCE(?, request)"
            " WHERE response_id = ? AND owner = ? RETURNING takes",
            (" ".join(leases), request, response_id, owner),
        )
    )


def note_events(
    connection: Connection,
    owner: str,
    response_id: str,
    events: EventPiece,
    running: StoredResponse | None,
    model: str | None,
    now_ms: int,
) -> bool:
    """More events of a job; False when it isn't this gateway's any more.

    Args:
        connection: In a transaction.
        owner: Of the job.
        response_id: Of the job.
        events: Behind all others.
        running: What the response now says of itself; None when that hasn't changed.
        model: Whose output they tell; None when that hasn't changed.
        now_ms: Unix milliseconds.
    """
    tenant = _tenant_of(connection, owner, response_id)
    if tenant is None:
        return False
    _insert_events(connection, tenant, response_id, events)
    if running is not None:
        responses.update(connection, tenant, running, now_ms)
    if model is not None:
        connection.execute(
            "UPDATE event_logs SET model = ? WHERE response_id = ?", (model, response_id)
        )
    return True


def take_back_events(connection: Connection, owner: str, response_id: str) -> bool:
    """Drop all events but those of a response that waits; False when somebody has read some.

    It is False, too, when the job isn't this gateway's any more.
    """
    tenant = _tenant_of(connection, owner, response_id)
    # This holds back whoever wants to read the events, until they are gone.
    if tenant is None or not connection.execute(
        "UPDATE event_logs SET model = '' WHERE response_id = ? AND is_read = 0 RETURNING model",
        (response_id,),
    ):
        return False
    dropped = connection.execute(
        "DELETE FROM events WHERE response_id = ? AND first > 0 RETURNING LENGTH(body)",
        (response_id,),
    )
    responses.count(connection, tenant, 0, -sum(row[0] for row in dropped))
    return True


def finish(
    connection: Connection,
    owner: str,
    response: StoredResponse,
    events: EventPiece | None,
    items: Sequence[ConversationItem],
    bounds: Bounds,
    now_ms: int,
) -> bool:
    """End a job; False when it isn't this gateway's any more, and nothing has changed.

    Args:
        connection: In a transaction.
        owner: Of the job.
        response: As it ended.
        events: The last ones.
        items: What its conversation gets of it.
        bounds: Of the store.
        now_ms: Unix milliseconds.
    """
    tenant = _tenant_of(connection, owner, response.id)
    if tenant is None:
        return False
    responses.end_job(connection, response.id)
    responses.update(connection, tenant, response, now_ms)
    if events is not None:
        _insert_events(connection, tenant, response.id, events)
    conversations.close_turn(connection, tenant, response, items, bounds, now_ms)
    responses.make_room(connection, tenant, bounds, keep=response.id)
    return True


def cancel(
    connection: Connection, tenant: str, response_id: str, make: CancelMaker, now_ms: int
) -> StoredResponse:
    """End a job here and now, whoever makes it; one that has ended stays as it is.

    Raises:
        StoredNotFoundError: There is no such response.
        InvalidRequestError: It was not made in the background.
    """
    response = responses.find(connection, tenant, response_id)
    if response is None:
        raise StoredNotFoundError("response", response_id)
    number = _num_events(connection, response_id)
    if not number:
        raise InvalidRequestError(
            f"The response `{response_id}` was not made in the background, so it can't be"
            " cancelled: it ended with its request."
        )
    if response.status in OVER:
        return response
    responses.end_job(connection, response_id)
    connection.execute(
        "UPDATE conversations SET writer = NULL, writer_owner = NULL WHERE writer = ?",
        (response_id,),
    )
    made = make(response, number)
    cancelled = StoredResponse(
        response.id,
        "cancelled",
        response.previous_id,
        response.conversation_id,
        response.created_ms,
        made.body,
        response.input,
        b"[]",
    )
    responses.update(connection, tenant, cancelled, now_ms)
    _insert_events(connection, tenant, response_id, EventPiece(number, number, made.event))
    return cancelled


def note_spent(
    connection: Connection, tenant: str, response_id: str, make: CancelMaker, now_ms: int
) -> None:
    """Say what was spent on a cancelled response; others stay as they are.

    Args:
        connection: In a transaction.
        tenant: Whose it is.
        response_id: Of the response.
        make: Makes it of the response and of the number of the event that says its end.
        now_ms: Unix milliseconds.
    """
    response = responses.find(connection, tenant, response_id)
    if response is None or response.status != "cancelled":
        return
    number = _num_events(connection, response_id) - 1
    made = make(response, number)
    responses.update(connection, tenant, replace(response, body=made.body), now_ms)
    before = connection.execute(
        "SELECT LENGTH(body) FROM events WHERE response_id = ? AND first = ?",
        (response_id, number),
    )
    connection.execute(
        "UPDATE events SET body = ? WHERE response_id = ? AND first = ?",
        (made.event, response_id, number),
    )
    if before:
        responses.count(connection, tenant, 0, len(made.event) - before[0][0])


def events_after(
    connection: Connection, tenant: str, response_id: str, number: int, limit: int
) -> tuple[list[EventPiece], str]:
    """Pieces with events behind a number, and the status of the response then.

    From then on its events can't be taken back.

    Raises:
        StoredNotFoundError: There is no such response.
    """
    rows = connection.execute(
        "SELECT status FROM responses WHERE id = ? AND tenant = ?", (response_id, tenant)
    )
    if not rows:
        raise StoredNotFoundError("response", response_id)
    if connection.execute(
        "SELECT 1 FROM event_logs WHERE response_id = ? AND is_read = 0", (response_id,)
    ):
        connection.execute(
            "UPDATE event_logs SET is_read = 1 WHERE response_id = ?", (response_id,)
        )
    return told(connection, response_id, number, limit), rows[0][0]


def told(connection: Connection, response_id: str, number: int, limit: int) -> list[EventPiece]:
    """Pieces with events behind a number, for whoever makes the response."""
    pieces = connection.execute(
        "SELECT first, last, body FROM events WHERE response_id = ? AND last > ?"
        " ORDER BY first LIMIT ?",
        (response_id, number, limit),
    )
    return [EventPiece(*piece) for piece in pieces]


def _too_much(why: str) -> DeniedError:
    return DeniedError(
        f"{why}; please try again when some have.",
        code=ErrorCode.RATE_LIMIT_EXCEEDED,
        retry_after_s=_BACK_OFF_S,
    )


def _tenant_of(connection: Connection, owner: str, response_id: str) -> str | None:
    rows = connection.execute(
        "SELECT tenant FROM jobs WHERE response_id = ? AND owner = ?", (response_id, owner)
    )
    return rows[0][0] if rows else None


def _num_events(connection: Connection, response_id: str) -> int:
    rows = connection.execute(
        "SELECT MAX(last) + 1 FROM events WHERE response_id = ?", (response_id,)
    )
    return rows[0][0] or 0


def _insert_events(
    connection: Connection, tenant: str, response_id: str, events: EventPiece
) -> None:
    connection.execute(
        "INSERT INTO events VALUES (?, ?, ?, ?)",
        (response_id, events.first, events.last, events.body),
    )
    responses.count(connection, tenant, 0, len(events.body))
