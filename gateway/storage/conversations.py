"""Conversations in SQL: items in order, and one writer at a time."""

import itertools
from collections.abc import Sequence
from typing import Any, Final

from gateway.errors import (
    ConversationLockedError,
    InvalidRequestError,
    StoredNotFoundError,
)
from gateway.storage.database import Connection
from gateway.storage.records import (
    Bounds,
    Conversation,
    ConversationItem,
    ItemPage,
    StoredResponse,
    is_id,
)
from gateway.storage.responses import count, make_room
from gateway.storage.same_items import is_same, renamed

MAX_ITEMS: Final = 10_000
MAX_GONE: Final = 100
"""Items that were deleted last and whose places are kept, as many as the longest page has."""
OWNER_DEAD_MS: Final = 15_000
"""A gateway that didn't say for so long that it lives has no work any more."""
_NOT_LOCKED: Final = """(writer IS NULL OR writer = ? OR NOT (
    EXISTS (SELECT 1 FROM jobs WHERE jobs.response_id = conversations.writer)
    OR EXISTS (SELECT 1 FROM owners
        WHERE owners.id = conversations.writer_owner AND owners.alive_ms >= ?)))"""


def create(
    connection: Connection,
    tenant: str,
    conversation: Conversation,
    items: Sequence[ConversationItem],
    bounds: Bounds,
    now_ms: int,
) -> Conversation:
    """Begin a conversation; one that was begun before, by its id, is as it is.

    Raises:
        StoredNotFoundError: It is another tenant's.
    """
    if not connection.execute(
        "INSERT INTO conversations (id, tenant, created_ms, used_ms, num_bytes, metadata,"
        " next_position) VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (id) DO NOTHING RETURNING id",
        (
            conversation.id,
            tenant,
            conversation.created_ms,
            now_ms,
            len(conversation.metadata),
            conversation.metadata,
        ),
    ):
        return existing(connection, tenant, conversation.id)
    count(connection, tenant, 1, len(conversation.metadata))
    append(connection, tenant, conversation.id, items, bounds, now_ms)
    return conversation


def find(connection: Connection, tenant: str, conversation_id: str) -> Conversation | None:
    """A conversation of this tenant."""
    rows = connection.execute(
        "SELECT id, created_ms, metadata FROM conversations WHERE id = ? AND tenant = ?",
        (conversation_id, tenant),
    )
    return Conversation(*rows[0]) if rows else None


def existing(connection: Connection, tenant: str, conversation_id: str) -> Conversation:
    """The same.

    Raises:
        StoredNotFoundError: There is none.
    """
    found = find(connection, tenant, conversation_id)
    if found is None:
        raise StoredNotFoundError("conversation", conversation_id)
    return found


def set_metadata(
    connection: Connection, tenant: str, conversation_id: str, metadata: bytes, now_ms: int
) -> Conversation:
    """Replace the labels.

    Raises:
        StoredNotFoundError: There is no such conversation.
    """
    before = existing(connection, tenant, conversation_id)
    _grow(connection, tenant, conversation_id, len(metadata) - len(before.metadata), now_ms)
    connection.execute(
        "UPDATE conversations SET metadata = ? WHERE id = ?", (metadata, conversation_id)
    )
    return Conversation(before.id, before.created_ms, metadata)


def append(
    connection: Connection,
    tenant: str,
    conversation_id: str,
    items: Sequence[ConversationItem],
    bounds: Bounds,
    now_ms: int,
    *,
    writer: str = "",
) -> list[ConversationItem]:
    """Add items behind all others; an item that is in it already stays where it is.

    One of another id is another item, and so is one that says something else under the same id:
    that is kept under an id of its own.

    Args:
        connection: In a transaction.
        tenant: Whose it is.
        conversation_id: Of the conversation.
        items: To be added.
        bounds: Of the store.
        now_ms: Unix milliseconds.
        writer: The response that may write while it holds the conversation. What it has come to was
            computed and paid for: it is kept, whatever there is already.

    Returns:
        The items as they are kept, also those that were there.

    Raises:
        StoredNotFoundError: There is no such conversation.
        ConversationLockedError: A response is being made in it.
        InvalidRequestError: It would have too many items, or be too large.
    """
    rows = connection.execute(
        "UPDATE conversations SET used_ms = ? WHERE id = ? AND tenant = ? AND"  # noqa: S608
        f" {_NOT_LOCKED} RETURNING next_position",
        (now_ms, conversation_id, tenant, writer, now_ms - OWNER_DEAD_MS),
    )
    if not rows:
        existing(connection, tenant, conversation_id)
        raise ConversationLockedError(conversation_id)
    position, num_bytes = rows[0][0], 0
    kept: list[ConversationItem] = []
    for item in items:
        one, is_new = _keep(connection, conversation_id, position, item)
        kept.append(one)
        if is_new:
            position += 1
            num_bytes += len(one.body)
    connection.execute(
        "UPDATE conversations SET next_position = ? WHERE id = ?", (position, conversation_id)
    )
    total = _grow(connection, tenant, conversation_id, num_bytes, now_ms)
    if not writer:
        num_items = connection.execute(
            "SELECT COUNT(*) FROM items WHERE conversation_id = ?", (conversation_id,)
        )[0][0]
        check_room(conversation_id, num_items, total if items else 0, bounds)
    make_room(connection, tenant, bounds, keep=conversation_id)
    return kept


