"""The bodies of POST /v1/messages and /v1/messages/count_tokens."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from gateway.errors import UnsupportedFieldError
from gateway.http.anthropic.client_tools import CLIENT_TOOLS
from gateway.http.schemas.base.body import (
    RequestModel,
    field_error,
    load_json_object,
    unknown_fields,
)
from gateway.http.schemas.base.body import validate as validated
from gateway.http.schemas.base.ranges import MAX_MESSAGES, MAX_TOOLS
from gateway.http.schemas.base.shapes import ByType, ListOf, fields, with_neutral

MAX_TOKENS: Final = 2**31 - 1
HARMLESS_FIELDS: Final[dict[str, str]] = {
    "betas": "the client sends a header of this name",
    "cache_control": "prompts are cached by themselves",
    "context_management": "histories are taken as they are sent",
    "diagnostics": "nothing is diagnosed",
    "fallback_credit_token": "cached prompts are found without one",
    "fallbacks": "no model here refuses what another one would answer",
    "inference_geo": "there is one place",
    "metadata": "its `user_id` names an end user; it counts with keys that may do so",
    "service_tier": "there is one tier",
    "speed": "there is one speed",
    "user_profile_id": "names an end user",
    "workspace_id": "the key says whose request it is",
}
"""Accepted and without effect: a client loses nothing when they do nothing."""
REFUSED_FIELDS: Final[dict[str, str]] = {
    "billing_policy": "the key says who pays",
    "compaction": "this API makes no summaries; `POST /v1/responses/compact` does",
    "container": "there are no containers for code",
    "mcp_servers": "this server calls no tools of others",
    "thread": "no conversations are held here; send all messages",
}
_NEUTRAL: Final[dict[str, Any]] = {
    "billing_policy": {"type": "billing_policy", "bill_to": "self"},
    "mcp_servers": [],
}
"""Values that ask for nothing."""


_TEXTS: Final = ListOf(ByType({"text": fields("type", "text", "cache_control", "citations")}))
# Answers cite nothing. The citations of a text are those of an earlier answer.
_CITED: Final = {"citations": ({"enabled": False},)}
_SHOWN: Final = {
    "text": fields("type", "text", "cache_control", "citations"),
    "tool_reference": fields("type", "tool_name", "cache_control"),
    "search_result": with_neutral(
        fields("type", "title", "source", "cache_control", content=_TEXTS), _CITED
    ),
    "document": with_neutral(
        fields(
            *("type", "title", "context", "cache_control"),
            source=ByType(
                {
                    "text": fields("type", "media_type", "data"),
                    "content": fields("type", content=_TEXTS),
                }
            ),
        ),
        _CITED,
    ),
}
# Of how a call came about (`caller`, `toolset_name`) nothing depends.
_BLOCKS: Final = ListOf(
    ByType(
        {
            **_SHOWN,
            "thinking": fields("type", "thinking", "signature"),
            "redacted_thinking": fields("type", "data"),
            "tool_use": fields(
                *("type", "id", "name", "input", "cache_control", "caller", "toolset_name")
            ),
            "tool_result": fields(
                *("type", "tool_use_id", "is_error", "cache_control", "toolset_name"),
                content=ListOf(ByType(_SHOWN)),
            ),
        }
    )
)
_ANY_TOOL: Final = ("type", "name", "strict", "cache_control")
# The model alone calls tools, and sees all of them.
_OF_TOOLS: Final = {
    "allowed_callers": (["direct"],),
    "defer_loading": (False,),
    "input_examples": ([],),
}
_TOOL: Final = ByType(
    {
        "custom": with_neutral(
            fields(*_ANY_TOOL, "description", "input_schema", "eager_input_streaming"), _OF_TOOLS
        ),
        **dict.fromkeys(CLIENT_TOOLS, with_neutral(fields(*_ANY_TOOL), _OF_TOOLS)),
        "text_editor_20250728": with_neutral(fields(*_ANY_TOOL, "max_characters"), _OF_TOOLS),
    },
    default="custom",
)
_FORMAT: Final = fields("type", "schema")


class Thinking(RequestModel):
    """Whether the model thinks before it answers, and whether that is shown."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(default=None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


