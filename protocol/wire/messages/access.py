"""Messages between gateway and auth worker: authorize, adjust, settle, and the keys."""

from typing import Literal

from protocol.errors import ErrorCode
from protocol.wire.messages.base import Message, Part
from protocol.wire.messages.limits import LimitRefusal, LimitState, LimitWarning

KeyRole = Literal["user", "admin"]
"""What gateways before 1.3 know: everybody who isn't an admin counts as a user."""

Scope = Literal[
    "chat.completions",
    "completions",
    "embeddings.create",
    "decisions",
    "rerank",
    "files",
    "batches",
    "responses",
    "tokenize",
    "models.list",
    "tools.list",
    "tools.parse",
    "tools.execute",
    "hooks",
    "docs.read",
    "usage.read",
    "budget.read",
    "admin.metrics",
    "admin.keys",
    "admin.users",
    "admin.teams",
    "admin.limits",
    "admin.prices",
    "admin.audit",
    "admin.profile",
    "admin.status",
    "admin.workers",
    "admin.cache",
    "admin.webhooks",
]
"""What a route asks of its caller, and a key may be narrowed to."""


class Authorize(Message, frozen=True, tag="authorize"):
    """May this caller do this, and reserve so much for it.

    Attributes:
        key_digest: SHA-256 of the presented API key; None when none was presented.
        endpoint: The route template, `/v1/chat/completions`.
        model: The public model name; empty for routes without one.
        address: The client's address, for the audit log and address rules.
        required_role: `admin` on routes that ask for a key even where none is needed otherwise.
        scope: A `Scope`: what the route needs (since 1.3). Text, because a later gateway may know
            more of them than an auth worker, which then refuses it. Empty says nothing; such a
            request passes with keys of role user or admin that aren't narrowed.
        prompt_tokens: Upper bound (bytes of the prompt).
        completion_tokens: Upper bound for all choices together.
        is_metered: It counts as a request although it uses no tokens, such as /tokenize.
        wait_s: How long the gateway waits for the answer; what nobody waits for any more is not
            granted. 0 says nothing.
        trace_id: The client's `X-Request-ID`, for logs.
        traceparent: Where in a trace it belongs (W3C; since 1.5); empty when it isn't traced.
        asked_tokens: Completion tokens that the client asked for, all choices together, one each
            where it named no number (since 1.3, as the next two).
        is_streaming: The answer is to be streamed.
        uses_tools: Tools are offered to the model, or one is to be run.
        is_token: What was presented is a bearer token (JWT), which `key_digest` is of, and the
            gateway sends it when it is asked to (since 1.4, as the next).
        token: The token itself; only in answer to `TokenWanted`, over ipc or CURVE.
        end_user: For whom the request is, if the caller says so (since 1.4); it counts with keys
            that may name their end users.
        num_refused_guesses: Wrong keys from this address that the gateway refused by itself since
            it last told of them, because too many came (since 1.5); for the audit log.
    """

    request_id: str
    key_digest: bytes | None
    endpoint: str
    model: str = ""
    address: str = ""
    required_role: KeyRole = "user"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_metered: bool = False
    wait_s: float = 0.0
    trace_id: str = ""
    scope: str = ""
    asked_tokens: int = 0
    is_streaming: bool = False
    uses_tools: bool = False
    is_token: bool = False
    token: str = ""
    end_user: str = ""
    traceparent: str = ""
    num_refused_guesses: int = 0

    def __repr__(self) -> str:
        """Without the token, which opens doors for whoever reads it in a log."""
        return f"Authorize(request_id={self.request_id!r}, endpoint={self.endpoint!r}, …)"


class TokenWanted(Message, frozen=True, tag="token_wanted"):
    """The token of this digest isn't known: the question again, with it, please (since 1.4).

    Sent only for questions that say `is_token`.
    """

    request_id: str


class Granted(Message, frozen=True, tag="granted"):
    """Yes, under this lease. Routes that generate nothing get an empty `lease_id`.

    Attributes:
        priority: Lower goes first.
        allowed_models: Globs of the models that the caller may use and see; None = all (since 1.3).
        max_completion_tokens: What a request may generate at most, all choices together; the lease
            holds no more, whatever was asked for (since 1.3). None = no such bound.
        team_allowed_models: Globs of the caller's team, which a model must fit as well (since 1.4,
            as all that follow).
        warnings: Limits that are used up to a threshold, as of this moment.
        gives_back: Tokens or money of this lease are held, so what turns out not to be needed
            should be given back at once.
    """

    request_id: str
    lease_id: str
    tenant: str
    key_id: str
    role: KeyRole
    priority: int = 0
    limits: LimitState = LimitState()
    expires_s: float = 0.0
    allowed_models: tuple[str, ...] | None = None
    max_completion_tokens: int | None = None
    team_allowed_models: tuple[str, ...] | None = None
    warnings: tuple[LimitWarning, ...] = ()
    gives_back: bool = False


