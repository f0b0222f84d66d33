"""Responses in SQL: kept, found, followed back, dropped when a tenant keeps too much."""

from typing import Final

from gateway.errors import InvalidRequestError, PreviousResponseNotFoundError
from gateway.storage.database import Connection
from gateway.storage.records import CONTINUABLE, Bounds, StoredResponse
from gateway.storage.sweeping import MAX_DROPPED

MAX_TURNS: Final = 10_000
_TOUCH_AFTER_MS: Final = 3_600_000
"""What is used again within the hour isn't written again for it."""
_SCRIPT: Final = -1
"""Its number among the events of a response: before all of them, so that it is none."""
_COLUMNS: Final = "id, status, previous_id, conversation_id, created_ms, body, input, output"
_CHAIN: Final = """WITH RECURSIVE chain (id, previous_id, num_bytes, depth) AS (
    SELECT id, previous_id, num_bytes, 1 FROM responses WHERE id = ? AND tenant = ?
    UNION ALL
    SELECT older.id, older.previous_id, older.num_bytes, chain.depth + 1
    FROM chain JOIN responses AS older ON older.id = chain.previous_id
    WHERE older.tenant = ? AND chain.depth <= ?)
    SELECT id, previous_id, num_bytes FROM chain ORDER BY depth"""


def count(connection: Connection, tenant: str, num_stored: int, num_bytes: int) -> None:
    """A tenant keeps more, or less."""
    connection.execute(
        "INSERT INTO tenants VALUES (?, ?, ?) ON CONFLICT (tenant) DO UPDATE SET"
        " num_stored = tenants.num_stored + excluded.num_stored,"
        " num_bytes = tenants.num_bytes + excluded.num_bytes",
        (tenant, num_stored, num_bytes),
    )


def insert(connection: Connection, tenant: str, response: StoredResponse, now_ms: int) -> None:
    """Keep a response that is new."""
    connection.execute(
        f"INSERT INTO responses ({_COLUMNS}, tenant, used_ms, num_bytes)"  # noqa: S608
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            response.id,
            response.status,
            response.previous_id,
            response.conversation_id,
            response.created_ms,
            response.body,
            response.input,
            response.output,
            tenant,
            now_ms,
            response.num_bytes,
        ),
    )
    count(connection, tenant, 1, response.num_bytes)


def insert_script(connection: Connection, tenant: str, response_id: str, script: bytes) -> None:
    """Keep how the stream of a response has told it; it goes where the response goes."""
    connection.execute(
        "INSERT INTO events VALUES (?, ?, ?, ?)", (response_id, _SCRIPT, _SCRIPT, script)
    )
    count(connection, tenant, 0, len(script))


def script(connection: Connection, tenant: str, response_id: str) -> bytes:
    """How the stream of a response has told it; empty where there is none, or no such response."""
    rows = connection.execute(
        "SELECT body FROM events WHERE response_id = ? AND first = ?"
        " AND EXISTS (SELECT 1 FROM responses WHERE id = ? AND tenant = ?)",
        (response_id, _SCRIPT, response_id, tenant),
    )
    return rows[0][0] if rows else b""


def update(connection: Connection, tenant: str, response: StoredResponse, now_ms: int) -> bool:
    """Replace what a response says of itself; False when it was deleted meanwhile."""
    before = connection.execute(
        "SELECT num_bytes FROM responses WHERE id = ? AND tenant = ?", (response.id, tenant)
    )
    if not before:
        return False
    connection.execute(
        "UPDATE responses SET status = ?, body = ?, output = ?, num_bytes = ?, used_ms = ?"
        " WHERE id = ? AND tenant = ?",
        (
            response.status,
            response.body,
            response.output,
            response.num_bytes,
            now_ms,
            response.id,
            tenant,
        ),
    )
    count(connection, tenant, 0, response.num_bytes - before[0][0])
    return True


