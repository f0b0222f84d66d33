"""From a checked Responses body to a chat's job, and to the question that counts its tokens.

What a request goes on from is in the store, which is asked only once the body is known: a body that
names something is parsed twice, the second time with it (`Context`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway import bridge
from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.bodies.convert import chat_job
from gateway.http.openresponses.called_names import CalledNames, called_names
from gateway.http.openresponses.carried import with_carried
from gateway.http.openresponses.compaction import SYSTEM, to_carry, to_sum_up
from gateway.http.openresponses.conversation import (
    EMPTY,
    Tools,
    chat_messages,
    chat_tool_choice,
)
from gateway.http.openresponses.echo import echo
from gateway.http.openresponses.error_words import in_their_words, their_words
from gateway.http.openresponses.hosted import (
    HostedPlan,
    HostedTool,
    Progress,
    approved_calls,
    hosted_tools,
    known_lists,
)
from gateway.http.openresponses.schemas import (
    CompactRequest,
    ContinuedRequest,
    InputTokensRequest,
    ResponsesRequest,
)
from gateway.http.openresponses.stored_items import Context, Item, references_in, whole_items
from gateway.http.schemas.base.body import dump_fields, dump_json, validate
from gateway.http.schemas.inference.chat import ChatRequest
from gateway.request.jobs.job import COMPACT_ENDPOINT, RESPONSES_ENDPOINT, GenerationJob
from protocol.wire.messages import SamplingDefaults

NO_STORE: Final = "nothing is stored here; send the items"
MAX_SUMMARY_TOKENS: Final = 1024
MIN_SUMMARY_TOKENS: Final = 256
"""Room that the context must leave: what stands for a whole history isn't said in a few words."""
MAX_ADDED_ITEMS: Final = 20
"""To a conversation in one request, as OpenAI documents it."""
_SUMMARISE: Final = (
    "Summarize the conversation above so that it can be continued from the summary alone. Keep"
    " names, numbers, decisions, results of tools and open tasks. Write only the summary."
)


@dataclass(frozen=True, slots=True)
class ResponsesBody:
    """Of /v1/responses, with all that it goes on from.

    Attributes:
        echo_json: What the answer repeats of the request, as a JSON object.
        ignored: Fields without a meaning here.
        spaces: By the name that the model sees: namespace and own name of a tool.
        seals_reasoning: Whether reasoning is also told as an opaque text.
        hosted: Tools that this server runs.
        names: By which calls are told apart.
    """

    job: GenerationJob
    echo_json: str
    ignored: list[str]
    spaces: dict[str, tuple[str, str]] = field(default_factory=dict)
    seals_reasoning: bool = False
    hosted: HostedPlan = field(default_factory=HostedPlan)
    names: CalledNames = field(default_factory=CalledNames)


