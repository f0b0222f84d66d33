"""From a body to what the rest of the gateway asks for it: one function a kind of body.

Each takes the bytes and a `ParseContext` and returns something small and typed, so that it may as
well run in a process of its own (`body_process.py`): parsing a large body is a few calls into C
that hold the interpreter for seconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import orjson

from gateway import bridge
from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.anthropic.convert import count_question, messages_job
from gateway.http.anthropic.schemas import CountTokensRequest, MessagesRequest
from gateway.http.anthropic.schemas import parse as parse_messages
from gateway.http.bodies.convert import (
    NEUTRAL_DEFAULTS,
    chat_job,
    completion_job,
    tokenize_question,
)
from gateway.http.bodies.parsed_bodies import (
    ConversationBody,
    DetokenizeBody,
    EmbeddingBody,
    ExecuteBody,
    GenerationBody,
    InputTokensBody,
    ParseBody,
    Refusal,
    SocketBody,
    TokenizeBody,
)
from gateway.http.mcp.messages import McpMessage, parse_message
from gateway.http.openresponses.convert import (
    AskedResponse,
    CompactBody,
    asked_response,
    check_store,
    compact_body,
    conversation_items,
    refs_of,
)
from gateway.http.openresponses.counting import count_question as count_input_question
from gateway.http.openresponses.schemas import (
    CompactRequest,
    ConversationItemsRequest,
    ConversationRequest,
    ConversationUpdateRequest,
    InputTokensRequest,
    ResponsesRequest,
)
from gateway.http.openresponses.schemas import parse as parse_responses
from gateway.http.openresponses.stored_items import Context
from gateway.http.schemas.base.body import (
    RequestModel,
    dump_fields,
    dump_json,
    known_only,
    load_json_object,
    refuse_unknown,
    unknown_fields,
    validate,
)
from gateway.http.schemas.base.ranges import MAX_STREAM_ID, MAX_TOKEN_IDS
from gateway.http.schemas.inference.chat import parse_chat_body
from gateway.http.schemas.inference.completion import parse_completion_body
from gateway.http.schemas.inference.embedding import (
    parse_embedding_body,
    prompt_name_of,
)
from gateway.http.schemas.inference.messages import clean_tools, custom_names
from gateway.http.schemas.inference.tokenize import parse_detokenize_body, parse_tokenize_body
from gateway.http.schemas.inference.tools import ExecuteRequest, ParseRequest
from gateway.http.schemas.tools.functions import in_words_of_functions
from gateway.http.scoring.classify import ClassifyBody, classify_body
from gateway.http.scoring.convert import DecisionBody, decision_body, systemone_body
from gateway.http.scoring.rerank import RerankBody, rerank_body, score_body
from gateway.request.callers.caller import named_end_user
from gateway.request.jobs.model_limits import MANY_IDS, check_inputs, check_prompts
from protocol.wire.messages import EngineOffer, SamplingDefaults

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class ParseContext:
    """What a body is read against.

    Attributes:
        offers: What the engines of each model serve; in the gateway it follows them.
        has_tools: Whether tool calling is on.
        has_store: Whether responses are stored.
        aliases: Further names of models.
    """

    offers: Mapping[str, EngineOffer]
    has_tools: bool = True
    has_store: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)

    def offer(self, model: str) -> EngineOffer | None:
        """What is served under a name; None for one that nobody serves."""
        return self.offers.get(self.aliases.get(model, model))

    def defaults(self, model: str) -> SamplingDefaults:
        """What a model recommends; neutral for one that nobody serves."""
        offer = self.offer(model)
        return NEUTRAL_DEFAULTS if offer is None else offer.sampling_defaults


@dataclass(frozen=True)
class BodyKind(Generic[ResultT]):
    """One kind of body.

    Attributes:
        name: Between processes.
        parse: Raises `InvalidRequestError` for a wrong body.
        result: The type of what `parse` returns, for the codec.
    """

    name: str
    parse: Callable[[bytes, ParseContext], ResultT]
    result: Any


def _check_tools(context: ParseContext, *, is_wanted: bool) -> None:
    if is_wanted and not context.has_tools:
        raise UnsupportedFieldError("Tool calling is switched off on this server.", param="tools")


def _chat(body: bytes, context: ParseContext) -> GenerationBody:
    request, value, ignored = parse_chat_body(body)
    _check_tools(context, is_wanted=bool(request.tools))
    try:
        job = chat_job(request, value, context.defaults(request.model))
    except InvalidRequestError as error:
        raise in_words_of_functions(error, value) from None
    return GenerationBody(job, ignored)


def _messages(body: bytes, context: ParseContext) -> GenerationBody:
    request, ignored = parse_messages(MessagesRequest, body)
    job, left_out = messages_job(request, context.defaults(request.model))
    _check_tools(context, is_wanted=job.tools_json is not None)
    return GenerationBody(job, ignored + left_out)


def _count_tokens(body: bytes, context: ParseContext) -> TokenizeBody:
    request, ignored = parse_messages(CountTokensRequest, body)
    question, left_out = count_question(request)
    _check_tools(context, is_wanted=question.tools_json is not None)
    return TokenizeBody(request.model, question, False, ignored + left_out)


def _responses(body: bytes, context: ParseContext) -> AskedResponse:
    return _asked(body, None, context)


def _continued_responses(frame: bytes, context: ParseContext) -> AskedResponse:
    found = Context.of_frame(frame)
    return _asked(found.body, found, context)


def _asked(body: bytes, found: Context | None, context: ParseContext) -> AskedResponse:
    request, ignored = parse_responses(ResponsesRequest, body)
    defaults = context.defaults(request.model)
    asked = asked_response(request, ignored, defaults, found, has_store=context.has_store)
    found_body = asked.body
    has_tools = found_body is not None and (
        found_body.job.tools_json is not None or bool(found_body.hosted.servers)
    )
    _check_tools(context, is_wanted=has_tools)
    return asked


def _socket(message: bytes, context: ParseContext) -> SocketBody:
    return _said(message, None, context)


def _continued_socket(frame: bytes, context: ParseContext) -> SocketBody:
    found = Context.of_frame(frame)
    return _said(found.body, found, context)


def _said(message: bytes, found: Context | None, context: ParseContext) -> SocketBody:
    value = load_json_object(message)
    kind = value.pop("type", "")
    if kind == "response.steer":
        steer = {name: value.get(name) for name in ("input", "previous_response_id")}
        return SocketBody(kind, False, None, steer_json=dump_json(steer, "input"))
    if kind != "response.create":
        return SocketBody(kind if isinstance(kind, str) else "", True, None)
    stream_id = value.pop("stream_id", None)
    if stream_id is not None and not is_stream_id(stream_id):
        raise InvalidRequestError(
            f"Invalid `stream_id`: a text of 1 to {MAX_STREAM_ID} characters is expected.",
            param="stream_id",
        )
    lane = stream_id or ""
    try:
        return _created(kind, value, lane, found, context)
    except InvalidRequestError as error:
        return SocketBody(kind, True, None, lane, refusal=Refusal.of(error))


def _created(
    kind: str, value: dict[str, Any], lane: str, found: Context | None, context: ParseContext
) -> SocketBody:
    generates = value.pop("generate", True) is not False
    for name in ("stream", "stream_options"):
        value.pop(name, None)  # everything is told as it comes
    if value.get("background"):
        raise UnsupportedFieldError(
            "`background` is not supported over a WebSocket; use POST.", param="background"
        )
    body = dump_fields({**value, "stream": True}).encode()
    return SocketBody(kind, generates, _asked(body, found, context), lane)


def is_stream_id(value: Any) -> bool:
    """Whether a value may name a lane of a WebSocket."""
    return isinstance(value, str) and 1 <= len(value) <= MAX_STREAM_ID


def _input_tokens(body: bytes, context: ParseContext) -> InputTokensBody:
    return _counted(body, None, context)


def _continued_input_tokens(frame: bytes, context: ParseContext) -> InputTokensBody:
    found = Context.of_frame(frame)
    return _counted(found.body, found, context)


def _counted(body: bytes, found: Context | None, context: ParseContext) -> InputTokensBody:
    request, ignored = parse_responses(InputTokensRequest, body)
    refs = refs_of(request, found, has_store=context.has_store)
    check_store(refs, has_store=context.has_store)
    if found is None and not refs.is_empty:
        return InputTokensBody(refs, None)
    question, left_out = count_input_question(request, found)
    _check_tools(context, is_wanted=question.tools_json is not None)
    return InputTokensBody(refs, TokenizeBody(request.model, question, False, ignored + left_out))


def _compact(body: bytes, context: ParseContext) -> CompactBody:
    return _compacted(body, None, context)


def _continued_compact(frame: bytes, context: ParseContext) -> CompactBody:
    found = Context.of_frame(frame)
    return _compacted(found.body, found, context)


def _compacted(body: bytes, found: Context | None, context: ParseContext) -> CompactBody:
    request, ignored = parse_responses(CompactRequest, body)
    defaults = context.defaults(request.model)
    return compact_body(request, ignored, defaults, found, has_store=context.has_store)


def _conversation(body: bytes, _context: ParseContext) -> ConversationBody:
    value = load_json_object(body) if body else {}
    request = validate(ConversationRequest, value)
    return _conversation_body(request, value, request.items or [], request.metadata)


def _conversation_update(body: bytes, _context: ParseContext) -> ConversationBody:
    value = load_json_object(body)
    request = validate(ConversationUpdateRequest, value)
    return _conversation_body(request, value, [], request.metadata)


def _conversation_items(body: bytes, _context: ParseContext) -> ConversationBody:
    value = load_json_object(body)
    request = validate(ConversationItemsRequest, value)
    if not request.items:
        raise InvalidRequestError("Invalid `items`: 1 item or more is expected.", param="items")
    return _conversation_body(request, value, request.items)


def _conversation_body(
    request: RequestModel,
    value: dict[str, Any],
    items: list[dict[str, Any]],
    metadata: dict[str, str] | None = None,
) -> ConversationBody:
    whole = conversation_items(items)
    ignored = unknown_fields(request, value)
    labels = dump_json(metadata or {}, "metadata")
    return ConversationBody(dump_json(whole, "items"), labels, ignored)


def _completion(body: bytes, context: ParseContext) -> GenerationBody:
    request, ignored = parse_completion_body(body)
    job = completion_job(request, context.defaults(request.model))
    num_ids = sum(len(one.prompt_token_ids or ()) for one in job.prepares)
    if num_ids > MANY_IDS:
        offer = context.offer(request.model)
        if offer is not None:
            check_prompts(job.prepares, offer)
        _check_number(num_ids, "prompt")
    return GenerationBody(job, ignored)


def _embedding(body: bytes, context: ParseContext) -> EmbeddingBody:
    request, ignored = parse_embedding_body(body)
    texts, token_ids = request.texts, request.token_ids
    offer = context.offer(request.model)
    known = () if offer is None else offer.prompt_names
    message = bridge.embedding_inputs(
        texts,
        token_ids,
        request.dimensions,
        request.truncate_prompt_tokens,
        prompt_name_of(request.prompt_name, request.input_type, known),
    )
    num_ids = sum(map(len, token_ids))
    if num_ids > MANY_IDS:
        if offer is not None:
            check_inputs(message, offer)
        _check_number(num_ids, "input")
    return EmbeddingBody(
        model=request.model,
        message=message,
        encoding=request.encoding_format or "float",
        num_bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in texts),
        num_ids=num_ids,
        num_inputs=len(texts) + len(token_ids),
        ignored=ignored,
        end_user=named_end_user(request.user),
        prompt_name=request.prompt_name,
        input_type=request.input_type,
    )


def _decision(body: bytes, _context: ParseContext) -> DecisionBody:
    return decision_body(body)


def _systemone(body: bytes, _context: ParseContext) -> DecisionBody:
    return systemone_body(body)


def _rerank(body: bytes, context: ParseContext) -> RerankBody:
    return rerank_body(body, context.offer)


def _score(body: bytes, context: ParseContext) -> RerankBody:
    return score_body(body, context.offer)


def _classify(body: bytes, _context: ParseContext) -> ClassifyBody:
    return classify_body(body)


def _check_number(num_ids: int, param: str) -> None:
    if num_ids > MAX_TOKEN_IDS:
        raise InvalidRequestError(
            f"Invalid `{param}`: there are {num_ids} token ids; at most {MAX_TOKEN_IDS} are "
            "accepted.",
            param=param,
        )


def _tokenize(body: bytes, _context: ParseContext) -> TokenizeBody:
    request, value, ignored = parse_tokenize_body(body)
    return TokenizeBody(
        request.model, tokenize_question(request, value), bool(request.return_token_strs), ignored
    )


def _detokenize(body: bytes, _context: ParseContext) -> DetokenizeBody:
    request, ignored = parse_detokenize_body(body)
    return DetokenizeBody(request.model, bridge.token_ids(tuple(request.tokens)), ignored)


def _parse(body: bytes, _context: ParseContext) -> ParseBody:
    value = load_json_object(body)
    refuse_unknown(ParseRequest, value)
    request = validate(ParseRequest, value)
    return ParseBody(
        text=request.text,
        model=request.model,
        format=request.format,
        reasoning_format=request.reasoning_format,
        tools_json=(
            None if request.tools is None else dump_json(clean_tools(value["tools"]), "tools")
        ),
        custom_tools=custom_names(request.tools),
        is_parallel=request.parallel_tool_calls is not False,
        prompt_tail=request.prompt_tail or "",
        ignored=unknown_fields(request, value),
    )


def _execute(body: bytes, _context: ParseContext) -> ExecuteBody:
    value = load_json_object(body)
    request = known_only(ExecuteRequest, value)
    return ExecuteBody(request.name, _arguments_json(request.arguments))


def _mcp(body: bytes, _context: ParseContext) -> McpMessage:
    return parse_message(body)


def _arguments_json(arguments: dict[str, Any] | str) -> str:
    """Arguments as the text of a JSON object without line breaks.

    Raises:
        InvalidRequestError: Their text is no JSON object.
    """
    value: Any = arguments
    if isinstance(value, str):
        try:
            value = orjson.loads(value or "{}")
        except orjson.JSONDecodeError as error:
            raise InvalidRequestError(
                f"`arguments` is not valid JSON: {error}.", param="arguments"
            ) from error
    if not isinstance(value, dict):
        raise InvalidRequestError("`arguments` must be a JSON object.", param="arguments")
    written = dump_json(value, "arguments")
    # A text stays what it is, and so do its numbers; in JSON no string holds a line break.
    given = arguments if isinstance(arguments, str) else ""
    return given.replace("\n", " ").replace("\r", " ") or written


CHAT: Final = BodyKind("chat", _chat, GenerationBody)
COMPLETION: Final = BodyKind("completion", _completion, GenerationBody)
MESSAGES: Final = BodyKind("messages", _messages, GenerationBody)
COUNT_TOKENS: Final = BodyKind("count_tokens", _count_tokens, TokenizeBody)
RESPONSES: Final = BodyKind("responses", _responses, AskedResponse)
CONTINUED_RESPONSES: Final = BodyKind("continued_responses", _continued_responses, AskedResponse)
SOCKET: Final = BodyKind("socket", _socket, SocketBody)
CONTINUED_SOCKET: Final = BodyKind("continued_socket", _continued_socket, SocketBody)
INPUT_TOKENS: Final = BodyKind("input_tokens", _input_tokens, InputTokensBody)
CONTINUED_INPUT_TOKENS: Final = BodyKind(
    "continued_input_tokens", _continued_input_tokens, InputTokensBody
)
COMPACT: Final = BodyKind("compact", _compact, CompactBody)
CONTINUED_COMPACT: Final = BodyKind("continued_compact", _continued_compact, CompactBody)
CONVERSATION: Final = BodyKind("conversation", _conversation, ConversationBody)
CONVERSATION_UPDATE: Final = BodyKind("conversation_update", _conversation_update, ConversationBody)
CONVERSATION_ITEMS: Final = BodyKind("conversation_items", _conversation_items, ConversationBody)
EMBEDDING: Final = BodyKind("embedding", _embedding, EmbeddingBody)
DECISION: Final = BodyKind("decision", _decision, DecisionBody)
SYSTEMONE: Final = BodyKind("systemone", _systemone, DecisionBody)
RERANK: Final = BodyKind("rerank", _rerank, RerankBody)
SCORE: Final = BodyKind("score", _score, RerankBody)
CLASSIFY: Final = BodyKind("classify", _classify, ClassifyBody)
TOKENIZE: Final = BodyKind("tokenize", _tokenize, TokenizeBody)
DETOKENIZE: Final = BodyKind("detokenize", _detokenize, DetokenizeBody)
PARSE: Final = BodyKind("parse", _parse, ParseBody)
EXECUTE: Final = BodyKind("execute", _execute, ExecuteBody)
MCP: Final = BodyKind("mcp", _mcp, McpMessage)

KINDS: Final[Mapping[str, BodyKind[Any]]] = {
    kind.name: kind
    for kind in (
        *(CHAT, COMPLETION, MESSAGES, COUNT_TOKENS, EMBEDDING),
        *(RESPONSES, CONTINUED_RESPONSES, INPUT_TOKENS, CONTINUED_INPUT_TOKENS),
        *(SOCKET, CONTINUED_SOCKET),
        *(COMPACT, CONTINUED_COMPACT, CONVERSATION, CONVERSATION_UPDATE, CONVERSATION_ITEMS),
        *(DECISION, SYSTEMONE, RERANK, SCORE, CLASSIFY),
        *(TOKENIZE, DETOKENIZE, PARSE, EXECUTE, MCP),
    )
}
