"""The fields that chat and completion requests share: sampling, stopping, streaming."""

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from gateway.http.schemas.base.body import RequestModel, field_error
from gateway.http.schemas.base.ranges import LIST_BOUNDS, MAX_SALT_CHARACTERS, ranged
from gateway.http.schemas.inference.structured import StructuredFields
from protocol.wire.sampling_ranges import (
    LOGIT_BIAS,
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORD_CHARACTERS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIASES,
    MAX_LOGPROB_TOKEN_IDS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)

_TOKEN_ID_KEY = re.compile(r"[1-9][0-9]{0,9}\Z")

MAX_PRIORITY = 2**31 - 1
"""As far as other servers take them; only the sign means something here."""

TokenId = Annotated[int, Field(ge=0)]


class StreamOptions(RequestModel):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class GenerationRequest(StructuredFields):
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
    stop_token_ids: Annotated[list[TokenId] | None, Field(max_length=MAX_STOP_TOKEN_IDS)] = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: Annotated[
        list[TokenId] | None,
        Field(min_length=1, max_length=MAX_ALLOWED_TOKEN_IDS),
    ] = None
    bad_words: list[str] | None = None
    logprob_token_ids: Annotated[list[TokenId] | None, Field(max_length=MAX_LOGPROB_TOKEN_IDS)] = (
        None
    )
    prompt_logprobs: int | None = ranged("prompt_logprobs")
    truncate_prompt_tokens: int | None = ranged("truncate_prompt_tokens")
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    include_budget_warnings: bool | None = None
    include_timings: bool | None = None
    cache_salt: Annotated[str | None, Field(min_length=1, max_length=MAX_SALT_CHARACTERS)] = None
    priority: Annotated[int | None, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = None
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
            raise field_error("must be a string or a list of strings.")
        if len(strings) > MAX_STOP_STRINGS:
            raise field_error(f"at most {MAX_STOP_STRINGS} stop strings are accepted.")
        for index, one in enumerate(strings):
            if not 0 < len(one) <= MAX_STOP_CHARACTERS:
                raise field_error(
                    f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters.",
                    f"[{index}]" if isinstance(value, list) else "",
                )
        return value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _biases(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if len(value) > MAX_LOGIT_BIASES:
            raise field_error(f"{LIST_BOUNDS['logit_bias']} are accepted.")
        for key, bias in value.items():
            # No leading zeros: two spellings of one id could contradict each other.
            if not (key == "0" or _TOKEN_ID_KEY.match(key)):
                raise field_error(f"`{key[:64]}` is not a token id.")
            if type(bias) not in (int, float) or not LOGIT_BIAS.holds(bias):
                raise field_error(f"the bias of token {key} must be a number, {LOGIT_BIAS}.")
        return value

    @field_validator("bad_words", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        if value is None:
            return value
        if not isinstance(value, list) or len(value) > MAX_BAD_WORDS:
            raise field_error(f"{LIST_BOUNDS['bad_words']} are accepted.")
        for index, word in enumerate(value):
            if not isinstance(word, str) or not 0 < len(word) <= MAX_BAD_WORD_CHARACTERS:
                raise field_error(
                    f"must be a string of 1 to {MAX_BAD_WORD_CHARACTERS} characters.",
                    f"[{index}]",
                )
        return value

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _keeps_something(cls, value: int | None) -> int | None:
        if value == 0:
            raise field_error("nothing would be left of the prompt.")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "GenerationRequest":
        options, wanted = self.stream_options, self.wanted_content
        if options is not None:
            if not self.stream:
                raise field_error("it is only allowed when `stream` is true.", "stream_options")
            if options.continuous_usage_stats and not options.include_usage:
                raise field_error(
                    "it needs `include_usage`.", "stream_options.continuous_usage_stats"
                )
        if wanted is not None:
            for name in ("ignore_eos", "bad_words"):
                if getattr(self, name):
                    raise field_error(f"it contradicts `{wanted.param}`.", name)
        if self.prompt_logprobs is not None and self.stream:
            raise field_error("it can't be streamed.", "prompt_logprobs")
        if self.logprob_token_ids and self.num_top_logprobs is None:
            raise field_error("it needs `logprobs`.", "logprob_token_ids")
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
    def num_generated(self) -> int:
        """Choices that are generated for each prompt."""
        return self.n or 1

    @property
    def num_top_logprobs(self) -> int | None:
        """Likely tokens to be reported beside each output token; None for no log probabilities."""
        return None
