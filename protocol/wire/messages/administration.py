"""Messages about keys and the audit log, from administrators (since 1.3).

`create_key`, `list_keys`, `revoke_key` and `keys` of `access.py` are what gateways of before send.
"""

from typing import Literal

import msgspec

from protocol.wire.messages.base import Message, Part

PrincipalRole = Literal["admin", "service", "user", "readonly"]
KeyStatus = Literal["active", "suspended", "expired", "revoked"]
KeyClosure = Literal["", "user", "team", "membership"]
KeyAction = Literal["suspend", "reactivate", "revoke", "delete"]
PriorityClass = Literal["high", "normal", "low"]
AuditOutcome = Literal["done", "refused"]
UserKind = Literal["person", "service_account"]
MemberRole = Literal["owner", "member"]


class KeySettings(Part, frozen=True):
    """Everything about a key that an administrator sets and may change without a new secret.

    Attributes:
        owner: Whose key it is, a user id as free text.
        scopes: What it may do of what its role may; None = all of that.
        tenant: Empty = the key is a tenant of its own.
        expires_at: Unix seconds; None = never.
        metadata: Texts that mean nothing to Penstock.
        requests_per_minute: None = no limit, as with every limit; 0 lets nothing through.
        tokens_per_minute: Prompt and completion together.
        max_parallel_requests: Open leases at a time.
        max_tokens_per_request: Completion tokens of one request, all choices together.
        allowed_models: Globs of public names; None = every model, empty = none.
        allowed_endpoints: Globs of route templates; None = every route, empty = none.
        allowed_ip_addresses: Addresses and CIDR networks; None = from everywhere.
        blocked_ip_addresses: The same; they win.
        enable_streaming: May ask for `stream`.
        enable_function_calling: May offer tools to a model, and run this server's.
        priority: Where its requests stand in the queue.
        user_id: The user whose key it is, as far as this server knows users (since 1.4, as the
            next two); empty = nobody's in particular.
        team_id: The team for whose work it is; empty = no team's.
        may_name_end_users: Whether it is trusted to say which end user a request is for.
    """

    name: str
    description: str = ""
    owner: str = ""
    role: PrincipalRole = "user"
    scopes: tuple[str, ...] | None = None
    tenant: str = ""
    expires_at: int | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_parallel_requests: int | None = None
    max_tokens_per_request: int | None = None
    allowed_models: tuple[str, ...] | None = None
    allowed_endpoints: tuple[str, ...] | None = None
    allowed_ip_addresses: tuple[str, ...] | None = None
    blocked_ip_addresses: tuple[str, ...] = ()
    enable_streaming: bool = True
    enable_function_calling: bool = True
    priority: PriorityClass = "normal"
    user_id: str = ""
    team_id: str = ""
    may_name_end_users: bool = False


class KeyDetails(Part, frozen=True):
    """A key as people may see it; never the key. Times are Unix seconds.

    Attributes:
        hint: First and last characters, `psk-ab…wxyz`.
        tenant_id: The tenant that its requests belong to: the named one, or the key's own id.
        created_by: The id of the key that made it; empty when the server did.
        previous_until: Until when the secret of before the last rotation still works.
        total_cost_micros: By the prices of their time (since 1.4).
        closed_by: What keeps it from opening anything, whatever its own status (since 1.5): its
            user or team is suspended, or the user is no member any more.
    """

    key_id: str
    hint: str
    status: KeyStatus
    settings: KeySettings
    tenant_id: str
    created_at: int
    created_by: str = ""
    suspended_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None
    last_rotated_at: int | None = None
    last_rotated_by: str = ""
    previous_until: int | None = None
    total_requests: int = 0
    total_prompt_tokens: int = 0
    total_completion_tokens: int = 0
    total_cost_micros: int = 0
    closed_by: KeyClosure = ""


class Actor(Part, frozen=True):
    """Who asks, for the audit log; the auth worker looks again whether that key may.

    Attributes:
        key_digest: Of what was presented (since 1.4): whoever a token names may have others that
            are good for more. None is of a gateway that doesn't say.
    """

    key_id: str
    address: str = ""
    key_digest: bytes | None = None


class MakeKey(Message, frozen=True, tag="make_key"):
    """Store a new key by its digest; the gateway made the key and shows it once."""

    request_id: str
    actor: Actor
    key_digest: bytes
    hint: str
    settings: KeySettings


class UpdateKey(Message, frozen=True, tag="update_key"):
    """Change a key.

    Attributes:
        fields: Names of `KeySettings` that change; a name at its default clears.
        settings: Their new values; what isn't named in `fields` is not looked at.
        action: What becomes of the key in the same step (since 1.5): both is done, or nothing.
    """

    request_id: str
    actor: Actor
    key_id: str
    fields: tuple[str, ...]
    settings: KeySettings
    action: Literal["", "suspend", "reactivate", "revoke"] = ""


class RotateKey(Message, frozen=True, tag="rotate_key"):
    """Give a key a new secret.

    Attributes:
        overlap_s: How long the old secret still works.
    """

    request_id: str
    actor: Actor
    key_id: str
    key_digest: bytes
    hint: str
    overlap_s: int = 0


