"""Messages to the auth worker: who may do what, leases, keys and other resources."""

from typing import Any, Literal

from msgspec import structs

from protocol.wire.messages import (
    Actor,
    Adjust,
    Authorize,
    ChangeKeyStatus,
    ChangeResource,
    ClaimAnswer,
    CountKeys,
    FindKeys,
    FindResources,
    Granted,
    KeepAnswer,
    KeyAction,
    KeyRole,
    KeySettings,
    LeaseReport,
    MakeKey,
    MakeResource,
    MemberRole,
    ReadAudit,
    ReadStanding,
    ReadUsage,
    Renew,
    ResourceAction,
    ResourceKind,
    ResourceSettings,
    RotateKey,
    Scope,
    SetMember,
    Settle,
    StreamUsage,
    UpdateKey,
    UpdateResource,
    Usage,
)

Outcome = Literal["finished", "aborted", "failed"]
"""How a request ended."""
KeyStep = Literal["", "suspend", "reactivate", "revoke"]
"""What becomes of the status of a key whose settings change."""


def authorize(
    request_id: str,
    *,
    key_digest: bytes | None,
    endpoint: str,
    address: str,
    wait_s: float,
    trace_id: str = "",
    traceparent: str = "",
    model: str = "",
    role: KeyRole = "user",
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
    is_metered: bool = False,
    scope: Scope,
    asked_tokens: int = 0,
    is_streaming: bool = False,
    uses_tools: bool = False,
    is_token: bool = False,
    end_user: str = "",
) -> Authorize:
    """May this caller do this; without tokens it only says who the caller is."""
    return Authorize(
        request_id=request_id,
        key_digest=key_digest,
        endpoint=endpoint,
        model=model,
        address=address,
        required_role=role,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        is_metered=is_metered,
        wait_s=wait_s,
        trace_id=trace_id,
        traceparent=traceparent,
        scope=scope,
        asked_tokens=asked_tokens,
        is_streaming=is_streaming,
        uses_tools=uses_tools,
        is_token=is_token,
        end_user=end_user,
    )


def with_token(authorize: Authorize, token: str) -> Authorize:
    """The same question with the bearer token that its digest is of."""
    return structs.replace(authorize, token=token)


def with_refused_guesses(authorize: Authorize, num_refused: int) -> Authorize:
    """The same question, with the keys of its address that were refused unasked."""
    return structs.replace(authorize, num_refused_guesses=num_refused)