class Denied(Message, frozen=True, tag="denied"):
    """No, and why: `invalid_api_key`, `permission_denied`, `rate_limit_exceeded` and so on.

    Attributes:
        key_id: Whose request it was, as far as that is known; for the access log.
        limit: The limit that refused it (since 1.4).
        is_unpriced: A budget holds for the caller and the model has no price; whether there is
            such a model, the gateway knows (since 1.5).
    """

    request_id: str
    code: ErrorCode
    message: str
    retry_after_s: float | None = None
    limits: LimitState = LimitState()
    key_id: str = ""
    limit: LimitRefusal | None = None
    is_unpriced: bool = False


class Adjust(Message, frozen=True, tag="adjust"):
    """Replace a lease's upper bound by better numbers; may be refused when it grows."""

    request_id: str
    lease_id: str
    prompt_tokens: int
    completion_tokens: int


class Adjusted(Message, frozen=True, tag="adjusted"):
    """The lease now holds the numbers of the Adjust."""

    request_id: str
    lease_id: str
    limits: LimitState = LimitState()


class Settle(Message, frozen=True, tag="settle"):
    """What was really used; sent until acknowledged, applied once a lease.

    Attributes:
        is_unused: The grant came too late for anybody: it is taken back whole, and doesn't count
            as a request either.
        endpoint: As it was authorized (since 1.4, as the next): should a kill have made the auth
            worker forget the lease, it still finds the limits that it counts in.
        end_user: Likewise.
        model: That answered, where it isn't the one of the lease: it is booked, at its price and in
            its limits (since 1.5); empty for the lease's own.
        has_begun: A worker began to compute, so that it costs the price of a request even without
            tokens, and there is such a model (since 1.5).
    """

    lease_id: str
    request_id: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    outcome: Literal["finished", "aborted", "failed"] = "finished"
    is_unused: bool = False
    endpoint: str = ""
    end_user: str = ""
    model: str = ""
    has_begun: bool = False


class Settled(Message, frozen=True, tag="settled"):
    """The settlement is durable (or was so before)."""

    lease_id: str


class Renew(Message, frozen=True, tag="renew"):
    """These leases are still in use, with what they used so far; sent every few seconds.

    A lease that nobody settles is charged its last report and expires.
    """

    leases: tuple["LeaseReport", ...]


class StreamUsage(Part, frozen=True):
    """What one choice of a lease has used.

    The names `stream` and `streams` are as old as the wire, and a minor version renames nothing;
    everywhere else it is a choice.

    Attributes:
        lease_id: What it is charged to; may be left out where that is clear.
        stream: The choice: `request_id` and `choice` of its `Generate` with a slash between.
        prompt_tokens: Only under the name of its first choice, so that a prompt is counted once.
    """

    lease_id: str = ""
    stream: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class LeaseReport(Part, frozen=True):
    """The last known usage of one open lease.

    Attributes:
        streams: The same choice by choice, when there are several.
        max_prompt_tokens: What it may use, as last granted (since 1.4, as all that follow): should
            a kill have made the auth worker forget the lease, it holds so much again.
        max_completion_tokens: Likewise.
        endpoint: As it was authorized.
        end_user: Likewise.
    """

    lease_id: str
    prompt_tokens: int
    completion_tokens: int
    streams: tuple[StreamUsage, ...] = ()
    max_prompt_tokens: int = 0
    max_completion_tokens: int = 0
    endpoint: str = ""
    end_user: str = ""


class OrphanUsage(Message, frozen=True, tag="orphan_usage"):
    """What an engine did for a gateway that is gone; any gateway hands it on to the auth worker.

    Sent until acknowledged. It settles nothing: each choice counts with the most that was reported
    of it, and a lease that nobody renews or settles any more is soon charged the sum.

    Attributes:
        report_id: Of this report of this engine.
        engine_id: The engine's instance id; the answer finds it by that.
    """

    report_id: str
    engine_id: str
    streams: tuple[StreamUsage, ...]


class OrphanUsageNoted(Message, frozen=True, tag="orphan_usage_noted"):
    """The report is durable at the auth worker; handed on to its engine."""

    report_id: str
    engine_id: str


class KeyRecord(Part, frozen=True):
    """A key as people may see it; never the key."""

    key_id: str
    name: str
    role: KeyRole
    hint: str
    created_at: int
    tenant: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None
    total_requests: int = 0
    total_prompt_tokens: int = 0
    total_completion_tokens: int = 0


class CreateKey(Message, frozen=True, tag="create_key"):
    """Store a new key by its digest; the gateway made the key and shows it once.

    Attributes:
        hint: First and last characters for display, `psk-ab…wxyz`.
        actor_key_id: Who asks, for the audit log.
    """

    request_id: str
    key_digest: bytes
    hint: str
    name: str
    role: KeyRole = "user"
    tenant: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expires_at: int | None = None
    actor_key_id: str = ""


class ListKeys(Message, frozen=True, tag="list_keys"):
    """A page of keys, newest first."""

    request_id: str
    after_key_id: str = ""
    limit: int = 100


class RevokeKey(Message, frozen=True, tag="revoke_key"):
    """End a key at once and for good; idempotent."""

    request_id: str
    key_id: str
    actor_key_id: str = ""


class Keys(Message, frozen=True, tag="keys"):
    """The answer to CreateKey, ListKeys and RevokeKey: the records concerned."""

    request_id: str
    records: tuple[KeyRecord, ...]
    has_more: bool = False
