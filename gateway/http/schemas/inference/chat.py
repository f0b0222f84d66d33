"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gateway.errors import InvalidRequestError
from gateway.http.schemas.base.body import field_error, load_json_object, unknown_fields, validate
from gateway.http.schemas.base.fields import (
    CHAT_REFUSED_FIELDS,
    EXTENSION_REFUSED_FIELDS,
    refuse_fields,
)
from gateway.http.schemas.base.ranges import (
    MAX_MESSAGES,
    MAX_TEMPLATE_CHARACTERS,
    ranged,
)
from gateway.http.schemas.inference.messages import (
    ChatMessage,
    Tools,
    refuse_message_fields,
)
from gateway.http.schemas.inference.sampling import GenerationRequest
from gateway.http.schemas.inference.structured import StructuredFields
from gateway.http.schemas.tools.functions import (
    FUNCTION_FIELDS,
    in_words_of_functions,
    places_of_functions,
    with_tools,
)
from gateway.http.schemas.tools.tool_choice import (
    CHOICE_SHAPE,
    allowed_tools,
    checked_tool_choice,
    named_tool,
)

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]
MAX_DOCUMENTS = 1024

_REFUSED = CHAT_REFUSED_FIELDS | EXTENSION_REFUSED_FIELDS
_NAMED_ELSEWHERE = frozenset(_REFUSED) | FUNCTION_FIELDS


class ChatRequest(GenerationRequest):
    """A conversation to go on with."""

    shapes = StructuredFields.shapes | {"tool_choice": CHOICE_SHAPE}

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = ranged("max_completion_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = ranged("top_logprobs")
    tools: Tools = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    thinking_token_budget: int | None = ranged("thinking_token_budget")
    include_reasoning: bool | None = None
    verbosity: Verbosity | None = None
    documents: Annotated[list[dict[str, Any]] | None, Field(max_length=MAX_DOCUMENTS)] = None
    chat_template: Annotated[
        str | None, Field(min_length=1, max_length=MAX_TEMPLATE_CHARACTERS)
    ] = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # Harmless, see `fields.HARMLESS_FIELDS`.
    prediction: dict[str, Any] | None = None

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _choice_served(cls, value: Any) -> Any:
        return checked_tool_choice(value)

    @model_validator(mode="after")
    def _consistent_chat(self) -> "ChatRequest":
        if (
            self.max_tokens is not None
            and self.max_completion_tokens is not None
            and self.max_tokens != self.max_completion_tokens
        ):
            raise field_error("it contradicts `max_completion_tokens`.", "max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise field_error("it needs `logprobs`.", "top_logprobs")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise field_error("it needs `tools`.", "tool_choice")
        if self.tool_choice is not None:
            names = {tool.name for tool in self.tools or ()}
            for name in (self.named_tool, *(self.allowed_tools or ())):
                if name is not None and name not in names:
                    raise field_error(f"there is no tool `{name[:100]}` in `tools`.", "tool_choice")
        if self.continue_final_message and self.add_generation_prompt:
            raise field_error("it contradicts `add_generation_prompt`.", "continue_final_message")
        last = self.messages[-1]
        if self.continue_final_message and (last.role != "assistant" or last.tool_calls):
            raise field_error(
                "the last message must be text of the assistant's to be continued.",
                "continue_final_message",
            )
        return self

    @property
    def output_limit(self) -> int | None:
        """Output tokens at most, None when the client set no limit."""
        return self.max_completion_tokens if self.max_completion_tokens else self.max_tokens

    @property
    def named_tool(self) -> str | None:
        """The tool that `tool_choice` names, if it names one."""
        return named_tool(self.tool_choice)

    @property
    def allowed_tools(self) -> tuple[str, ...] | None:
        """The tools that `tool_choice` lets the model see; None for all."""
        return allowed_tools(self.tool_choice)

    @property
    def num_top_logprobs(self) -> int | None:
        """Likely tokens to be reported beside each output token; None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


def parse_chat_body(body: bytes) -> tuple[ChatRequest, dict[str, Any], list[str]]:
    """The checked request, the JSON object it came from, and the fields that no schema knows.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = with_tools(load_json_object(body))
    refuse_fields(value, _REFUSED)
    refuse_message_fields(value.get("messages"))
    if value.get("tools") == []:
        raise InvalidRequestError(
            "Invalid `tools`: the list is empty; leave it out.", param="tools"
        )
    try:
        request = validate(ChatRequest, value)
    except InvalidRequestError as error:
        raise in_words_of_functions(error, value) from None
    unknown = unknown_fields(request, value, _NAMED_ELSEWHERE)
    return request, value, places_of_functions(unknown, value)