@dataclass(frozen=True, slots=True)
class Refs:
    """What of the store a request names.

    Attributes:
        previous_id: The response that it goes on from.
        conversation_id: The conversation that it belongs to.
        item_ids: Of items in its input.
    """

    previous_id: str | None = None
    conversation_id: str | None = None
    item_ids: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it stands alone."""
        return self == Refs()


@dataclass(frozen=True, slots=True)
class AskedResponse:
    """What a body of /v1/responses asks for.

    Attributes:
        refs: What it names; whoever has read it parses the body again.
        body: None as long as what it names has to be read.
        is_stored: Whether its answer is kept.
        in_background: Whether it outlives its request.
        is_streaming: Whether its answer travels as it comes.
        truncates: Whether its oldest items may be left out.
        input_json: Its own items, whole, a JSON array.
        num_item_bytes: Of all items that are read.
        num_left_out: Items that were left out.
        num_input_items: In `input_json`.
    """

    model: str
    refs: Refs
    body: ResponsesBody | None
    is_stored: bool
    in_background: bool
    is_streaming: bool
    truncates: bool
    input_json: str
    num_item_bytes: int = 0
    num_left_out: int = 0
    num_input_items: int = 0


@dataclass(frozen=True, slots=True)
class CompactBody:
    """Of /v1/responses/compact.

    Attributes:
        job: A chat that makes the summary; None as long as what it names has to be read.
        kept_json: The items that stay, a JSON array.
        carried_json: Those that the summary carries, likewise: what the system and the developer
            have said.
    """

    refs: Refs
    job: GenerationJob | None
    kept_json: str
    ignored: list[str]
    carried_json: str = "[]"


def refs_of(request: ContinuedRequest, context: Context | None, *, has_store: bool) -> Refs:
    """What of the store a request names."""
    # Without a store a reference is an item that is refused, with its place.
    names = () if context is not None or not has_store else references_in(request.input)
    return Refs(request.previous_response_id, request.conversation_id, names)


def asked_response(
    request: ResponsesRequest,
    ignored: list[str],
    defaults: SamplingDefaults,
    context: Context | None,
    *,
    has_store: bool,
) -> AskedResponse:
    """What a request asks for.

    Args:
        request: Checked.
        ignored: Fields without a meaning here.
        defaults: Of its model.
        context: What it goes on from; None before the store was asked.
        has_store: Whether there is one.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    refs = refs_of(request, context, has_store=has_store)
    check_store(refs, has_store=has_store)
    if not has_store and request.background:
        raise UnsupportedFieldError(
            f"`background` is not supported: {NO_STORE}.", param="background"
        )
    is_stored = has_store and request.store is not False
    if request.store and not has_store:
        ignored = [*ignored, "store"]
    body: ResponsesBody | None = None
    own = request.input if context is None else context.resolved(request.input)
    whole = whole_items(own)
    found = Context(b"") if context is None else context
    if context is not None or refs.is_empty:
        made = [] if found.progress is None else found.progress.made
        items = found.select([*whole, *made], truncates=request.truncates)
        body = responses_body(request, ignored, defaults, items, found, is_stored=is_stored)
    return AskedResponse(
        model=request.model,
        refs=refs,
        body=body,
        is_stored=is_stored,
        in_background=bool(request.background),
        is_streaming=bool(request.stream),
        truncates=request.truncates,
        input_json=dump_json(whole, "input"),
        num_item_bytes=found.num_bytes,
        num_left_out=found.num_left_out,
        num_input_items=len(whole),
    )


def check_store(refs: Refs, *, has_store: bool) -> None:
    """Refuse what needs a store where there is none.

    Raises:
        UnsupportedFieldError: Naming the field.
    """
    if has_store:
        return
    for name, value in (
        ("previous_response_id", refs.previous_id),
        ("conversation", refs.conversation_id),
    ):
        if value is not None:
            raise UnsupportedFieldError(f"`{name}` is not supported: {NO_STORE}.", param=name)


