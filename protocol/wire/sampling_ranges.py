"""The sampling parameters of a Generate: type, range, default and meaning, in one table.

Engines refuse what the table doesn't allow, the gateway's schemas take their bounds from it, and
docs/protocol.md shows it.
"""

from dataclasses import dataclass
from typing import Final

MAX_INT32: Final = 2**31 - 1
MAX_LOGIT_BIASES: Final = 1024
MAX_LOGPROBS: Final = 20
"""The most likely tokens that are reported beside one token."""
MAX_LOGPROB_TOKEN_IDS: Final = 128
MAX_ALLOWED_TOKEN_IDS: Final = 2**18
MAX_BAD_WORDS: Final = 128
MAX_BAD_WORD_CHARACTERS: Final = 256
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARACTERS: Final = 1024
MAX_STOP_TOKEN_IDS: Final = 128


@dataclass(frozen=True, slots=True)
class NumberRange:
    """Bounds of a number; `exclusive_minimum` leaves the lower bound itself out."""

    minimum: float
    maximum: float
    exclusive_minimum: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is within the bounds; NaN never is."""
        is_above = value > self.minimum if self.exclusive_minimum else value >= self.minimum
        return is_above and value <= self.maximum

    def __str__(self) -> str:
        below = "<" if self.exclusive_minimum else "≤"
        return f"{self.minimum} {below} x ≤ {self.maximum}"


LOGIT_BIAS: Final = NumberRange(-100, 100)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One field of `protocol.wire.messages.SamplingParams`.

    Attributes:
        name: As on the wire.
        kind: Its type in words.
        allowed: What it may be: bounds of a number, or words.
        default: In words.
        meaning: One line.
    """

    name: str
    kind: str
    allowed: NumberRange | str
    default: str
    meaning: str


PARAMETERS: Final = (
    Parameter("temperature", "number", NumberRange(0, 2), "1.0", "divides the logits; 0 is greedy"),
    Parameter("top_k", "integer", NumberRange(0, MAX_INT32), "0", "most likely tokens; 0 is all"),
    Parameter(
        "top_p",
        "number",
        NumberRange(0, 1),
        "1.0",
        "probability of the likeliest tokens, of those that `top_k` left; 0 is greedy",
    ),
    Parameter(
        "min_p", "number", NumberRange(0, 1), "0.0", "least share of the best token's probability"
    ),
    Parameter(
        "presence_penalty",
        "number",
        NumberRange(-2, 2),
        "0.0",
        "subtracted from the logits of tokens that the output has",
    ),
    Parameter(
        "frequency_penalty",
        "number",
        NumberRange(-2, 2),
        "0.0",
        "subtracted as many times as the output has the token",
    ),
    Parameter(
        "repetition_penalty",
        "number",
        NumberRange(0, 10, exclusive_minimum=True),
        "1.0",
        "divides positive and multiplies negative logits of tokens of prompt and output",
    ),
    Parameter("seed", "integer", "64 bits", "0", "keys the noise with choice, position and token"),
    Parameter(
        "max_tokens",
        "integer or nil",
        NumberRange(1, MAX_INT32),
        "nil",
        "output tokens at most; nil is what context and lease allow",
    ),
    Parameter(
        "min_tokens",
        "integer",
        NumberRange(0, MAX_INT32),
        "0",
        "output tokens before anything may end the output; at most `max_tokens`",
    ),
    Parameter(
        "stop",
        "list of strings",
        f"at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARACTERS} characters",
        "none",
        "texts that end the output",
    ),
    Parameter(
        "stop_token_ids",
        "list of token ids",
        f"at most {MAX_STOP_TOKEN_IDS} token ids",
        "none",
        "tokens that end the output",
    ),
    Parameter(
        "ignore_eos",
        "boolean",
        "true or false",
        "false",
        "end-of-sequence does not end the output",
    ),
    Parameter(
        "skip_special_tokens",
        "boolean",
        "true or false",
        "true",
        "special tokens leave no text",
    ),
    Parameter(
        "include_stop_str_in_output",
        "boolean",
        "true or false",
        "false",
        "what ended the output stays in the text",
    ),
    Parameter(
        "logit_bias",
        "list of (token id, number)",
        f"at most {MAX_LOGIT_BIASES} token ids, each with {LOGIT_BIAS}",
        "none",
        "added to the logits, before the penalties",
    ),
    Parameter(
        "allowed_token_ids",
        "list of token ids or nil",
        f"1 to {MAX_ALLOWED_TOKEN_IDS} token ids",
        "nil",
        "no other token is drawn",
    ),
    Parameter(
        "bad_words",
        "list of strings",
        f"at most {MAX_BAD_WORDS} texts of 1 to {MAX_BAD_WORD_CHARACTERS} characters",
        "none",
        "their tokens, with and without a space before them, are never completed in the output",
    ),
    Parameter(
        "logprobs",
        "integer or nil",
        NumberRange(0, MAX_LOGPROBS),
        "nil",
        "log probability of each output token, and so many likely tokens beside it",
    ),
    Parameter(
        "prompt_logprobs",
        "integer or nil",
        NumberRange(0, MAX_LOGPROBS),
        "nil",
        "the same for the prompt's tokens from the second on",
    ),
    Parameter(
        "logprob_token_ids",
        "list of token ids",
        f"at most {MAX_LOGPROB_TOKEN_IDS} token ids",
        "none",
        "whose log probabilities are told beside each output token, with `logprobs`",
    ),
)

NUMBER_RANGES: Final = {
    parameter.name: parameter.allowed
    for parameter in PARAMETERS
    if isinstance(parameter.allowed, NumberRange)
}
"""Bounds of the parameters that are numbers."""

WORDS: Final = {
    parameter.name: parameter.allowed
    for parameter in PARAMETERS
    if isinstance(parameter.allowed, str)
}
"""What the other parameters may be."""
