"""The messages and tools of a chat request."""

from itertools import islice
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gateway.errors import UnsupportedFieldError
from gateway.http.schemas.body import MAX_LISTED_FIELDS, RequestModel, field_error, unknown_keys
from gateway.http.schemas.ranges import (
    MAX_CONTENT_PARTS,
    MAX_MESSAGES,
    MAX_TOOL_CALLS,
    MAX_TOOL_NAME_CHARACTERS,
)

MessageRole = Literal["system", "developer", "user", "assistant", "tool"]

REFUSED_MESSAGE_FIELDS: Final[dict[str, str]] = {
    "audio": "models here answer in text",
}
"""Documented by OpenAI for messages, refused by name unless null."""

_MEDIA_PARTS = frozenset({"image_url", "input_audio", "file", "video_url", "audio_url"})


# Every list of models stops at its first wrong item (`fail_fast`, or a validator before it):
# pydantic would otherwise keep an error for each of the millions that a body has room for.


class TextPart(RequestModel):
    """A piece of text content."""

    type: Literal["text"]
    text: str


class RefusalPart(RequestModel):
    """What an assistant said instead of an answer; it reaches the model as text."""

    type: Literal["refusal"]
    refusal: str


_PART_FIELDS = TextPart.known_fields | RefusalPart.known_fields


class FunctionCall(RequestModel):
    """The function that an assistant message called; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(RequestModel):
    """One call of an earlier assistant message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(RequestModel):
    """One message of the conversation."""

    role: MessageRole
    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    tool_calls: Annotated[
        list[ToolCall] | None, Field(max_length=MAX_TOOL_CALLS, fail_fast=True)
    ] = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise field_error("a string or a list of text parts is expected.")
        if len(value) > MAX_CONTENT_PARTS:
            raise field_error(f"at most {MAX_CONTENT_PARTS} content parts are accepted.")
        for index, part in enumerate(value):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "refusal" and info.data.get("role") == "assistant":
                if not isinstance(part.get("refusal"), str):
                    raise field_error("a string is expected.", f"[{index}].refusal")
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
            if self.content is None and not self.tool_calls and self.refusal is None:
                raise field_error("an assistant message needs content or tool_calls.", ".content")
        elif self.content is None:
            raise field_error(f"a {self.role} message needs content.", ".content")
        if self.role == "tool" and self.tool_call_id is None:
            raise field_error("a tool message needs the id of the call.", ".tool_call_id")
        if self.role != "assistant" and self.tool_calls:
            raise field_error("only assistant messages call tools.", ".tool_calls")
        return self


class FunctionDefinition(RequestModel):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Annotated[
        str, Field(min_length=1, max_length=MAX_TOOL_NAME_CHARACTERS, pattern=r"^[A-Za-z0-9_.-]+$")
    ]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestModel):
    """A tool that the model may call."""

    type: str
    function: FunctionDefinition

    @model_validator(mode="before")
    @classmethod
    def _functions_only(cls, value: Any) -> Any:
        if isinstance(value, dict):
            kind = value.get("type")
            if isinstance(kind, str) and kind != "function":
                raise field_error(
                    f"tools of type `{kind}` are not supported.", ".type", unsupported=True
                )
        return value


def refuse_message_fields(messages: Any) -> None:
    """Let no documented field of a message pass in silence when it is not served.

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


def unknown_message_keys(messages: list[dict[str, Any]]) -> list[str]:
    """Fields within messages that no schema knows, as `messages[0].field`."""
    known = ChatMessage.known_fields | REFUSED_MESSAGE_FIELDS.keys()
    unknown: list[str] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]."
        if not message.keys() <= known:
            unknown += unknown_keys(message, known, where)
        content = message.get("content")
        if isinstance(content, list):
            unknown += _unknown_in_list(content, _PART_FIELDS, f"{where}content")
        calls = message.get("tool_calls")
        if calls:
            unknown += _unknown_in_list(calls, ToolCall.known_fields, f"{where}tool_calls")
            for number, call in enumerate(calls):
                prefix = f"{where}tool_calls[{number}].function."
                unknown += unknown_keys(call["function"], FunctionCall.known_fields, prefix)
        if len(unknown) >= MAX_LISTED_FIELDS:
            break
    return unknown


def unknown_tool_keys(tools: list[dict[str, Any]]) -> list[str]:
    """Fields within tools that no schema knows, as `tools[0].field`."""
    unknown = _unknown_in_list(tools, Tool.known_fields, "tools")
    for index, tool in enumerate(tools):
        prefix = f"tools[{index}].function."
        unknown += unknown_keys(tool["function"], FunctionDefinition.known_fields, prefix)
    return unknown


def _unknown_in_list(items: list[dict[str, Any]], known: frozenset[str], where: str) -> list[str]:
    unknown: list[str] = []
    for index, item in enumerate(items):
        if not item.keys() <= known and len(unknown) < MAX_LISTED_FIELDS:
            unknown += unknown_keys(item, known, f"{where}[{index}].")
    return unknown


def clean_tools(tools: list[dict[str, Any]], *, with_strict: bool = False) -> list[dict[str, Any]]:
    """The tools as an engine gets them: what has no meaning there must not reach the prompt.

    Args:
        tools: Checked already.
        with_strict: As a parser gets them, who enforces strict ones.
    """
    names = ("name", "description", "parameters", *(("strict",) if with_strict else ()))
    return [
        {
            "type": "function",
            "function": {
                name: tool["function"][name]
                for name in names
                if tool["function"].get(name) is not None
            },
        }
        for tool in tools
    ]


def clean_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with known, non-null fields only, as an engine gets them.

    Templates know parts of text alone, so a refusal becomes one.
    """
    return [
        {
            key: _as_text_parts(value) if key == "content" and isinstance(value, list) else value
            for key, value in message.items()
            if value is not None and key in ChatMessage.known_fields
        }
        for message in messages
    ]


def _as_text_parts(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part["refusal"]} if part["type"] == "refusal" else part
        for part in parts
    ]