def find(connection: Connection, tenant: str, response_id: str) -> StoredResponse | None:
    """A response of this tenant."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM responses WHERE id = ? AND tenant = ?",  # noqa: S608
        (response_id, tenant),
    )
    return StoredResponse(*rows[0]) if rows else None


def remove(connection: Connection, tenant: str, response_id: str) -> bool:
    """Drop a response, its events and what still makes it; whether it was there."""
    rows = connection.execute(
        "DELETE FROM responses WHERE id = ? AND tenant = ? RETURNING num_bytes",
        (response_id, tenant),
    )
    if not rows:
        return False
    events = connection.execute(
        "DELETE FROM events WHERE response_id = ? RETURNING LENGTH(body)", (response_id,)
    )
    end_job(connection, response_id)
    connection.execute(
        "UPDATE conversations SET writer = NULL, writer_owner = NULL WHERE writer = ?",
        (response_id,),
    )
    count(connection, tenant, -1, -rows[0][0] - sum(row[0] for row in events))
    return True


def end_job(connection: Connection, response_id: str) -> None:
    """Nobody makes a response any more; its events stay."""
    connection.execute("DELETE FROM jobs WHERE response_id = ?", (response_id,))
    connection.execute("DELETE FROM event_logs WHERE response_id = ?", (response_id,))


def chain(
    connection: Connection, tenant: str, response_id: str, bounds: Bounds, now_ms: int
) -> list[StoredResponse]:
    """A response and all that it goes on from, oldest first; they count as used.

    Raises:
        PreviousResponseNotFoundError: One of them isn't there.
        InvalidRequestError: They go in a circle, are too many or too large, or have not ended.
    """
    rows = connection.execute(_CHAIN, (response_id, tenant, tenant, MAX_TURNS))
    if not rows:
        raise PreviousResponseNotFoundError(response_id)
    ids = [row[0] for row in rows]
    if len(set(ids)) < len(ids):
        raise _wrong(f"the responses that `{response_id}` goes on from form a circle.")
    if len(rows) > MAX_TURNS:
        raise _wrong(f"it goes on from more than {MAX_TURNS} responses; compact them.")
    if rows[-1][1] is not None:
        raise PreviousResponseNotFoundError(response_id, missing=rows[-1][1])
    num_bytes = sum(row[2] for row in rows)
    if num_bytes > bounds.max_context_bytes:
        raise _wrong(
            f"what it goes on from has {num_bytes} bytes, and {bounds.max_context_bytes} are read"
            " (PENSTOCK_STORE_MAX_CONTEXT_BYTES); compact it or start a new one."
        )
    turns: list[StoredResponse] = []
    for one in reversed(ids):
        turn = find(connection, tenant, one)
        assert turn is not None, "it was there in this transaction"
        _check_turn(turn, response_id)
        turns.append(turn)
    _touch(connection, tenant, ids, now_ms)
    return turns


def make_room(connection: Connection, tenant: str, bounds: Bounds, *, keep: str = "") -> int:
    """Drop what a tenant has used longest ago until it keeps no more than it may; how much."""
    num_dropped = 0
    while num_dropped < MAX_DROPPED:
        rows = connection.execute(
            "SELECT num_stored, num_bytes FROM tenants WHERE tenant = ?", (tenant,)
        )
        if not rows or (rows[0][0] <= bounds.max_stored and rows[0][1] <= bounds.max_tenant_bytes):
            break
        if not drop_oldest(connection, tenant, keep):
            break
        num_dropped += 1
    return num_dropped


def drop_oldest(connection: Connection, tenant: str, keep: str = "") -> bool:
    """Drop the one response or conversation that was used longest ago and isn't under way."""
    found: list[tuple[int, str, str]] = []
    for table, busy in (
        ("responses", "EXISTS (SELECT 1 FROM jobs WHERE response_id = responses.id)"),
        ("conversations", "writer IS NOT NULL"),
    ):
        rows = connection.execute(
            f"SELECT used_ms, id FROM {table} WHERE tenant = ? AND id <> ?"  # noqa: S608
            f" AND NOT ({busy}) ORDER BY used_ms LIMIT 1",
            (tenant, keep),
        )
        found += [(used_ms, table, one) for used_ms, one in rows]
    if not found:
        return False
    _, table, one = min(found)
    if table == "responses":
        return remove(connection, tenant, one)
    return remove_conversation(connection, tenant, one)


def remove_conversation(connection: Connection, tenant: str, conversation_id: str) -> bool:
    """Drop a conversation with its items; its responses stay."""
    rows = connection.execute(
        "DELETE FROM conversations WHERE id = ? AND tenant = ? RETURNING num_bytes",
        (conversation_id, tenant),
    )
    if not rows:
        return False
    for table in ("items", "gone_items"):
        connection.execute(
            f"DELETE FROM {table} WHERE conversation_id = ?",  # noqa: S608
            (conversation_id,),
        )
    count(connection, tenant, -1, -rows[0][0])
    return True


def sweep(connection: Connection, bounds: Bounds, now_ms: int) -> int:
    """Drop what is too old, and what all tenants together keep too much of; how much.

    See `swept`: where it says `MAX_DROPPED` or more, there is more to drop.
    """
    too_old_ms = now_ms - int(bounds.max_age_s * 1000)
    num_dropped = 0
    for table, drop in (("responses", remove), ("conversations", remove_conversation)):
        rows = connection.execute(
            f"SELECT tenant, id FROM {table} WHERE used_ms < ? LIMIT ?",  # noqa: S608
            (too_old_ms, MAX_DROPPED),
        )
        num_dropped += sum(drop(connection, tenant, one) for tenant, one in rows)
    num_busy = 0
    while num_dropped + num_busy < MAX_DROPPED:
        rows = connection.execute(
            "SELECT tenant, (SELECT SUM(num_bytes) FROM tenants) FROM tenants"
            " ORDER BY num_bytes DESC, tenant LIMIT 1 OFFSET ?",
            (num_busy,),
        )
        if not rows or rows[0][1] <= bounds.max_bytes:
            break
        if drop_oldest(connection, rows[0][0]):
            num_dropped += 1
        else:
            num_busy += 1  # all that it keeps is under way
    connection.execute("DELETE FROM tenants WHERE num_stored = 0 AND num_bytes = 0")
    return num_dropped


def _check_turn(turn: StoredResponse, response_id: str) -> None:
    if turn.status not in CONTINUABLE:
        raise _wrong(f"the response `{turn.id}` is {turn.status}; there is nothing to go on from.")
    if turn.conversation_id is not None:
        raise _wrong(
            f"the response `{turn.id}` belongs to the conversation `{turn.conversation_id}`; go on"
            f" with `conversation` instead of `{response_id}`."
        )


def _touch(connection: Connection, tenant: str, ids: list[str], now_ms: int) -> None:
    """They are in use: what goes on from them must not outlive them."""
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        marks = ", ".join("?" * len(some))
        connection.execute(
            f"UPDATE responses SET used_ms = ? WHERE tenant = ? AND used_ms < ?"  # noqa: S608
            f" AND id IN ({marks})",
            (now_ms, tenant, now_ms - _TOUCH_AFTER_MS, *some),
        )


def _wrong(rule: str) -> InvalidRequestError:
    name = "previous_response_id"
    return InvalidRequestError(f"Invalid `{name}`: {rule}", param=name)
