"""The messages and tools of a chat request."""

from itertools import islice
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from gateway.errors import UnsupportedFieldError
from gateway.http.schemas.base.body import RequestModel, field_error
from gateway.http.schemas.base.core_schemas import NullIsDefault
from gateway.http.schemas.base.ranges import (
    MAX_CONTENT_PARTS,
    MAX_MESSAGES,
    MAX_TOOL_CALLS,
    MAX_TOOLS,
)
from gateway.http.schemas.tools.custom_tools import (
    GRAMMAR,
    CustomCall,
    CustomDefinition,
    ToolName,
    check_grammars,
    function_of_call,
    function_of_tool,
)

MessageRole = Literal["system", "developer", "user", "assistant", "tool"]

REFUSED_MESSAGE_FIELDS: Final[dict[str, str]] = {
    "audio": "models here answer in text",
}
"""Documented by OpenAI for messages, refused by name unless null."""

_MEDIA_PARTS = frozenset({"image_url", "input_audio", "file", "video_url", "audio_url"})


class TextPart(RequestModel):
    """A piece of text content."""

    type: Literal["text"]
    text: str
    # Harmless: caches find equal beginnings by themselves.
    prompt_cache_breakpoint: Any = None


class RefusalPart(RequestModel):
    """What an assistant said instead of an answer; it reaches the model as text."""

    type: Literal["refusal"]
    refusal: str


class FunctionCall(RequestModel):
    """The function that an assistant message called.

    `arguments` is JSON text; other clients' histories hold objects, nothing, or text that was cut.
    """

    name: str
    arguments: str | dict[str, Any] | None


class ToolCall(RequestModel):
    """One call of an earlier assistant message, of a function or of a custom tool."""

    id: str
    type: Annotated[Literal["function", "custom"], NullIsDefault()] = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None

    @model_validator(mode="after")
    def _says_what_was_called(self) -> "ToolCall":
        _need_its_part(self)
        return self


class ChatMessage(RequestModel):
    """One message of the conversation."""

    refused_fields = frozenset(REFUSED_MESSAGE_FIELDS)

    role: MessageRole
    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall] | None, Field(max_length=MAX_TOOL_CALLS)] = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise field_error("must be a string or a list of text parts.")
        if len(value) > MAX_CONTENT_PARTS:
            raise field_error(f"at most {MAX_CONTENT_PARTS} content parts are accepted.")
        for index, part in enumerate(value):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "refusal" and info.data.get("role") == "assistant":
                if not isinstance(part.get("refusal"), str):
                    raise field_error("must be a string.", f"[{index}].refusal")
                continue
            if isinstance(kind, str) and (kind in _MEDIA_PARTS or kind == "refusal"):
                raise field_error(
                    f"content parts of type `{kind}` are not supported; send `text` parts.",
                    f"[{index}].type",
                    unsupported=True,
                )
            if kind != "text" or not isinstance(part.get("text"), str):
                raise field_error(
                    'every content part must be {"type": "text", "text": "…"}.', f"[{index}]"
                )
        return value

    @model_validator(mode="after")
    def _complete_for_its_role(self) -> "ChatMessage":
        if self.role == "assistant":
            said = (self.content, self.refusal, self.reasoning_content)
            if not self.tool_calls and all(one is None for one in said):
                raise field_error("an assistant message needs content or tool_calls.", ".content")
        elif self.content is None and self.role != "tool":
            raise field_error(f"a {self.role} message needs content.", ".content")
        if self.role == "tool" and self.tool_call_id is None:
            raise field_error("a tool message needs the id of the call.", ".tool_call_id")
        if self.role != "assistant" and self.tool_calls:
            raise field_error("only assistant messages call tools.", ".tool_calls")
        return self


