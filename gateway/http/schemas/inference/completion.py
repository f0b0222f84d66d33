"""The body of POST /v1/completions."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gateway.http.schemas.base.body import field_error, load_json_object, unknown_fields, validate
from gateway.http.schemas.base.fields import (
    COMPLETION_REFUSED_FIELDS,
    EXTENSION_REFUSED_FIELDS,
    refuse_fields,
)
from gateway.http.schemas.base.ranges import MAX_CHOICES, MAX_PROMPTS, MAX_TOKENS, RANGES, ranged
from gateway.http.schemas.inference.sampling import GenerationRequest

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""

Prompt = str | list[str] | list[int] | list[list[int]]
_Logprobs = (
    Annotated[int, Field(ge=RANGES["logprobs"].minimum, le=RANGES["logprobs"].maximum)]
    | Literal[False]
    | None
)
_REFUSED = COMPLETION_REFUSED_FIELDS | EXTENSION_REFUSED_FIELDS


class CompletionRequest(GenerationRequest):
    """A text to go on with, or several, or their token ids."""

    prompt: Prompt
    add_special_tokens: bool | None = None
    # 0 is for who only wants the prompt looked at, see `_consistent_completion`.
    max_tokens: Annotated[int | None, Field(ge=0, le=MAX_TOKENS)] = None
    suffix: str | None = None
    best_of: int | None = ranged("best_of")
    echo: bool | None = None
    logprobs: int | None = ranged("logprobs")

    @field_validator("logprobs", mode="before", json_schema_input_type=_Logprobs)
    @classmethod
    def _no_logprobs(cls, value: Any) -> Any:
        """Clients that know chat send false here."""
        return None if value is False else value

    # "plain": pydantic would try each kind of the union, and keep an error for every token id of
    # a list that is no list of strings.
    @field_validator("prompt", mode="plain", json_schema_input_type=Prompt)
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        if isinstance(value, str) or (isinstance(value, list) and _are_token_ids(value)):
            return value
        if not isinstance(value, list) or not value:
            raise field_error("must be a string, a list of strings or lists of token ids.")
        if len(value) > MAX_PROMPTS:
            raise field_error(f"at most {MAX_PROMPTS} prompts are accepted.")
        kind = type(value[0])
        for index, one in enumerate(value):
            fits = isinstance(one, str) or (isinstance(one, list) and _are_token_ids(one))
            if not fits or type(one) is not kind:
                raise field_error("every prompt must be of one kind.", f"[{index}]")
        return value

    @model_validator(mode="after")
    def _consistent_completion(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            text = f"0 is out of its range, {RANGES['max_tokens']}; only `echo` may go without."
            raise field_error(text, "max_tokens")
        if self.suffix:
            for name in ("echo", "truncate_prompt_tokens"):
                if getattr(self, name):
                    raise field_error("it contradicts `suffix`.", name)
        if self.best_of is not None:
            if self.stream and self.best_of > 1:
                raise field_error(
                    "the best can't be told before all have ended; it can't be streamed.", "best_of"
                )
            if self.best_of < (self.n or 1):
                raise field_error(f"it is less than the {self.n} choices of `n`.", "best_of")
        if len(self.prompts) * self.num_generated > MAX_CHOICES:
            name = "n" if self.best_of is None else "best_of"
            raise field_error(f"prompts times {name} is more than {MAX_CHOICES}.", name)
        return self

    @property
    def num_generated(self) -> int:
        """Choices that are generated for each prompt."""
        return self.best_of or self.n or 1

    @property
    def num_top_logprobs(self) -> int | None:
        """Likely tokens to be reported beside each output token; None for no log probabilities."""
        return self.logprobs

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
    return request, unknown_fields(request, value, _REFUSED)


def _are_token_ids(value: list[Any]) -> bool:
    return bool(value) and all(type(one) is int and one >= 0 for one in value)