def check_room(conversation_id: str, num_items: int, num_bytes: int, bounds: Bounds) -> None:
    """Refuse what would make a conversation have so many items and bytes.

    Raises:
        InvalidRequestError: It is too much.
    """
    if num_bytes > bounds.max_context_bytes:
        raise InvalidRequestError(
            f"The conversation `{conversation_id}` would have {num_bytes} bytes, and"
            f" {bounds.max_context_bytes} are kept (PENSTOCK_STORE_MAX_CONTEXT_BYTES); delete items"
            " or begin another one.",
            param="conversation",
        )
    if num_items > MAX_ITEMS:
        raise InvalidRequestError(
            f"The conversation `{conversation_id}` would have {num_items} items, and {MAX_ITEMS}"
            " are kept; delete some or begin another one.",
            param="conversation",
        )


def _keep(
    connection: Connection, conversation_id: str, position: int, item: ConversationItem
) -> tuple[ConversationItem, bool]:
    """An item as it is kept, and whether it is new."""
    if _insert(connection, conversation_id, position, item):
        return item, True
    rows = connection.execute(
        "SELECT id, body FROM items WHERE conversation_id = ? AND id = ?",
        (conversation_id, item.id),
    )
    known = ConversationItem(*rows[0])
    if is_same(known.body, item.body):
        return known, False
    others = (renamed(item, number) for number in itertools.count(position))
    inserted = (one for one in others if _insert(connection, conversation_id, position, one))
    return next(inserted), True


def _insert(
    connection: Connection, conversation_id: str, position: int, item: ConversationItem
) -> bool:
    """Whether an item's id was free."""
    return bool(
        connection.execute(
            "INSERT INTO items VALUES (?, ?, ?, ?) ON CONFLICT (conversation_id, id) DO NOTHING"
            " RETURNING position",
            (conversation_id, position, item.id, item.body),
        )
    )


def begin_turn(
    connection: Connection,
    tenant: str,
    conversation_id: str,
    response_id: str,
    owner: str,
    bounds: Bounds,
    now_ms: int,
) -> list[bytes]:
    """Let a response write, and nobody else until it has ended; all items, oldest first.

    Raises:
        StoredNotFoundError: There is no such conversation.
        ConversationLockedError: Another response is being made in it.
        InvalidRequestError: It has grown too large to be read, or has no room for an answer.
    """
    rows = connection.execute(
        "UPDATE conversations SET writer = ?, writer_owner = ?, used_ms = ?"  # noqa: S608
        f" WHERE id = ? AND tenant = ? AND {_NOT_LOCKED} RETURNING id",
        (
            *(response_id, owner, now_ms, conversation_id, tenant),
            *(response_id, now_ms - OWNER_DEAD_MS),
        ),
    )
    if not rows:
        existing(connection, tenant, conversation_id)
        raise ConversationLockedError(conversation_id)
    items = read(connection, tenant, conversation_id, bounds)
    # An answer is at least one item more.
    check_room(conversation_id, len(items) + 1, 0, bounds)
    return items


def read(connection: Connection, tenant: str, conversation_id: str, bounds: Bounds) -> list[bytes]:
    """All items, oldest first.

    Raises:
        StoredNotFoundError: There is no such conversation.
        InvalidRequestError: It has grown too large to be read.
    """
    rows = connection.execute(
        "SELECT num_bytes FROM conversations WHERE id = ? AND tenant = ?",
        (conversation_id, tenant),
    )
    if not rows:
        raise StoredNotFoundError("conversation", conversation_id)
    if rows[0][0] > bounds.max_context_bytes:
        raise InvalidRequestError(
            f"Invalid `conversation`: it has {rows[0][0]} bytes, and {bounds.max_context_bytes} are"
            " read (PENSTOCK_STORE_MAX_CONTEXT_BYTES); delete items or begin another one.",
            param="conversation",
        )
    items = connection.execute(
        "SELECT body FROM items WHERE conversation_id = ? ORDER BY position", (conversation_id,)
    )
    return [row[0] for row in items]


def end_turn(connection: Connection, conversation_id: str, response_id: str) -> None:
    """Let others write again; idempotent."""
    connection.execute(
        "UPDATE conversations SET writer = NULL, writer_owner = NULL WHERE id = ? AND writer = ?",
        (conversation_id, response_id),
    )


