"""The body of POST /v1/completions."""

from typing import Any

from pydantic import field_validator, model_validator

from gateway.schemas.body import field_error, load_json_object, unknown_keys, validate
from gateway.schemas.fields import (
    COMPLETION_REFUSED_FIELDS,
    EXTENSION_REFUSED_FIELDS,
    refuse_fields,
)
from gateway.schemas.ranges import MAX_CHOICES, MAX_PROMPTS
from gateway.schemas.sampling import GenerationRequest, unknown_stream_keys

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""

Prompt = str | list[str] | list[int] | list[list[int]]
_REFUSED = COMPLETION_REFUSED_FIELDS | EXTENSION_REFUSED_FIELDS


class CompletionRequest(GenerationRequest):
    """A text to go on with, or several, or their token ids."""

    prompt: Prompt
    add_special_tokens: bool | None = None

    # "plain": pydantic would try each kind of the union, and keep an error for every token id of
    # a list that is no list of strings.
    @field_validator("prompt", mode="plain", json_schema_input_type=Prompt)
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        if isinstance(value, str) or (isinstance(value, list) and _are_token_ids(value)):
            return value
        if not isinstance(value, list) or not value:
            raise field_error("a string, a list of strings or lists of token ids is expected.")
        if len(value) > MAX_PROMPTS:
            raise field_error(f"at most {MAX_PROMPTS} prompts are accepted.")
        kind = type(value[0])
        for index, one in enumerate(value):
            fits = isinstance(one, str) or (isinstance(one, list) and _are_token_ids(one))
            if not fits or type(one) is not kind:
                raise field_error("every prompt must be of one kind.", f"[{index}]")
        return value

    @model_validator(mode="after")
    def _bounded_choices(self) -> "CompletionRequest":
        if len(self.prompts) * (self.n or 1) > MAX_CHOICES:
            raise field_error(f"prompts times n is more than {MAX_CHOICES}.", "n")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list, texts or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    @property
    def output_limit(self) -> int | None:
        """Output tokens at most."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens


def parse_completion_body(body: bytes) -> tuple[CompletionRequest, list[str]]:
    """The checked request and the fields that no schema knows.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    refuse_fields(value, _REFUSED)
    request = validate(CompletionRequest, value)
    ignored = unknown_keys(value, CompletionRequest.known_fields | _REFUSED.keys())
    return request, ignored + unknown_stream_keys(value)


def _are_token_ids(value: list[Any]) -> bool:
    return bool(value) and all(type(one) is int and one >= 0 for one in value)
