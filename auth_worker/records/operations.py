"""What the authority wants written or read: plain values between the I/O thread and the store.

What each request makes is a named tuple, which costs half of a frozen dataclass and is a row as it
is, or a struct, which costs half of a named tuple.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from auth_worker.errors import AuthError
from auth_worker.principals.keys import StoredKey
from auth_worker.principals.limit_rules import Limit
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.prices import Price
from auth_worker.principals.webhooks import StoredWebhook
from auth_worker.records.limit_usage import Booked, CounterRow, DropCounters, SaveCounter
from protocol.wire.messages import (
    AuditOutcome,
    AuditRecord,
    KeyDetails,
    KeySettings,
    MemberRole,
    Resource,
    ResourceKind,
    UsageBucket,
    UsageGroup,
    UsageRow,
)

Outcome = Literal["finished", "aborted", "failed", "expired", "unused"]
"""How a lease ended. `expired` is provisional: a settlement that comes late corrects it. `unused`
was a grant that nobody waited for: it counts in no total and in no window, and its line in the
ledger is there so that whatever else is told of that lease changes nothing."""

AuditAction = Literal[
    "epoch_started",
    "key_created",
    "key_updated",
    "key_suspended",
    "key_reactivated",
    "key_rotated",
    "key_revoked",
    "key_deleted",
    "admin_key_changed",
    "user_created",
    "user_updated",
    "user_suspended",
    "user_reactivated",
    "user_deleted",
    "team_created",
    "team_updated",
    "team_suspended",
    "team_reactivated",
    "team_deleted",
    "member_set",
    "member_removed",
    "limit_created",
    "limit_updated",
    "limit_deleted",
    "budget_created",
    "budget_updated",
    "budget_raised",
    "budget_deleted",
    "limit_warned",
    "limit_exceeded",
    "budget_warned",
    "budget_exceeded",
    "price_created",
    "price_updated",
    "price_deleted",
    "engine_profiled",
    "webhook_created",
    "webhook_updated",
    "webhook_suspended",
    "webhook_reactivated",
    "webhook_deleted",
    "webhook_gave_up",
    "worker_drained",
    "caches_cleared",
    "token_accepted",
    "request_refused",
    "change_refused",
    "audit_cut",
    "money_settled",
    "ledger_folded",
]
"""`admin_access_denied`, of releases before this table had outcomes, may stand there as well."""


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
    endpoint: str = ""
    end_user: str = ""
    user_id: str = ""
    team_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit log; never holds a key or a prompt.

    Attributes:
        actor_key_id: Empty for the server itself, and for unknown callers.
        detail: What JSON can say.
        address: The client's, as far as there was one.
        request_id: Empty when no request was behind it.
    """

    at_ms: int
    actor_key_id: str
    action: AuditAction
    subject: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    outcome: AuditOutcome = "done"
    address: str = ""
    request_id: str = ""


class SaveLease(Struct, frozen=True):
    """Remember a lease, or what changed about it."""

    row: LeaseRow


