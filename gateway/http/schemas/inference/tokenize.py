"""The bodies of POST /tokenize and /detokenize."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from gateway.http.schemas.base.body import (
    RequestModel,
    field_error,
    load_json_object,
    unknown_fields,
    validate,
)
from gateway.http.schemas.base.ranges import (
    MAX_MESSAGES,
    MAX_TEMPLATE_CHARACTERS,
    MAX_TOKEN_IDS,
)
from gateway.http.schemas.inference.messages import (
    ChatMessage,
    Tools,
    refuse_message_fields,
)
from gateway.http.schemas.inference.sampling import TokenId

ModelName = Annotated[str | None, Field(min_length=1, max_length=512)]

_CHAT_ONLY = (
    "tools",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
)


class TokenizeRequest(RequestModel):
    """A text or a conversation, to be shown as the model would read it."""

    model: ModelName = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage] | None, Field(min_length=1, max_length=MAX_MESSAGES)] = (
        None
    )
    tools: Tools = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    chat_template: Annotated[
        str | None, Field(min_length=1, max_length=MAX_TEMPLATE_CHARACTERS)
    ] = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise field_error("exactly one of `prompt` and `messages` is required.", "prompt")
        if self.messages is None:
            for name in _CHAT_ONLY:
                if getattr(self, name) is not None:
                    raise field_error("it needs `messages`.", name)
        elif self.add_special_tokens:
            raise field_error(
                "it is for `prompt`; a chat template adds its own special tokens.",
                "add_special_tokens",
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise field_error("it contradicts `add_generation_prompt`.", "continue_final_message")
        return self


class DetokenizeRequest(RequestModel):
    """Token ids to be spelt as text."""

    model: ModelName = None
    tokens: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS)]


def parse_tokenize_body(body: bytes) -> tuple[TokenizeRequest, dict[str, Any], list[str]]:
    """The checked request, the JSON object it came from, and the fields that no schema knows.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    refuse_message_fields(value.get("messages"))
    request = validate(TokenizeRequest, value)
    return request, value, unknown_fields(request, value)


def parse_detokenize_body(body: bytes) -> tuple[DetokenizeRequest, list[str]]:
    """The checked request and the fields that no schema knows.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    request = validate(DetokenizeRequest, value)
    return request, unknown_fields(request, value)
