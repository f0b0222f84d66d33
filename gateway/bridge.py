"""The bridge to the wire: every message that the gateway sends is built here, held by a test.

Callers speak in the gateway's words; when the wire changes, this is the file that follows.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from msgspec import structs

from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    Actor,
    Adjust,
    Authorize,
    ChangeKeyStatus,
    ChangeResource,
    ClaimAnswer,
    Classify,
    ClearCache,
    CloseParse,
    CountKeys,
    Detokenize,
    Drain,
    Embed,
    Extend,
    FindKeys,
    FindResources,
    Generate,
    Grammar,
    Granted,
    KeepAnswer,
    KeyAction,
    KeyRole,
    KeySettings,
    LeaseReport,
    MakeKey,
    MakeResource,
    MemberRole,
    OpenParse,
    ParseBatch,
    ParseDelta,
    Prepare,
    Prepared,
    PrepareKind,
    Profile,
    ReadAudit,
    ReadStanding,
    ReadUsage,
    Refused,
    Renew,
    ResourceAction,
    ResourceKind,
    ResourceSettings,
    RotateKey,
    SamplingParams,
    Scope,
    Score,
    ScoredQuestion,
    SetMember,
    Settle,
    StreamUsage,
    Thought,
    ToolChoiceMode,
    UpdateKey,
    UpdateResource,
    Usage,
)

Outcome = Literal["finished", "aborted", "failed"]
"""How a request ended."""


# To the auth worker.


def authorize(
    request_id: str,
    *,
    key_digest: bytes | None,
    endpoint: str,
    address: str,
    wait_s: float,
    trace_id: str = "",
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
    )


def unused(granted: Granted) -> Settle:
    """A grant that came too late for anybody."""
    return settle(granted.lease_id, granted.request_id, Usage(), "aborted", is_unused=True)


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
    request_id: str, actor: Actor, key_id: str, fields: tuple[str, ...], settings: KeySettings
) -> UpdateKey:
    """Change the named settings of a key."""
    return UpdateKey(
        request_id=request_id, actor=actor, key_id=key_id, fields=fields, settings=settings
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


# To engines.


def prompt(
    kind: PrepareKind,
    *,
    messages_json: str | None = None,
    tools_json: str | None = None,
    template_kwargs_json: str | None = None,
    text: str | None = None,
    token_ids: tuple[int, ...] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    add_special_tokens: bool = True,
    max_tokens: int | None = None,
    truncate_prompt_tokens: int | None = None,
    return_tokens: bool = False,
    chat_template: str | None = None,
    suffix: str | None = None,
    cache_salt: str = "",
) -> Prepare:
    """A prompt to be rendered and tokenised; `addressed` says whose it is, and until when."""
    return Prepare(
        request_id="",
        kind=kind,
        deadline_s=0.0,
        messages_json=messages_json,
        tools_json=tools_json,
        template_kwargs_json=template_kwargs_json,
        prompt=text,
        prompt_token_ids=token_ids,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        add_special_tokens=add_special_tokens,
        max_tokens=max_tokens,
        truncate_prompt_tokens=truncate_prompt_tokens,
        return_tokens=return_tokens,
        chat_template=chat_template,
        suffix=suffix,
        cache_salt=cache_salt,
    )


def token_ids(ids: tuple[int, ...]) -> Detokenize:
    """Token ids to be spelt as text; not addressed yet."""
    return Detokenize(request_id="", token_ids=ids, deadline_s=0.0)


def embedding_inputs(
    texts: tuple[str, ...],
    ids: tuple[tuple[int, ...], ...],
    dimensions: int | None,
    truncate_prompt_tokens: int | None,
    prompt_name: str = "",
) -> Embed:
    """Texts, or token ids, to be turned into vectors; not addressed yet."""
    return Embed(
        request_id="",
        deadline_s=0.0,
        texts=texts,
        token_ids=ids,
        dimensions=dimensions,
        truncate_prompt_tokens=truncate_prompt_tokens,
        prompt_name=prompt_name,
    )


def classification(
    texts: Sequence[str],
    second_texts: Sequence[str] = (),
    token_ids: tuple[tuple[int, ...], ...] = (),
    *,
    truncate_prompt_tokens: int | None,
    max_second_tokens: int | None = None,
) -> Classify:
    """Texts, pairs or token ids to be classified; not addressed yet."""
    return Classify(
        request_id="",
        deadline_s=0.0,
        texts=tuple(texts),
        second_texts=tuple(second_texts),
        token_ids=token_ids,
        truncate_prompt_tokens=truncate_prompt_tokens,
        max_second_tokens=max_second_tokens,
    )


def score_question(
    messages_json: str,
    questions: Sequence[tuple[str, int]],
    label_sets: tuple[tuple[str, ...], ...],
    template_kwargs_json: str,
    max_question_tokens: int | None,
) -> Score:
    """Questions, each with the number of the set that its labels are in; not addressed yet."""
    return Score(
        request_id="",
        deadline_s=0.0,
        messages_json=messages_json,
        questions=tuple(ScoredQuestion(text=text, label_set=number) for text, number in questions),
        label_sets=label_sets,
        template_kwargs_json=template_kwargs_json,
        max_question_tokens=max_question_tokens,
    )


QuestionT = TypeVar("QuestionT", Prepare, Detokenize, Embed, Score, Classify)


def addressed(
    question: QuestionT,
    request_id: str,
    *,
    deadline_s: float,
    tenant: str,
    priority: int,
    trace_id: str,
) -> QuestionT:
    """A question with whose it is and how long it may take."""
    sent = structs.replace(
        question, request_id=request_id, deadline_s=deadline_s, tenant=tenant, trace_id=trace_id
    )
    # Prompts and tokens are read in turn by tenant alone.
    has_priority = isinstance(sent, Embed | Score | Classify)
    return structs.replace(sent, priority=priority) if has_priority else sent


def generate(
    request_id: str,
    number: int,
    prepared: Prepared,
    sampling: SamplingParams,
    *,
    attempt: int,
    lease_id: str,
    lease_tokens: int,
    deadline_s: float,
    tenant: str,
    trace_id: str,
    priority: int,
    keep_special_tokens: tuple[str, ...],
    grammar: Grammar | None,
    output_token_ids: Sequence[int],
    num_sent_characters: int,
    num_choices: int,
    is_streaming: bool,
    is_alone: bool,
    thought: Thought | None = None,
    max_thought_tokens: int = 0,
    cache_salt: str = "",
) -> Generate:
    """One choice of a prompt, from its beginning or from where another engine stopped."""
    return Generate(
        request_id=request_id,
        choice=number,
        attempt=attempt,
        prompt_token_ids=prepared.prompt_token_ids,
        sampling=sampling,
        lease_tokens=lease_tokens,
        deadline_s=deadline_s,
        output_token_ids=tuple(output_token_ids),
        num_sent_characters=num_sent_characters,
        keep_special_tokens=keep_special_tokens,
        grammar=grammar,
        priority=priority,
        tenant=tenant,
        template_time=prepared.template_time,
        want_token_ids=True,
        num_choices=num_choices,
        is_streaming=is_streaming,
        is_alone=is_alone,
        lease_id=lease_id,
        trace_id=trace_id,
        thought=thought,
        max_thought_tokens=max_thought_tokens,
        cache_salt=cache_salt,
    )


def extend(request_id: str, number: int, attempt: int, lease_tokens: int) -> Extend:
    """A choice may go on to so many output tokens in all."""
    return Extend(request_id=request_id, choice=number, attempt=attempt, lease_tokens=lease_tokens)


def abort(request_id: str, number: int, attempt: int) -> Abort:
    """Stop a choice."""
    return Abort(request_id=request_id, attempt=attempt, choice=number)


def stream_usage(request_id: str, number: int, usage: Usage) -> StreamUsage:
    """One choice's part of a lease, named as an engine names it that reports to the auth worker."""
    return StreamUsage(
        stream=f"{request_id}/{number}",
        prompt_tokens=usage.prompt_tokens if number == 0 else 0,
        completion_tokens=usage.completion_tokens,
    )