def responses_body(
    request: ResponsesRequest,
    ignored: list[str],
    defaults: SamplingDefaults,
    items: list[Item],
    context: Context,
    *,
    is_stored: bool,
) -> ResponsesBody:
    """The job of a request, and what its answer repeats.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    tools = Tools(request.tools, runs_hosted=True)
    items, places = with_carried(items, context.num_before)
    summed_up = [] if request.compact_threshold is None else to_sum_up(items)
    plan = _hosted_plan(request, tools, items, context.progress, can_compact=bool(summed_up))
    chat = base_chat(request, tools, items, places, plan, context.progress)
    spent = 0 if context.progress is None else context.progress.num_output_tokens
    limit = request.max_output_tokens
    sampling = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "max_completion_tokens": None if limit is None else max(1, limit - spent),
        "response_format": _response_format(request),
        "safety_identifier": request.safety_identifier,
        "user": request.user,
    }
    chat |= {name: value for name, value in sampling.items() if value is not None}
    if request.stream:
        chat["stream"] = True
    if request.shows_logprobs:
        chat |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    try:
        tool_params = _tool_params(tools, plan.tools)
        job = chat_job(validate(ChatRequest, chat), chat, defaults, tool_params=tool_params)
    except InvalidRequestError as error:
        raise in_their_words(error, tools.paths) from None
    turn = job.changed(
        endpoint=RESPONSES_ENDPOINT,
        prompt_param="input",
        grammar_param=their_words(job.grammar_param),
        logprobs_param="top_logprobs" if request.top_logprobs else "include",
        verbosity_param="text.verbosity" if job.verbosity_param else "",
    )
    if context.progress is not None and context.progress.compacts:
        turn = _summary_job(request, summed_up, defaults)
        plan = replace(plan, carried_json=dump_json(to_carry(items), "input"))
    return ResponsesBody(
        job=turn,
        echo_json=dump_fields(echo(request, job, is_stored=is_stored)),
        ignored=ignored + tools.left_out,
        spaces=tools.spaces,
        seals_reasoning="reasoning.encrypted_content" in (request.include or ()),
        hosted=plan,
        names=called_names(
            (tool[tool["type"]]["name"] for tool in tools.chat), tools.spaces, plan.tools
        ),
    )


def _tool_params(tools: Tools, hosted: Mapping[str, HostedTool]) -> list[str]:
    """The fields that the schemas of a chat's tools came from.

    One of a server has none: its name stands there, as nobody is told of it but by that name.
    """
    named = ((tool["type"], tool[tool["type"]]["name"]) for tool in tools.chat)
    return [
        name if name in hosted else f"{path}.{'format' if kind == 'custom' else 'parameters'}"
        for (kind, name), path in zip(named, tools.paths, strict=True)
    ]


def _hosted_plan(
    request: ResponsesRequest,
    tools: Tools,
    items: list[Item],
    progress: Progress | None,
    *,
    can_compact: bool,
) -> HostedPlan:
    """What this server runs of the tools of a request; they join `tools.chat`."""
    if request.background and any(one.named.headers_json != "{}" for one in tools.servers):
        raise UnsupportedFieldError(
            "`background` is not supported with `headers` or `authorization` of an MCP server:"
            " they are kept nowhere.",
            param="background",
        )
    known = known_lists(items)
    lists = (
        {label: one["tools"] for label, one in known.items()}
        if progress is None
        else progress.lists
    )
    hosted = add_hosted(tools, lists, may_call=progress is None or progress.may_call)
    approved = approved_calls(items, hosted)
    labels = {server.named.label for server in tools.servers}
    absent = next((call.label for call in approved if call.label not in labels), None)
    if absent is not None:
        raise InvalidRequestError(
            f"Invalid `tools`: a call of the MCP server `{absent[:100]}` is approved, which is not"
            " among them; give it again.",
            param="tools",
        )
    return HostedPlan(
        servers=tuple((server.path, server.named) for server in tools.servers),
        lists_json=dump_json({label: known[label] for label in labels & known.keys()}, "input"),
        tools=hosted,
        approved=approved,
        max_calls=request.max_tool_calls,
        max_output_tokens=request.max_output_tokens,
        compact_threshold=request.compact_threshold,
        can_compact=can_compact,
    )


def add_hosted(
    tools: Tools, lists: Mapping[str, list[Item]], *, may_call: bool = True
) -> dict[str, HostedTool]:
    """Tools that servers have listed, by the names that the model sees; they join the chat's."""
    taken = {tool[tool["type"]]["name"] for tool in tools.chat}
    hosted, chat = hosted_tools(tools.servers, lists, taken)
    tools.hosted_names = {(tool.label, tool.name): name for name, tool in hosted.items()}
    if may_call:
        tools.chat += chat
        paths = {server.named.label: server.path for server in tools.servers}
        tools.paths += [paths[hosted[tool["function"]["name"]].label] for tool in chat]
    return hosted


