"""The bodies of POST /v1/responses and of the routes below it."""

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from gateway.errors import UnsupportedFieldError
from gateway.http.openresponses.item_shapes import ITEM, TOOL, TOOL_CHOICE
from gateway.http.schemas.base.body import (
    RequestModel,
    few_labels,
    field_error,
    load_json_object,
    unknown_fields,
    validate,
)
from gateway.http.schemas.base.core_schemas import NullIsDefault
from gateway.http.schemas.base.ranges import MAX_MESSAGES, MAX_TOOLS, ranged
from gateway.http.schemas.base.shapes import MAX_LISTED_FIELDS, ByType, ListOf, fields
from protocol.wire.sampling_ranges import MAX_INT32

MAX_TEXT_CHARACTERS: Final = 10_485_760
LOGPROBS: Final = "message.output_text.logprobs"
BY_CONTEXT: Final = 0
"""The threshold of a compaction that no request has given: it follows from the model's context."""
INCLUDED: Final = frozenset(
    {
        *(LOGPROBS, "reasoning.encrypted_content"),
        # Of what no model here does or reads.
        *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
        *("code_interpreter_call.outputs", "computer_call_output.output.image_url"),
        "message.input_image.image_url",
    }
)
"""What `include` may name."""

HARMLESS_FIELDS: Final[dict[str, str]] = {
    "background_options": "there is one way to run in the background",
    "client_metadata": "labels for the caller's own records",
    "continuation_id": "names nothing here",
    "cyber": "there is one mode",
    "image": "models here answer in text",
    "personality": "models here have no styles to choose from",
    "prompt_cache_key": "a routing hint; nothing depends on it",
    "prompt_cache_options": "a caching hint; nothing depends on it",
    "prompt_cache_retention": "a caching hint; nothing depends on it",
    "safety_identifier": "names an end user; it counts with keys that may do so",
    "service_tier": "there is one tier",
    "stream_options": "no padding is sent",
    "user": "names an end user; it counts with keys that may do so",
}
"""Accepted and without effect: a client loses nothing when they do nothing."""
REFUSED_FIELDS: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "access_programs": ((), "there are none"),
    "completion_window": (("soonest",), "every response is made at once"),
    "moderation": ((), "there is no moderation model"),
    "prompt": ((), "there are no stored prompts"),
}
"""Refused by name unless null or one of the neutral values."""

ModelName = Annotated[str, Field(min_length=1, max_length=512)]


