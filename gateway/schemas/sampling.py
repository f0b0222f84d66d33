"""The fields that chat and completion requests share: sampling, stopping, streaming."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from gateway.schemas.body import RequestModel, field_error, unknown_keys
from gateway.schemas.ranges import (
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    ranged,
)


class StreamOptions(RequestModel):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationRequest(RequestModel):
    """How tokens are chosen, when to stop and how the answer travels; null means the default."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = ranged("n")
    temperature: float | None = ranged("temperature")
    top_p: float | None = ranged("top_p")
    top_k: int | None = ranged("top_k")
    min_p: float | None = ranged("min_p")
    presence_penalty: float | None = ranged("presence_penalty")
    frequency_penalty: float | None = ranged("frequency_penalty")
    repetition_penalty: float | None = ranged("repetition_penalty")
    seed: int | None = ranged("seed")
    max_tokens: int | None = ranged("max_tokens")
    min_tokens: int | None = ranged("min_tokens")
    stop: str | list[str] | None = None
    stop_token_ids: Annotated[
        list[Annotated[int, Field(ge=0)]] | None,
        Field(max_length=MAX_STOP_TOKEN_IDS, fail_fast=True),
    ] = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    # Harmless, see `fields.HARMLESS_FIELDS`.
    metadata: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_strings(cls, value: Any) -> Any:
        if value is None:
            return value
        strings = [value] if isinstance(value, str) else value
        if not isinstance(strings, list) or not all(isinstance(one, str) for one in strings):
            raise field_error("a string or a list of strings is expected.")
        if len(strings) > MAX_STOP_STRINGS:
            raise field_error(f"at most {MAX_STOP_STRINGS} stop strings are accepted.")
        for index, one in enumerate(strings):
            if not 0 < len(one) <= MAX_STOP_CHARACTERS:
                raise field_error(
                    f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters.",
                    f"[{index}]" if isinstance(value, list) else "",
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise field_error("it is only allowed when `stream` is true.", "stream_options")
        limit = self.output_limit
        if self.min_tokens and limit is not None and self.min_tokens > limit:
            raise field_error(
                f"{self.min_tokens} is more than the {limit} tokens of output asked for.",
                "min_tokens",
            )
        return self

    @property
    def output_limit(self) -> int | None:
        """Output tokens at most, None when the client set no limit."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def unknown_stream_keys(body: dict[str, Any]) -> list[str]:
    """Fields within `stream_options` that no schema knows."""
    options = body.get("stream_options") or {}
    return unknown_keys(options, StreamOptions.known_fields, "stream_options.")
