"""What the authority wants written or read: plain values between the I/O thread and the store.

What each request makes is a named tuple: it costs half of a frozen dataclass and is a row as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from auth_worker.errors import AuthError
from auth_worker.keys import StoredKey
from protocol.wire.messages import KeyRecord

Outcome = Literal["finished", "aborted", "failed", "expired", "unused"]
"""How a lease ended. `expired` is provisional: a settlement that comes late corrects it. `unused`
was a grant that nobody waited for: it counts in no total and in no window, and its line in the
ledger is there so that whatever else is told of that lease changes nothing."""

AuditAction = Literal[
    "epoch_started", "key_created", "key_revoked", "admin_key_changed", "admin_access_denied"
]


class LeaseRow(NamedTuple):
    """An open lease as the database remembers it, in the order of its columns."""

    lease_id: str
    request_id: str
    key_id: str
    model: str
    granted_at_ms: int
    prompt_tokens: int
    completion_tokens: int
    reported_prompt_tokens: int
    reported_completion_tokens: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit log; never holds a key or a prompt."""

    at_ms: int
    actor_key_id: str
    action: AuditAction
    subject: str
    detail: Mapping[str, str | int | None] = field(default_factory=dict)


class SaveLease(NamedTuple):
    """Remember a lease, or what changed about it."""

    row: LeaseRow


class BookUsage(NamedTuple):
    """Charge a lease and forget it; the ledger takes the first final booking of a lease id.

    The fields stand in the order of the ledger's columns.

    Attributes:
        granted_at_ms: None when the lease was not remembered.
        settled_at_ms: Unix milliseconds.
    """

    lease_id: str
    request_id: str
    key_id: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    outcome: Outcome
    granted_at_ms: int | None
    settled_at_ms: int


@dataclass(frozen=True, slots=True)
class TouchKey:
    """A key was used, at Unix seconds."""

    key_id: str
    used_at: int


@dataclass(frozen=True, slots=True)
class AddKey:
    """Store a new key; the same key once more is answered as the first time."""

    key: StoredKey
    audit: AuditEntry


@dataclass(frozen=True, slots=True)
class PutKey:
    """Store a key in place of the one of its id, if there is one."""

    key: StoredKey
    audit: AuditEntry


@dataclass(frozen=True, slots=True)
class EndKey:
    """Mark a key as revoked at Unix seconds; one that is so already stays as it is."""

    key_id: str
    revoked_at: int
    audit: AuditEntry


@dataclass(frozen=True, slots=True)
class AppendAudit:
    """Append to the audit log."""

    entry: AuditEntry


@dataclass(frozen=True, slots=True)
class Flush:
    """Changes nothing: its result says that every operation before it is durable."""


@dataclass(frozen=True, slots=True)
class ReadKeys:
    """A page of keys, newest first, as of every operation before it."""

    after_key_id: str
    limit: int


Operation = (
    SaveLease | BookUsage | TouchKey | AddKey | PutKey | EndKey | AppendAudit | ReadKeys | Flush
)


@dataclass(frozen=True, slots=True)
class KeyPage:
    """The answer to an operation on keys."""

    records: tuple[KeyRecord, ...]
    has_more: bool = False


Result = KeyPage | AuthError | None
"""What became of an operation, once it is durable; an AuthError when it was refused."""


@dataclass(frozen=True, slots=True)
class RecentUse:
    """A settled lease young enough to count in a window; times in Unix milliseconds."""

    key_id: str
    granted_at_ms: int | None
    settled_at_ms: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an authority starts from."""

    keys: tuple[StoredKey, ...]
    leases: tuple[LeaseRow, ...]
    recent: tuple[RecentUse, ...]