def close_turn(
    connection: Connection,
    tenant: str,
    response: StoredResponse,
    items: Sequence[ConversationItem],
    bounds: Bounds,
    now_ms: int,
) -> None:
    """A response has ended: its conversation, if it has one, gets the items and is free again.

    Raises:
        StoredNotFoundError: The conversation was deleted meanwhile.
        ConversationLockedError: It isn't this response's to write any more.
    """
    if response.conversation_id is None:
        return
    where = response.conversation_id
    if items:
        append(connection, tenant, where, items, bounds, now_ms, writer=response.id)
    end_turn(connection, where, response.id)


def page(
    connection: Connection,
    tenant: str,
    conversation_id: str,
    *,
    after: str,
    limit: int,
    is_ascending: bool,
) -> ItemPage:
    """Some items, behind one of them, which may have been deleted lately.

    Raises:
        StoredNotFoundError: There is no such conversation, or no such item to go on from.
    """
    existing(connection, tenant, conversation_id)
    condition, values = "", [conversation_id]
    bound: list[Any] = []
    if after:
        condition = f" AND position {'>' if is_ascending else '<'} ?"
        bound = [_place_of(connection, conversation_id, after)]
    order = "ASC" if is_ascending else "DESC"
    found = connection.execute(
        f"SELECT id, body FROM items WHERE conversation_id = ?{condition}"  # noqa: S608
        f" ORDER BY position {order} LIMIT ?",
        (*values, *bound, limit + 1),
    )
    items = tuple(ConversationItem(*row) for row in found[:limit])
    return ItemPage(items, len(found) > limit)


def _place_of(connection: Connection, conversation_id: str, item_id: str) -> int:
    """The position of an item, be it gone.

    Raises:
        StoredNotFoundError: None of this id is known.
    """
    for table in ("items", "gone_items") if is_id(item_id) else ():
        rows = connection.execute(
            f"SELECT position FROM {table} WHERE conversation_id = ? AND id = ?",  # noqa: S608
            (conversation_id, item_id),
        )
        if rows:
            position: int = rows[0][0]
            return position
    raise StoredNotFoundError("item", item_id, param="after")


def item(
    connection: Connection, tenant: str, conversation_id: str, item_id: str
) -> ConversationItem:
    """One item.

    Raises:
        StoredNotFoundError: There is no such conversation, or no such item in it.
    """
    existing(connection, tenant, conversation_id)
    rows = connection.execute(
        "SELECT id, body FROM items WHERE conversation_id = ? AND id = ?",
        (conversation_id, item_id),
    )
    if not rows:
        raise StoredNotFoundError("item", item_id)
    return ConversationItem(*rows[0])


def remove_item(
    connection: Connection, tenant: str, conversation_id: str, item_id: str, now_ms: int
) -> Conversation:
    """Drop one item; the conversation without it.

    Raises:
        StoredNotFoundError: There is no such conversation, or no such item in it.
        ConversationLockedError: A response is being made in it.
    """
    found = existing(connection, tenant, conversation_id)
    rows = connection.execute(
        "DELETE FROM items WHERE conversation_id = ? AND id = ? AND EXISTS"  # noqa: S608
        f" (SELECT 1 FROM conversations WHERE id = ? AND {_NOT_LOCKED})"
        " RETURNING LENGTH(body), position",
        (conversation_id, item_id, conversation_id, "", now_ms - OWNER_DEAD_MS),
    )
    if not rows:
        item(connection, tenant, conversation_id, item_id)
        raise ConversationLockedError(conversation_id)
    ((num_bytes, position),) = rows
    _grow(connection, tenant, conversation_id, -num_bytes, now_ms)
    connection.execute(
        "INSERT INTO gone_items VALUES (?, ?, ?, ?) ON CONFLICT (conversation_id, id) DO UPDATE"
        " SET position = excluded.position, gone_ms = excluded.gone_ms",
        (conversation_id, item_id, position, now_ms),
    )
    connection.execute(
        "DELETE FROM gone_items WHERE conversation_id = ? AND id NOT IN (SELECT id FROM gone_items"
        " WHERE conversation_id = ? ORDER BY gone_ms DESC LIMIT ?)",
        (conversation_id, conversation_id, MAX_GONE),
    )
    return found


def _grow(
    connection: Connection, tenant: str, conversation_id: str, num_bytes: int, now_ms: int
) -> int:
    """A conversation is so much larger; how large it is then."""
    rows = connection.execute(
        "UPDATE conversations SET num_bytes = num_bytes + ?, used_ms = ? WHERE id = ?"
        " RETURNING num_bytes",
        (num_bytes, now_ms, conversation_id),
    )
    count(connection, tenant, 0, num_bytes)
    total: int = rows[0][0]
    return total