class OutputConfig(RequestModel):
    """How much effort an answer is worth, and what it must be."""

    shapes = {"format": _FORMAT}  # noqa: RUF012

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: dict[str, Any] | None = None


class CountTokensRequest(RequestModel):
    """A conversation whose tokens are counted."""

    shapes = {  # noqa: RUF012
        "system": _BLOCKS,
        "messages": ListOf(fields("role", content=_BLOCKS)),
        "tools": ListOf(_TOOL),
        "tool_choice": fields("type", "name", "disable_parallel_tool_use"),
        "output_format": _FORMAT,
    }

    model: Annotated[str, Field(min_length=1, max_length=512)]
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[dict[str, Any]] | None = None
    tools: Annotated[list[dict[str, Any]] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None
    # Harmless, see `HARMLESS_FIELDS`.
    betas: Any = None
    cache_control: Any = None
    context_management: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None

    @field_validator("output_format")
    @classmethod
    def _a_known_format(cls, value: Any) -> Any:
        return checked_format(value)

    @field_validator("output_config")
    @classmethod
    def _with_a_known_format(cls, value: OutputConfig | None) -> OutputConfig | None:
        if value is not None and value.format is not None:
            checked_format(value.format, ".format")
        return value

    @property
    def thinks(self) -> bool:
        """Whether reasoning is switched on; where the client says nothing it is not."""
        return self.thinking is not None and self.thinking.type != "disabled"

    @property
    def shows_thinking(self) -> bool:
        """Whether the answer tells the reasoning."""
        return self.thinks and self.thinking is not None and self.thinking.display != "omitted"

    @property
    def wanted_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the text must have."""
        wanted = self.output_format
        if wanted is None and self.output_config is not None:
            wanted = self.output_config.format
        schema: dict[str, Any] | None = None if wanted is None else wanted["schema"]
        return schema


class MessagesRequest(CountTokensRequest):
    """A conversation to go on with; `max_tokens` 0 only reads it."""

    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    # Harmless, see `HARMLESS_FIELDS`.
    diagnostics: Any = None
    fallback_credit_token: Any = None
    fallbacks: Any = None
    inference_geo: Any = None
    metadata: Any = None
    service_tier: Any = None

    @property
    def end_user(self) -> str | None:
        """For whom the request is, as `metadata.user_id` says."""
        named = self.metadata.get("user_id") if isinstance(self.metadata, dict) else None
        return named if isinstance(named, str) else None


def checked_format(value: Any, suffix: str = "") -> Any:
    """A wanted form of the text.

    Raises:
        PydanticCustomError: It is none.
    """
    if value is None:
        return None
    if not isinstance(value, dict) or value.get("type") != "json_schema":
        raise field_error("it must be `json_schema`.", f"{suffix}.type")
    if not isinstance(value.get("schema"), dict):
        raise field_error("must be an object.", f"{suffix}.schema")
    return value


def parse(
    model: type[MessagesRequest] | type[CountTokensRequest], body: bytes
) -> tuple[Any, list[str]]:
    """The checked request and the fields that no schema knows.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    for name in REFUSED_FIELDS.keys() & value.keys():
        # What is counted is the conversation as it was sent.
        is_harmless = name == "compaction" and model is CountTokensRequest
        if value[name] is not None and value[name] != _NEUTRAL.get(name) and not is_harmless:
            raise UnsupportedFieldError(
                f"`{name}` is not supported: {REFUSED_FIELDS[name]}.", param=name
            )
    request = validated(model, value)
    # Every field of the larger request may come to be counted, too.
    others = MessagesRequest.known_fields | REFUSED_FIELDS.keys()
    return request, unknown_fields(request, value, others)
