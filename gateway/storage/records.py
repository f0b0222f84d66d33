"""What the store keeps and what it answers: plain records, JSON as bytes."""

import re
from dataclasses import dataclass
from typing import Final

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,160}")
OVER: Final = frozenset(("completed", "incomplete", "failed", "cancelled"))
"""Statuses of a response that has ended."""
CONTINUABLE: Final = frozenset(("completed", "incomplete"))


def is_id(text: str) -> bool:
    """Whether a text can be the id of anything stored."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as it is kept.

    Attributes:
        id: `resp_…`.
        status: As in `body`.
        previous_id: The response that it goes on from; None where there is none.
        conversation_id: Of the conversation that it belongs to; None where there is none.
        created_ms: Unix milliseconds.
        body: The response object, JSON.
        input: Its own input items, a JSON array.
        output: Its output items, a JSON array; also in `body`.
    """

    id: str
    status: str
    previous_id: str | None
    conversation_id: str | None
    created_ms: int
    body: bytes
    input: bytes
    output: bytes

    @property
    def num_bytes(self) -> int:
        """What it counts for."""
        return len(self.body) + len(self.input) + len(self.output)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation without its items.

    Attributes:
        metadata: A JSON object.
    """

    id: str
    created_ms: int
    metadata: bytes


@dataclass(frozen=True, slots=True)
class ConversationItem:
    """One item, with its id outside of its JSON, too."""

    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ItemPage:
    """Some items of a conversation, in the order that was asked for."""

    items: tuple[ConversationItem, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Job:
    """A response that is made in the background.

    Attributes:
        request: What is asked for, as `gateway.http` wrote it down.
        takes: How often it was begun and not put back, this time included.
        leases: Of earlier takes, oldest first; all is booked on the first one.
        created_ms: Unix milliseconds.
        num_events: How many events were told already.
        is_read: Whether somebody may have read events: they can't be taken back any more.
        model: Whose output they tell; empty where they tell none.
    """

    response_id: str
    tenant: str
    request: bytes
    takes: int
    leases: tuple[str, ...]
    created_ms: int
    num_events: int
    is_read: bool
    model: str


@dataclass(frozen=True, slots=True)
class EventPiece:
    """Events of a background response that were told together.

    Attributes:
        first: The sequence number of the first one.
        last: Of the last one.
        body: A JSON array of the events.
    """

    first: int
    last: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept.

    Attributes:
        max_stored: Responses and conversations of one tenant.
        max_tenant_bytes: Bytes of one tenant.
        max_bytes: Bytes of all tenants.
        max_age_s: Since the last use.
        max_queued: Background responses of one tenant that have not ended.
        max_context_bytes: Items that one request may draw from the store.
        max_replays: Answers of one tenant that are kept under an `Idempotency-Key`.
        max_replay_bytes: Their bytes, of all tenants.
        replay_age_s: Since their requests were begun.
    """

    max_stored: int = 100_000
    max_tenant_bytes: int = 1024**3
    max_bytes: int = 8 * 1024**3
    max_age_s: float = 30 * 86_400.0
    max_queued: int = 1000
    max_context_bytes: int = 16 * 1024**2
    max_replays: int = 10_000
    max_replay_bytes: int = 256 * 1024**2
    replay_age_s: float = 86_400.0
