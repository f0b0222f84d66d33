"""From a body to what the rest of the gateway asks for it: one function a kind of body.

Each takes the bytes and a `ParseContext` and returns something small and typed, so that it may as
well run in a process of its own (`body_process.py`): parsing a large body is a few calls into C
that hold the interpreter for seconds.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import orjson

from gateway import bridge
from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.anthropic.convert import count_question, messages_job
from gateway.http.anthropic.schemas import CountTokensRequest, MessagesRequest
from gateway.http.anthropic.schemas import parse as parse_messages
from gateway.http.convert import NEUTRAL_DEFAULTS, chat_job, completion_job, tokenize_question
from gateway.http.openresponses.convert import ResponsesBody, responses_body
from gateway.http.openresponses.convert import count_question as count_input_question
from gateway.http.openresponses.schemas import InputTokensRequest, ResponsesRequest
from gateway.http.openresponses.schemas import parse as parse_responses
from gateway.http.schemas.body import dump_json, load_json_object, unknown_keys, validate
from gateway.http.schemas.chat import parse_chat_body
from gateway.http.schemas.completion import parse_completion_body
from gateway.http.schemas.embedding import EncodingFormat, parse_embedding_body
from gateway.http.schemas.messages import clean_tools, custom_names
from gateway.http.schemas.ranges import MAX_TOKEN_IDS
from gateway.http.schemas.tokenize import parse_detokenize_body, parse_tokenize_body
from gateway.http.schemas.tools import ExecuteRequest, ParseRequest
from gateway.request.end_users import named_end_user
from gateway.request.job import GenerationJob
from gateway.request.prompt_length import MANY_IDS, check_inputs, check_prompts
from protocol.wire.messages import Detokenize, Embed, EngineOffer, Prepare, SamplingDefaults

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class ParseContext:
    """What a body is read against.

    Attributes:
        offers: What the engines of each model serve; in the gateway it follows them.
        has_tools: Whether tool calling is on.
    """

    offers: Mapping[str, EngineOffer]
    has_tools: bool = True

    def defaults(self, model: str) -> SamplingDefaults:
        """What a model recommends; neutral for one that nobody serves."""
        offer = self.offers.get(model)
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


@dataclass(frozen=True, slots=True)
class GenerationBody:
    """Of /v1/chat/completions and /v1/completions.

    Attributes:
        ignored: Fields that no schema knows; here and in the others.
    """

    job: GenerationJob
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class EmbeddingBody:
    """Of /v1/embeddings.

    Attributes:
        num_bytes: UTF-8 bytes of all texts.
        num_ids: Token ids of all inputs that are some.
    """

    model: str
    message: Embed
    encoding: EncodingFormat
    num_bytes: int
    num_ids: int
    num_inputs: int
    ignored: list[str]
    end_user: str = ""


@dataclass(frozen=True, slots=True)
class TokenizeBody:
    """Of /tokenize."""

    model: str | None
    message: Prepare
    returns_strings: bool
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class DetokenizeBody:
    """Of /detokenize."""

    model: str | None
    message: Detokenize
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class ParseBody:
    """Of /v1/parse; the fields are those of `ParseRequest`.

    Attributes:
        custom_tools: Names of those among `tools` whose calls are told with a text as input.
    """

    text: str
    model: str | None
    format: str | None
    reasoning_format: str | None
    tools_json: str | None
    custom_tools: frozenset[str]
    is_parallel: bool
    prompt_tail: str


@dataclass(frozen=True, slots=True)
class ExecuteBody:
    """Of /v1/tools/execute.

    Attributes:
        arguments_json: A JSON object.
    """

    name: str
    arguments_json: str


def _chat(body: bytes, context: ParseContext) -> GenerationBody:
    request, value, ignored = parse_chat_body(body)
    if request.tools and not context.has_tools:
        raise UnsupportedFieldError("Tool calling is switched off on this server.", param="tools")
    return GenerationBody(chat_job(request, value, context.defaults(request.model)), ignored)


def _messages(body: bytes, context: ParseContext) -> GenerationBody:
    request, ignored = parse_messages(MessagesRequest, body)
    job, left_out = messages_job(request, context.defaults(request.model))
    if job.tools_json is not None and not context.has_tools:
        raise UnsupportedFieldError("Tool calling is switched off on this server.", param="tools")
    return GenerationBody(job, ignored + left_out)


def _count_tokens(body: bytes, _context: ParseContext) -> TokenizeBody:
    request, ignored = parse_messages(CountTokensRequest, body)
    question, left_out = count_question(request)
    return TokenizeBody(request.model, question, False, ignored + left_out)


def _responses(body: bytes, context: ParseContext) -> ResponsesBody:
    request, ignored = parse_responses(ResponsesRequest, body)
    found = responses_body(request, ignored, context.defaults(request.model))
    if found.job.tools_json is not None and not context.has_tools:
        raise UnsupportedFieldError("Tool calling is switched off on this server.", param="tools")
    return found


def _input_tokens(body: bytes, _context: ParseContext) -> TokenizeBody:
    request, ignored = parse_responses(InputTokensRequest, body)
    question, left_out = count_input_question(request)
    return TokenizeBody(request.model, question, False, ignored + left_out)


def _completion(body: bytes, context: ParseContext) -> GenerationBody:
    request, ignored = parse_completion_body(body)
    job = completion_job(request, context.defaults(request.model))
    num_ids = sum(len(one.prompt_token_ids or ()) for one in job.prepares)
    if num_ids > MANY_IDS:
        offer = context.offers.get(request.model)
        if offer is not None:
            check_prompts(job.prepares, offer)
        _check_number(num_ids, "prompt")
    return GenerationBody(job, ignored)


def _embedding(body: bytes, context: ParseContext) -> EmbeddingBody:
    request, ignored = parse_embedding_body(body)
    texts, token_ids = request.texts, request.token_ids
    message = bridge.embedding_inputs(
        texts, token_ids, request.dimensions, request.truncate_prompt_tokens
    )
    num_ids = sum(map(len, token_ids))
    if num_ids > MANY_IDS:
        offer = context.offers.get(request.model)
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
    )


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
    _refuse_unknown(value, ParseRequest.known_fields)
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
    )


def _execute(body: bytes, _context: ParseContext) -> ExecuteBody:
    value = load_json_object(body)
    _refuse_unknown(value, ExecuteRequest.known_fields)
    request = validate(ExecuteRequest, value)
    return ExecuteBody(request.name, _arguments_json(request.arguments))


def _arguments_json(arguments: dict[str, Any] | str) -> str:
    """Arguments as the text of a JSON object.

    Raises:
        InvalidRequestError: Their text is no JSON object.
    """
    value = arguments
    if isinstance(value, str):
        try:
            value = orjson.loads(value or "{}")
        except orjson.JSONDecodeError as error:
            raise InvalidRequestError(
                f"`arguments` is not valid JSON: {error}.", param="arguments"
            ) from error
    if not isinstance(value, dict):
        raise InvalidRequestError("`arguments` must be a JSON object.", param="arguments")
    return dump_json(value, "arguments")


def _refuse_unknown(value: Iterable[str], known: frozenset[str]) -> None:
    unknown = unknown_keys(value, known)
    if unknown:
        raise InvalidRequestError(f"Unknown field: `{unknown[0]}`.", param=unknown[0])


CHAT: Final = BodyKind("chat", _chat, GenerationBody)
COMPLETION: Final = BodyKind("completion", _completion, GenerationBody)
MESSAGES: Final = BodyKind("messages", _messages, GenerationBody)
COUNT_TOKENS: Final = BodyKind("count_tokens", _count_tokens, TokenizeBody)
RESPONSES: Final = BodyKind("responses", _responses, ResponsesBody)
INPUT_TOKENS: Final = BodyKind("input_tokens", _input_tokens, TokenizeBody)
EMBEDDING: Final = BodyKind("embedding", _embedding, EmbeddingBody)
TOKENIZE: Final = BodyKind("tokenize", _tokenize, TokenizeBody)
DETOKENIZE: Final = BodyKind("detokenize", _detokenize, DetokenizeBody)
PARSE: Final = BodyKind("parse", _parse, ParseBody)
EXECUTE: Final = BodyKind("execute", _execute, ExecuteBody)

KINDS: Final[Mapping[str, BodyKind[Any]]] = {
    kind.name: kind
    for kind in (
        *(CHAT, COMPLETION, MESSAGES, COUNT_TOKENS, RESPONSES, INPUT_TOKENS, EMBEDDING),
        *(TOKENIZE, DETOKENIZE, PARSE, EXECUTE),
    )
}