def compact_body(
    request: CompactRequest,
    ignored: list[str],
    defaults: SamplingDefaults,
    context: Context | None,
    *,
    has_store: bool,
) -> CompactBody:
    """The chat that summarises a context, and what stays of it.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    refs = refs_of(request, context, has_store=has_store)
    check_store(refs, has_store=has_store)
    if context is None and not refs.is_empty:
        return CompactBody(refs, None, "[]", ignored)
    own = whole_items(request.input if context is None else context.resolved(request.input))
    items = own if context is None else context.select(own, truncates=False)
    items, places = with_carried(items, len(items) - len(own))
    job = _summary_job(request, items, defaults, places)
    said = [item for item in items if item.get("type") == "message"]
    kept = [item for item in said if item.get("role") == "user"]
    carried = [item for item in said if item.get("role") in SYSTEM]
    return CompactBody(refs, job, dump_json(kept, "input"), ignored, dump_json(carried, "input"))


def _summary_job(
    request: CompactRequest | ResponsesRequest,
    items: list[Item],
    defaults: SamplingDefaults,
    places: Sequence[int] | None = None,
) -> GenerationJob:
    """The chat that sums items up.

    Raises:
        InvalidRequestError: Naming the item that is wrong.
    """
    messages = chat_messages(request.instructions, items, Tools(None), places=places)
    messages.append({"role": "user", "content": _SUMMARISE})
    chat: dict[str, Any] = {
        "model": request.model,
        "messages": messages,
        "max_completion_tokens": MAX_SUMMARY_TOKENS,
        "chat_template_kwargs": {"enable_thinking": False},
        "safety_identifier": request.safety_identifier,
        "user": request.user,
    }
    try:
        job = chat_job(validate(ChatRequest, chat), chat, defaults)
    except InvalidRequestError as error:
        raise in_their_words(error, []) from None
    return job.changed(
        endpoint=COMPACT_ENDPOINT,
        prompt_param="input",
        prepares=(bridge.with_room(job.prepares[0], MIN_SUMMARY_TOKENS),),
        # Also of models that always reason the tokens are for the summary.
        thinking_budget=0,
    )


def conversation_items(items: list[Item]) -> list[Item]:
    """Items that are added to a conversation, checked and whole.

    Raises:
        InvalidRequestError: Naming the item that is wrong, or not served.
    """
    if len(items) > MAX_ADDED_ITEMS:
        raise InvalidRequestError(
            f"Invalid `items`: {len(items)} are given, and {MAX_ADDED_ITEMS} are accepted at a"
            " time.",
            param="items",
        )
    try:
        chat_messages(None, items, Tools(None), calls_may_be_elsewhere=True)
    except InvalidRequestError as error:
        message, param = (
            text.replace("input[", "items[", 1) for text in (error.message, error.param or "")
        )
        raise type(error)(message, param=param or None) from None
    return whole_items(items)


def base_chat(
    request: InputTokensRequest,
    tools: Tools,
    items: list[Item],
    places: Sequence[int],
    plan: HostedPlan | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What both have in common, as the body of a chat."""
    chat: dict[str, Any] = {
        "model": request.model,
        "messages": chat_messages(request.instructions, items, tools, places=places),
    }
    if request.effort is not None:
        # Of models that can't reason nothing is demanded: clients send an effort unasked.
        thinks = request.effort not in ("none", "minimal")
        chat["chat_template_kwargs"] = {
            "reasoning_effort": request.effort,
            "enable_thinking": thinks,
        }
    if request.text is not None and request.text.verbosity is not None:
        chat["verbosity"] = request.text.verbosity
    hosted = EMPTY if plan is None else plan.tools
    if plan is not None and plan.servers and progress is None:
        choice = None  # it may name tools that nobody has listed yet
    else:
        is_first = progress is None or progress.may_be_forced
        choice = chat_tool_choice(request.tool_choice, hosted, is_first=is_first)
    if tools.chat:
        chat["tools"] = tools.chat
        if choice is not None:
            chat["tool_choice"] = choice
        if request.parallel_tool_calls is not None:
            chat["parallel_tool_calls"] = request.parallel_tool_calls
    elif choice not in (None, "auto", "none") and (progress is None or progress.may_call):
        raise InvalidRequestError(
            "Invalid `tool_choice`: it needs `tools` that this server can call.",
            param="tool_choice",
        )
    return chat


def _response_format(request: ResponsesRequest) -> dict[str, Any] | None:
    wanted = None if request.text is None else request.text.format
    if wanted is None or wanted.get("type") != "json_schema":
        return wanted
    named = {key: value for key, value in wanted.items() if key != "type" and value is not None}
    return {"type": "json_schema", "json_schema": named}