class ChangeKeyStatus(Message, frozen=True, tag="change_key_status"):
    """Suspend, reactivate, revoke or delete a key; the answer to `delete` is what was deleted."""

    request_id: str
    actor: Actor
    key_id: str
    action: KeyAction


class FindKeys(Message, frozen=True, tag="find_keys"):
    """The key of an id, or a page of those that fit, newest first.

    Attributes:
        key_id: That key alone; not found is a failure.
        role: Empty = any, as with the next five.
        user_id: Since 1.4, as the next.
        after_key_id: The last id of the page before.
    """

    request_id: str
    actor: Actor
    key_id: str = ""
    role: PrincipalRole | Literal[""] = ""
    status: KeyStatus | Literal[""] = ""
    owner: str = ""
    tag: str = ""
    user_id: str = ""
    team_id: str = ""
    after_key_id: str = ""
    limit: int = 100


class KeysFound(Message, frozen=True, tag="keys_found"):
    """The answer to every command on keys: the keys concerned."""

    request_id: str
    keys: tuple[KeyDetails, ...]
    has_more: bool = False


class CountKeys(Message, frozen=True, tag="count_keys"):
    """How many keys of which kind there are, and how much they are used."""

    request_id: str
    actor: Actor


class KeysCounted(Message, frozen=True, tag="keys_counted"):
    """The answer to `CountKeys`.

    Attributes:
        by_role: Number of keys of each role.
        by_status: The same of each status.
        histograms: Of last use, age, expiry, requests and tokens: bucket → number of keys.
        num_audit_entries: Lines of the audit log.
        num_closed: Of the active keys, those that open nothing because of their user or team (since
            1.5).
    """

    request_id: str
    num_keys: int
    by_role: dict[str, int]
    by_status: dict[str, int]
    histograms: dict[str, dict[str, int]]
    total_requests: int
    total_prompt_tokens: int
    total_completion_tokens: int
    num_audit_entries: int
    num_closed: int = 0


class AuditRecord(Part, frozen=True):
    """One line of the audit log, with its place in the chain of hashes.

    Attributes:
        at_ms: Unix milliseconds.
        actor: Id of the key that acted; empty for the server itself, and for unknown callers.
        subject: What was acted on: a key's id, or the route that was refused.
        detail: Canonical JSON.
        request_id: Of the request; empty for the server's own entries.
    """

    seq: int
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: str
    previous_hash: bytes
    hash: bytes
    outcome: str = ""
    address: str = ""
    request_id: str = ""


class ReadAudit(Message, frozen=True, tag="read_audit"):
    """A page of the audit log.

    Attributes:
        key_id: Only what that key did, or what was done to it; empty = any, as with the next.
        since_ms: Unix milliseconds, inclusive; None = from the beginning.
        until_ms: Exclusive.
        after_seq: The last number of the page before; None = the first page.
        oldest_first: Otherwise newest first.
        actors: One of these (since 1.5, as the next two); empty = any.
        actions: Likewise.
        subjects: What something was done to.
    """

    request_id: str
    reader: Actor
    key_id: str = ""
    actor: str = ""
    action: str = ""
    outcome: AuditOutcome | Literal[""] = ""
    since_ms: int | None = None
    until_ms: int | None = None
    after_seq: int | None = None
    oldest_first: bool = False
    limit: int = 100
    actors: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()


class AuditPage(Message, frozen=True, tag="audit_page"):
    """The answer to `ReadAudit`."""

    request_id: str
    entries: tuple[AuditRecord, ...]
    has_more: bool = False


class ClaimAnswer(Message, frozen=True, tag="claim_answer"):
    """Begin an administrator's request that must be done once, whoever repeats it.

    Attributes:
        name: A digest of the actor's id, the route and the client's `Idempotency-Key`.
        fingerprint: A digest of the body.
    """

    request_id: str
    actor: Actor
    name: bytes
    fingerprint: bytes


class AnswerClaimed(Message, frozen=True, tag="answer_claimed"):
    """The answer to `ClaimAnswer`.

    Attributes:
        state: `new`: it is to be done now, and nobody else will be told so; `running`: it was begun
            before, and its outcome isn't known; `kept`: it was done; `other`: the name came with
            another body.
        answer: What was kept, as it was given.
        seal_key: Of an actor without a secret of its own, who comes with another bearer token each
            time: what to seal its answers with, which isn't in the database (since 1.5); empty for
            keys, which are sealed with what was presented.
        age_s: For how long it has been `running` (since 1.5); None from older auth workers.
    """

    request_id: str
    state: Literal["new", "running", "kept", "other"]
    answer: bytes = b""
    seal_key: bytes = b""
    age_s: float | None = None


class KeepAnswer(Message, frozen=True, tag="keep_answer"):
    """What came of a request that was claimed.

    Attributes:
        answer: Sealed by the gateway; empty when nothing came of it, so that it may begin again.
    """

    request_id: str
    actor: Actor
    name: bytes
    answer: bytes = b""


class AnswerKept(Message, frozen=True, tag="answer_kept"):
    """The answer to `KeepAnswer`: it is durable."""

    request_id: str