class Reasoning(RequestModel):
    """How much a model reasons."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    # Harmless: both are about reasoning that other servers keep.
    context: Any = None
    mode: Any = None
    generate_summary: Any = None


class TextConfig(RequestModel):
    """What the text must be."""

    shapes = {  # noqa: RUF012
        "format": ByType(
            {
                "text": fields("type"),
                "json_object": fields("type", "schema"),
                "json_schema": fields("type", "name", "description", "schema", "strict"),
            }
        )
    }

    format: dict[str, Any] | None = None
    # For templates that read it; clients send it to models of every kind.
    verbosity: Literal["low", "medium", "high"] | None = None


class ContextManagement(RequestModel):
    """From how many tokens of a prompt on its beginning is summed up."""

    type: Literal["compaction"]
    compact_threshold: Annotated[int | None, Field(ge=1, le=MAX_INT32)] = None


class ConversationName(RequestModel):
    """A conversation by its id."""

    id: str


class ContinuedRequest(RequestModel):
    """What every request has that goes on from something stored."""

    shapes = {"input": ListOf(ITEM)}  # noqa: RUF012

    # It may be empty where something is gone on from.
    input: Annotated[str | list[dict[str, Any]], NullIsDefault()] = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: str | None = None

    @model_validator(mode="after")
    def _something_to_read(self) -> "ContinuedRequest":
        given = self.input
        is_continued = self.previous_response_id is not None or self.conversation_id is not None
        if isinstance(given, list) and not (not is_continued) <= len(given) <= MAX_MESSAGES:
            raise field_error(f"1 to {MAX_MESSAGES} items are expected.", "input")
        if isinstance(given, str) and len(given) > MAX_TEXT_CHARACTERS:
            raise field_error(f"at most {MAX_TEXT_CHARACTERS} characters are accepted.", "input")
        return self

    @property
    def conversation_id(self) -> str | None:
        """The conversation that it belongs to."""
        return None

    @property
    def truncates(self) -> bool:
        """Whether the oldest items may be left out."""
        return False


class HarmlessFields(RequestModel):
    """The fields of `HARMLESS_FIELDS`."""

    background_options: Any = None
    client_metadata: Any = None
    continuation_id: Any = None
    cyber: Any = None
    image: Any = None
    personality: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: str | None = None
    service_tier: Any = None
    stream_options: Any = None
    user: Any = None


class CompactRequest(ContinuedRequest, HarmlessFields):
    """A context that is to become shorter."""

    model: ModelName
    # Of the request that the context is for; clients send them along. A summary calls no tools and
    # is a text without reasoning, so nothing depends on them.
    tools: Any = None
    parallel_tool_calls: Any = None
    reasoning: Any = None
    text: Any = None


class InputTokensRequest(ContinuedRequest):
    """An input whose tokens are counted, by the only model where none is named."""

    shapes = ContinuedRequest.shapes | {"tools": ListOf(TOOL), "tool_choice": TOOL_CHOICE}

    model: ModelName | None = None
    conversation: str | ConversationName | None = None
    truncation: Literal["auto", "disabled"] | None = None
    tools: Annotated[list[dict[str, Any]] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None

    @model_validator(mode="after")
    def _goes_on_from_one_thing(self) -> "InputTokensRequest":
        if self.conversation is not None and self.previous_response_id is not None:
            raise field_error(
                "it can't go with `conversation`, which has its own items.", "previous_response_id"
            )
        return self

    @property
    def conversation_id(self) -> str | None:
        """The conversation that it belongs to."""
        named = self.conversation
        return named.id if isinstance(named, ConversationName) else named

    @property
    def truncates(self) -> bool:
        """Whether the oldest items may be left out."""
        return self.truncation == "auto"

    @property
    def effort(self) -> str | None:
        """Of reasoning."""
        return None if self.reasoning is None else self.reasoning.effort


class ResponsesRequest(InputTokensRequest, HarmlessFields):
    """Items to answer."""

    model: ModelName
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    max_output_tokens: int | None = ranged("max_tokens")
    temperature: float | None = ranged("temperature")
    top_p: float | None = ranged("top_p")
    presence_penalty: float | None = ranged("presence_penalty")
    frequency_penalty: float | None = ranged("frequency_penalty")
    top_logprobs: int | None = ranged("top_logprobs")
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    max_tool_calls: Annotated[int | None, Field(ge=0, le=MAX_INT32)] = None
    context_management: Annotated[list[ContextManagement] | None, Field(max_length=1)] = None

    _few_labels = field_validator("metadata")(few_labels)

    @model_validator(mode="after")
    def _a_conversation_is_stored(self) -> "ResponsesRequest":
        if self.conversation is not None and self.store is False:
            raise field_error("a conversation is stored.", "store")
        return self

    @model_validator(mode="after")
    def _background_is_stored(self) -> "ResponsesRequest":
        if self.background and self.store is False:
            raise field_error("it needs `store`: its answer is fetched later.", "background")
        return self

    @property
    def compact_threshold(self) -> int | None:
        """Tokens of a prompt from which on its beginning is summed up.

        `BY_CONTEXT` where the context of the model says it; None for any number.
        """
        entries = self.context_management
        return (entries[0].compact_threshold or BY_CONTEXT) if entries else None

    @property
    def shows_logprobs(self) -> bool:
        """Whether the answer tells log probabilities."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())


class ConversationRequest(RequestModel):
    """A conversation that begins."""

    shapes = {"items": ListOf(ITEM)}  # noqa: RUF012

    items: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None = None

    _few_labels = field_validator("metadata")(few_labels)


class ConversationUpdateRequest(RequestModel):
    """New labels of a conversation."""

    metadata: dict[str, str] | None

    _few_labels = field_validator("metadata")(few_labels)


class ConversationItemsRequest(RequestModel):
    """Items that are added to a conversation."""

    shapes = {"items": ListOf(ITEM)}  # noqa: RUF012

    items: list[dict[str, Any]]


AskedT = TypeVar("AskedT", bound=ContinuedRequest)


def parse(model: type[AskedT], body: bytes) -> tuple[AskedT, list[str]]:
    """The checked request and the fields that have no meaning here.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    for name in REFUSED_FIELDS.keys() & value.keys():
        neutral, reason = REFUSED_FIELDS[name]
        if value[name] is not None and value[name] not in neutral:
            raise UnsupportedFieldError(f"`{name}` is not supported: {reason}.", param=name)
    request = validate(model, value)
    others = frozenset(REFUSED_FIELDS)
    if model is InputTokensRequest:
        others |= ResponsesRequest.known_fields  # the whole request may come to be counted
    ignored = unknown_fields(request, value, others)
    if isinstance(request, ResponsesRequest):
        asked = enumerate(request.include or ())
        ignored += [f"include[{index}]" for index, name in asked if name not in INCLUDED]
    return request, ignored[:MAX_LISTED_FIELDS]