def profile(request_id: str, duration_s: float) -> Profile:
    """Record what an engine does."""
    return Profile(request_id=request_id, duration_s=duration_s)


def refused(code: ErrorCode, message: str) -> Refused:
    """This worker gets no work from this gateway."""
    return Refused(code=code, message=message)


# To parser workers.


def open_parse(
    request_id: str,
    *,
    num_choices: int = 1,
    tool_format: str | None,
    reasoning_format: str | None,
    tools_json: str | None,
    tool_choice: ToolChoiceMode = "auto",
    tool_name: str = "",
    parallel_tool_calls: bool = True,
    prompt_tail: str = "",
    thinking: bool | None = None,
    response_grammar: Grammar | None = None,
    trace_id: str = "",
) -> OpenParse:
    """A session for the text of one request; its attempt grows with each replay."""
    return OpenParse(
        request_id=request_id,
        attempt=1,
        num_choices=num_choices,
        tool_format=tool_format,
        reasoning_format=reasoning_format,
        tools_json=tools_json,
        tool_choice=tool_choice,
        tool_name=tool_name,
        parallel_tool_calls=parallel_tool_calls,
        prompt_tail=prompt_tail,
        thinking=thinking,
        response_grammar=response_grammar,
        trace_id=trace_id,
    )


def parse_delta(
    request_id: str,
    choice: int,
    attempt: int,
    texts: Sequence[str],
    ends: Sequence[int],
    *,
    final: bool,
) -> ParseDelta:
    """New text of one choice for its parser."""
    return ParseDelta(
        request_id=request_id,
        choice=choice,
        attempt=attempt,
        text="".join(texts),
        token_ends=tuple(ends),
        final=final,
    )


def parse_batch(deltas: Sequence[ParseDelta]) -> ParseBatch:
    """All new text for one parser."""
    return ParseBatch(deltas=tuple(deltas))


def close_parse(request_id: str, attempt: int) -> CloseParse:
    """Forget a session."""
    return CloseParse(request_id=request_id, attempt=attempt)


def clear_cache(question_id: str) -> ClearCache:
    """Forget the computed prompts that nobody uses at the moment."""
    return ClearCache(request_id=question_id)


# To workers of any role.


def drain(timeout_s: float) -> Drain:
    """Finish what you have, and end."""
    return Drain(timeout_s=timeout_s)