class FunctionDefinition(RequestModel):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestModel):
    """A tool that the model may call: a function, or one whose input is text."""

    type: str
    function: FunctionDefinition | None = None
    custom: CustomDefinition | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_served_type(cls, value: Any) -> Any:
        if isinstance(value, dict):
            kind = value.get("type")
            if isinstance(kind, str) and kind not in ("function", "custom"):
                raise field_error(
                    f"tools of type `{kind[:100]}` are not supported.", ".type", unsupported=True
                )
        return value

    @model_validator(mode="after")
    def _says_what_it_is(self) -> "Tool":
        _need_its_part(self)
        return self

    @property
    def name(self) -> str:
        """What the model calls it by."""
        part = self.function if self.type == "function" else self.custom
        assert part is not None  # held by the validator
        return part.name


def _few_grammars(value: Any) -> Any:
    check_grammars(value)
    return value


Tools = Annotated[
    list[Tool] | None, Field(min_length=1, max_length=MAX_TOOLS), BeforeValidator(_few_grammars)
]
"""The tools of a request."""


def _need_its_part(tool: Tool | ToolCall) -> None:
    if (tool.function if tool.type == "function" else tool.custom) is None:
        raise field_error(f"must be an object for the type `{tool.type}`.", f".{tool.type}")


def tool_name(tool: dict[str, Any]) -> str:
    """The name of a tool as it was sent, checked already."""
    return str(tool[tool["type"]]["name"])


def custom_names(tools: list[Tool] | None) -> frozenset[str]:
    """The names of those tools whose input is text."""
    return frozenset(tool.name for tool in tools if tool.type == "custom") if tools else frozenset()


def refuse_message_fields(messages: Any) -> None:
    """Let no documented field of a message pass silently when it is not served.

    Args:
        messages: As they came, unchecked.

    Raises:
        UnsupportedFieldError: `messages[0].audio` or another one has a value.
    """
    if not isinstance(messages, list):
        return
    for index, message in enumerate(islice(messages, MAX_MESSAGES)):
        if not isinstance(message, dict):
            continue
        for name in REFUSED_MESSAGE_FIELDS.keys() & message.keys():
            if message[name] is not None:
                raise UnsupportedFieldError(
                    f"`messages[{index}].{name}` is not supported: {REFUSED_MESSAGE_FIELDS[name]}.",
                    param=f"messages[{index}].{name}",
                )


def clean_tools(tools: list[dict[str, Any]], *, with_strict: bool = False) -> list[dict[str, Any]]:
    """The tools as an engine gets them: what has no meaning there must not reach the prompt.

    Args:
        tools: Checked already.
        with_strict: As a parser gets them, who enforces strict ones.
    """
    names = ("name", "description", "parameters", *(("strict",) if with_strict else ()))
    functions = []
    for tool in tools:
        is_custom = tool["type"] == "custom"
        function = (
            function_of_tool(tool["custom"], is_enforced=with_strict)
            if is_custom
            else tool["function"]
        )
        # Only a custom tool's function has rules, which no client writes.
        told = (*names, GRAMMAR) if is_custom else names
        functions.append({name: function[name] for name in told if function.get(name) is not None})
    return [{"type": "function", "function": function} for function in functions]


def clean_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with known, non-null fields only, as an engine gets them.

    Templates know parts of text alone, so a refusal becomes one, and functions alone. What an
    assistant says that calls nothing is a text: a refusal, or none where it has only reasoned.
    """
    return [_clean_message(message) for message in messages]


def _clean_message(message: dict[str, Any]) -> dict[str, Any]:
    found = {
        key: _REWRITTEN[key](value) if key in _REWRITTEN and isinstance(value, list) else value
        for key, value in message.items()
        if value is not None and key in ChatMessage.known_fields
    }
    refusal = found.pop("refusal", "")
    is_silent = found["role"] == "assistant" and not found.get("content")
    if is_silent and (refusal or not found.get("tool_calls")):
        found["content"] = refusal
    return found


def _as_functions(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_as_function(call) for call in calls]


def _as_function(call: dict[str, Any]) -> dict[str, Any]:
    kind = call.get("type", "function")
    if kind == "custom":
        return {"id": call["id"], "type": "function", "function": function_of_call(call["custom"])}
    return call if kind == "function" else {**call, "type": "function"}


def _as_text_parts(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part["refusal" if part["type"] == "refusal" else "text"]}
        for part in parts
    ]


_REWRITTEN: Final = {"content": _as_text_parts, "tool_calls": _as_functions}