class BookUsage(NamedTuple):
    """Charge a lease and forget it; the ledger takes the first final booking of a lease id.

    The fields stand in the order of the ledger's columns.

    Attributes:
        granted_at_ms: None when the lease was not remembered and its id doesn't say it either.
        settled_at_ms: Unix milliseconds.
        user_id: Of the key when it was granted, as is `team_id`; empty without one.
        end_user: As a trusted key named it; otherwise empty.
        endpoint: The route template.
        cost_micros: By the price of `price_id` and `price_version`; 0 without one.
        charges: The counters of limits that it counts in; see `charge_text`.
        audit_seq: The entry of the audit log that covers it, as the store says; 0 for none.
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
    user_id: str = ""
    team_id: str = ""
    end_user: str = ""
    endpoint: str = ""
    cost_micros: int = 0
    price_id: str = ""
    price_version: int = 0
    charges: str = ""
    audit_seq: int = 0


@dataclass(frozen=True, slots=True)
class TouchKey:
    """A key was used, at Unix seconds."""

    key_id: str
    used_at: int


@dataclass(frozen=True, slots=True)
class AddKey:
    """Store a new key; the same key once more is answered as the first time.

    Attributes:
        settings: All of it; None = what the key itself says, and defaults.
    """

    key: StoredKey
    audit: AuditEntry
    settings: KeySettings | None = None
    created_by: str = ""


@dataclass(frozen=True, slots=True)
class PutKey:
    """Store a key in place of the one of its id, if there is one."""

    key: StoredKey
    audit: AuditEntry


@dataclass(frozen=True, slots=True)
class ChangeKey:
    """Change the row of a key; a row that is so already is left as it is, and nothing is recorded.

    Attributes:
        values: By column.
    """

    key_id: str
    values: Mapping[str, Any]
    audit: AuditEntry


@dataclass(frozen=True, slots=True)
class DropKey:
    """Forget a key; what it used stays in the ledger under its id."""

    key_id: str
    audit: AuditEntry


@dataclass(frozen=True, slots=True)
class AddResource:
    """Store a new user, team, limit or budget, or the next version of a price."""

    kind: ResourceKind
    resource: Resource
    audit: AuditEntry


@dataclass(frozen=True, slots=True)
class ChangeResourceRow:
    """Change the row of a resource; one that is so already is left, and nothing is recorded.

    Attributes:
        values: By name of a setting, as they are said; and since when a limit counts by another
            window, as `counts_since`.
    """

    kind: ResourceKind
    resource_id: str
    values: Mapping[str, Any]
    audit: AuditEntry


@dataclass(frozen=True, slots=True)
class MoveWebhook:
    """How a webhook fares, by column; nobody's deed, so it is not put on record."""

    webhook_id: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DropResource:
    """Forget a user, team, limit or budget.

    With a user or team go its memberships and its limits, and its keys are revoked; so do the
    limits of its end users. What was used stays in the ledger, under its id.

    Attributes:
        at: Unix seconds.
    """

    kind: ResourceKind
    resource_id: str
    at: int
    audit: AuditEntry


@dataclass(frozen=True, slots=True)
class PutMember:
    """Make a user a member of a team, or with a role of None no member any more.

    Attributes:
        at: Unix seconds.
    """

    team_id: str
    user_id: str
    role: MemberRole | None
    at: int
    audit: AuditEntry


@dataclass(frozen=True, slots=True)
class AppendAudit:
    """Append to the audit log."""

    entry: AuditEntry


@dataclass(frozen=True, slots=True)
class Flush:
    """Changes nothing: its result says that every operation before it is durable."""


@dataclass(frozen=True, slots=True)
class FoldLedger:
    """Let ledger rows of before a Unix millisecond go into sums by hour, so many at a time."""

    before_ms: int
    limit: int


@dataclass(frozen=True, slots=True)
class CutAudit:
    """Let the oldest entries of the audit log go, up to one of that millisecond or later."""

    before_ms: int
    limit: int


@dataclass(frozen=True, slots=True)
class SignAudit:
    """Sign which entry is the last, if it isn't signed yet."""


@dataclass(frozen=True, slots=True)
class ClaimAnswerRow:
    """Begin a request of an administrator, unless it was begun before; at Unix milliseconds."""

    name: bytes
    owner: str
    fingerprint: bytes
    at_ms: int


@dataclass(frozen=True, slots=True)
class KeepAnswerRow:
    """What came of such a request; empty forgets it."""

    name: bytes
    owner: str
    answer: bytes


@dataclass(frozen=True, slots=True)
class ClaimedAnswer:
    """The answer to `ClaimAnswerRow`; see `AnswerClaimed`."""

    state: Literal["new", "running", "kept", "other"]
    answer: bytes = b""
    age_ms: int = 0


@dataclass(frozen=True, slots=True)
class ReadKeys:
    """A page of keys, newest first, as of every operation before it; empty texts mean any."""

    after_key_id: str
    limit: int
    key_id: str = ""
    role: str = ""
    status: str = ""
    owner: str = ""
    tag: str = ""
    user_id: str = ""
    team_id: str = ""


@dataclass(frozen=True, slots=True)
class CountKeyRows:
    """How many keys of which kind there are."""


@dataclass(frozen=True, slots=True)
class ReadAuditRows:
    """A page of the audit log; see `ReadAudit`."""

    limit: int
    key_id: str = ""
    actor: str = ""
    action: str = ""
    outcome: str = ""
    since_ms: int | None = None
    until_ms: int | None = None
    after_seq: int | None = None
    oldest_first: bool = False
    actors: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    but_for: str = ""
    """An action that is left out, oldest first; see `AuditRows.through_seq`."""