def adjust(question_id: str, lease_id: str, prompt_tokens: int, completion_tokens: int) -> Adjust:
    """Another bound for a lease."""
    return Adjust(
        request_id=question_id,
        lease_id=lease_id,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


def settle(
    lease_id: str,
    request_id: str,
    usage: Usage,
    outcome: Outcome,
    *,
    is_unused: bool = False,
    endpoint: str = "",
    end_user: str = "",
    model: str = "",
    has_begun: bool = False,
) -> Settle:
    """What a request really used; `is_unused` takes the grant back as if it had never been."""
    return Settle(
        lease_id=lease_id,
        request_id=request_id,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        outcome=outcome,
        is_unused=is_unused,
        endpoint=endpoint,
        end_user=end_user,
        model=model,
        has_begun=has_begun,
    )


def unused(granted: Granted) -> Settle:
    """A grant that came too late for anybody."""
    return settle(granted.lease_id, granted.request_id, Usage(), "aborted", is_unused=True)


def as_unused(settle: Settle) -> Settle:
    """The settlement of a request whose answer counts for nothing, and costs nothing."""
    return structs.replace(settle, is_unused=True)


def with_reasoning(usage: Usage, reasoning_tokens: int) -> Usage:
    """Usage of which so many tokens were reasoning, as a parser says."""
    return structs.replace(usage, reasoning_tokens=reasoning_tokens)


def without_completion(usage: Usage) -> Usage:
    """Usage of a client that asked for no output: its prompt alone."""
    return structs.replace(usage, completion_tokens=0)


def lease_report(
    lease_id: str,
    usage: Usage,
    streams: tuple[StreamUsage, ...] = (),
    *,
    max_prompt_tokens: int = 0,
    max_completion_tokens: int = 0,
    endpoint: str = "",
    end_user: str = "",
) -> LeaseReport:
    """What an open lease has used so far, in all and by each of several choices, and may use."""
    return LeaseReport(
        lease_id=lease_id,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        streams=streams,
        max_prompt_tokens=max_prompt_tokens,
        max_completion_tokens=max_completion_tokens,
        endpoint=endpoint,
        end_user=end_user,
    )


def renew(leases: tuple[LeaseReport, ...]) -> Renew:
    """These leases are in use."""
    return Renew(leases=leases)


def make_key(
    request_id: str, actor: Actor, *, key_digest: bytes, hint: str, settings: KeySettings
) -> MakeKey:
    """Store a key that was just made."""
    return MakeKey(
        request_id=request_id, actor=actor, key_digest=key_digest, hint=hint, settings=settings
    )


def update_key(
    request_id: str,
    actor: Actor,
    key_id: str,
    fields: tuple[str, ...],
    settings: KeySettings,
    action: KeyStep = "",
) -> UpdateKey:
    """Change the named settings of a key, and its status with them."""
    return UpdateKey(
        request_id=request_id,
        actor=actor,
        key_id=key_id,
        fields=fields,
        settings=settings,
        action=action,
    )


def rotate_key(
    request_id: str, actor: Actor, key_id: str, *, key_digest: bytes, hint: str, overlap_s: int
) -> RotateKey:
    """Give a key a secret that was just made."""
    return RotateKey(
        request_id=request_id,
        actor=actor,
        key_id=key_id,
        key_digest=key_digest,
        hint=hint,
        overlap_s=overlap_s,
    )


def change_key_status(
    request_id: str, actor: Actor, key_id: str, action: KeyAction
) -> ChangeKeyStatus:
    """Suspend, reactivate, revoke or delete a key."""
    return ChangeKeyStatus(request_id=request_id, actor=actor, key_id=key_id, action=action)


def find_keys(request_id: str, actor: Actor, **wanted: Any) -> FindKeys:
    """The key of an id, or a page of keys; see `FindKeys`."""
    return FindKeys(request_id=request_id, actor=actor, **wanted)


def count_keys(request_id: str, actor: Actor) -> CountKeys:
    """How many keys there are."""
    return CountKeys(request_id=request_id, actor=actor)


def make_resource(
    request_id: str, actor: Actor, kind: ResourceKind, settings: ResourceSettings
) -> MakeResource:
    """Make a user, team, limit, budget or price."""
    return MakeResource(request_id=request_id, actor=actor, kind=kind, settings=settings)


def update_resource(
    request_id: str,
    actor: Actor,
    kind: ResourceKind,
    resource_id: str,
    fields: tuple[str, ...],
    settings: ResourceSettings,
) -> UpdateResource:
    """Change the named settings of a resource."""
    return UpdateResource(
        request_id=request_id,
        actor=actor,
        kind=kind,
        resource_id=resource_id,
        fields=fields,
        settings=settings,
    )


def change_resource(
    request_id: str, actor: Actor, kind: ResourceKind, resource_id: str, action: ResourceAction
) -> ChangeResource:
    """Suspend, reactivate or delete a resource."""
    return ChangeResource(
        request_id=request_id, actor=actor, kind=kind, resource_id=resource_id, action=action
    )


def set_member(
    request_id: str, actor: Actor, team_id: str, user_id: str, role: MemberRole | Literal[""]
) -> SetMember:
    """Make a user a member of a team; without a role no member any more."""
    return SetMember(
        request_id=request_id, actor=actor, team_id=team_id, user_id=user_id, role=role
    )


def find_resources(request_id: str, actor: Actor, **wanted: Any) -> FindResources:
    """The resource of an id, or a page of them; see `FindResources`."""
    return FindResources(request_id=request_id, actor=actor, **wanted)


def read_usage(request_id: str, reader: Actor, **wanted: Any) -> ReadUsage:
    """What was used; see `ReadUsage`."""
    return ReadUsage(request_id=request_id, reader=reader, **wanted)


def read_standing(request_id: str, reader: Actor, **wanted: Any) -> ReadStanding:
    """How far limits are used; see `ReadStanding`."""
    return ReadStanding(request_id=request_id, reader=reader, **wanted)


def claim_answer(request_id: str, actor: Actor, *, name: bytes, fingerprint: bytes) -> ClaimAnswer:
    """Begin an administrator's request that must be done once."""
    return ClaimAnswer(request_id=request_id, actor=actor, name=name, fingerprint=fingerprint)


def keep_answer(request_id: str, actor: Actor, *, name: bytes, answer: bytes) -> KeepAnswer:
    """What came of it."""
    return KeepAnswer(request_id=request_id, actor=actor, name=name, answer=answer)


def read_audit(request_id: str, reader: Actor, **wanted: Any) -> ReadAudit:
    """A page of the audit log; see `ReadAudit`."""
    return ReadAudit(request_id=request_id, reader=reader, **wanted)


def choice_usage(request_id: str, number: int, usage: Usage) -> StreamUsage:
    """One choice's part of a lease, named as an engine names it that reports to the auth worker."""
    return StreamUsage(
        stream=f"{request_id}/{number}",
        prompt_tokens=usage.prompt_tokens if number == 0 else 0,
        completion_tokens=usage.completion_tokens,
    )