@dataclass(frozen=True, slots=True)
class ReadResources:
    """A resource, or a page of them, newest first; see `FindResources`."""

    kind: ResourceKind
    limit: int
    resource_id: str = ""
    status: str = ""
    tag: str = ""
    member: str = ""
    holder: str = ""
    holder_id: str = ""
    after_id: str = ""


@dataclass(frozen=True, slots=True)
class ReadUsageRows:
    """Sums of what was used; see `ReadUsage`. Empty texts mean any.

    Those of minutes aren't read with a group; see `LedgerDesk`.
    """

    since_s: int
    until_s: int
    limit: int
    bucket: UsageBucket = ""
    group_by: tuple[UsageGroup, ...] = ()
    key_id: str = ""
    user_id: str = ""
    team_id: str = ""
    end_user: str = ""
    model: str = ""
    skip: int = 0


@dataclass(frozen=True, slots=True)
class AddSums:
    """Add to the totals what these sums are made of, so that they can be read beside the writer."""

    wanted: ReadUsageRows | ReadKeys | CountKeyRows


Beside = ReadUsageRows | ReadAuditRows | ReadKeys | CountKeyRows
"""What may look through many rows, and is read beside the writer."""

Reading = ReadKeys | CountKeyRows | ReadAuditRows | ReadResources | ReadUsageRows
"""What is read after everything else of its group was written."""

Operation = (
    SaveLease
    | BookUsage
    | SaveCounter
    | DropCounters
    | TouchKey
    | AddKey
    | PutKey
    | ChangeKey
    | DropKey
    | MoveWebhook
    | AddResource
    | ChangeResourceRow
    | DropResource
    | PutMember
    | AppendAudit
    | FoldLedger
    | CutAudit
    | SignAudit
    | ClaimAnswerRow
    | KeepAnswerRow
    | Reading
    | AddSums
    | Flush
)


@dataclass(frozen=True, slots=True)
class KeyPage:
    """The answer to an operation on keys."""

    records: tuple[KeyDetails, ...]
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """The answer to `CountKeyRows`; see `KeysCounted`."""

    num_keys: int
    by_role: dict[str, int]
    by_status: dict[str, int]
    histograms: dict[str, dict[str, int]]
    total_requests: int
    total_prompt_tokens: int
    total_completion_tokens: int
    num_audit_entries: int
    num_closed: int


@dataclass(frozen=True, slots=True)
class AuditRows:
    """The answer to `ReadAuditRows`.

    Attributes:
        through_seq: Where an action is left out: nothing that fits is missing up to here.
    """

    entries: tuple[AuditRecord, ...]
    has_more: bool
    through_seq: int = 0


@dataclass(frozen=True, slots=True)
class ResourcePage:
    """The answer to an operation on resources: those concerned."""

    resources: tuple[Resource, ...]
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class Removed:
    """The answer to `FoldLedger` and `CutAudit`: how many rows went."""

    num_rows: int


@dataclass(frozen=True, slots=True)
class UsagePage:
    """The answer to `ReadUsageRows`."""

    rows: tuple[UsageRow, ...]
    has_more: bool = False


Result = (
    Removed
    | KeyPage
    | KeyCounts
    | AuditRows
    | Booked
    | ResourcePage
    | UsagePage
    | ClaimedAnswer
    | AuthError
    | None
)
"""What became of an operation, once it is durable; an AuthError when it was refused."""


@dataclass(frozen=True, slots=True)
class RecentUse:
    """A settled lease young enough to count in a window of a minute; times in Unix milliseconds.

    Attributes:
        lease_id: Empty where it has only expired, so that more may be told of it.
    """

    key_id: str
    granted_at_ms: int | None
    settled_at_ms: int
    prompt_tokens: int
    completion_tokens: int
    model: str = ""
    endpoint: str = ""
    user_id: str = ""
    team_id: str = ""
    end_user: str = ""
    cost_micros: int = 0
    lease_id: str = ""

    @property
    def num_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an authority starts from."""

    keys: tuple[StoredKey, ...]
    leases: tuple[LeaseRow, ...]
    recent: tuple[RecentUse, ...]
    users: tuple[StoredUser, ...] = ()
    teams: tuple[StoredTeam, ...] = ()
    limits: tuple[Limit, ...] = ()
    prices: tuple[Price, ...] = ()
    counters: tuple[CounterRow, ...] = ()
    webhooks: tuple[StoredWebhook, ...] = ()
