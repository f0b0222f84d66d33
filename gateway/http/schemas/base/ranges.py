"""The bounds of every request field that has some, one table for schemas, errors and documentation.

What an engine bounds as well is the wire's fact: it comes from `protocol.wire.sampling_ranges`.
"""

from typing import Any, Final

from pydantic import Field

from protocol.wire.sampling_ranges import MAX_INT32, NUMBER_RANGES, WORDS, NumberRange

MAX_TOKENS: Final = MAX_INT32
MAX_METADATA: Final = 16
MAX_METADATA_KEY: Final = 64
MAX_METADATA_VALUE: Final = 512

RANGES: Final[dict[str, NumberRange]] = {
    **NUMBER_RANGES,
    # Clients write -1 for a top_k that is off; the wire says 0.
    "top_k": NumberRange(-1, NUMBER_RANGES["top_k"].maximum),
    "n": NumberRange(1, 128),
    "max_completion_tokens": NUMBER_RANGES["max_tokens"],
    "seed": NumberRange(-(2**63), 2**63 - 1),
    "best_of": NumberRange(1, 128),
    "top_logprobs": NUMBER_RANGES["logprobs"],
    "truncate_prompt_tokens": NumberRange(-1, MAX_TOKENS),
    "thinking_token_budget": NumberRange(-1, MAX_TOKENS),
    "dimensions": NumberRange(1, MAX_TOKENS),
    "seconds": NumberRange(0, 60, exclusive_minimum=True),
}
"""Numbers. `logprobs` is one in completions only; chat has a boolean and `top_logprobs`."""

MAX_STREAM_ID: Final = 256
"""Characters of the name of a lane of a WebSocket."""
MAX_TOKEN_IDS: Final = 2**20
"""Of one request; what is done for each of them adds up."""
MAX_EMBEDDING_INPUTS: Final = 2048
MAX_MESSAGES: Final = 16_384
MAX_TOOLS: Final = 1024
MAX_LARK_TOOLS: Final = 32
"""Custom tools of one request that have a Lark grammar."""
MAX_TOOL_CALLS: Final = 1024
MAX_CONTENT_PARTS: Final = 4096
MAX_TOOL_NAME_CHARACTERS: Final = 128
MAX_TEMPLATE_CHARACTERS: Final = 262_144
MAX_SALT_CHARACTERS: Final = 256
MAX_PROMPTS: Final = 128
MAX_GRAMMAR_CHARACTERS: Final = 262_144
MAX_LARK_CHARACTERS: Final = 16_384
"""Of the Lark grammar of a custom tool."""
MAX_LARK_REGEX_CHARACTERS: Final = 65_536
"""Of the regular expression that is made of it: rules are written out wherever they are named."""
MAX_LARK_RULES_CHARACTERS: Final = 131_072
"""Of the rules that are made of one that is more than a regular expression."""
MAX_GUIDED_CHOICES: Final = 4096
MAX_CHOICE_CHARACTERS: Final = 4096
MAX_CHOICES: Final = 128
"""Prompts times `n`, or times `best_of`, of one request at most."""

LIST_BOUNDS: Final[dict[str, str]] = {
    **{
        name: WORDS[name]
        for name in ("logit_bias", "allowed_token_ids", "bad_words", "stop", "stop_token_ids")
    },
    "logprob_token_ids": WORDS["logprob_token_ids"],
    "messages": (
        f"1 to {MAX_MESSAGES}, each with at most {MAX_CONTENT_PARTS} content parts and"
        f" {MAX_TOOL_CALLS} tool calls"
    ),
    "tools": f"1 to {MAX_TOOLS}",
    "prompt": (
        f"at most {MAX_PROMPTS} prompts; prompts times `n` (or `best_of`) at most {MAX_CHOICES};"
        f" {MAX_TOKEN_IDS} token ids in all"
    ),
    "tokens": f"1 to {MAX_TOKEN_IDS} token ids",
    "input": f"1 to {MAX_EMBEDDING_INPUTS} texts or lists of token ids, {MAX_TOKEN_IDS} ids in all",
}
"""How long lists may be, in words."""


def ranged(name: str) -> Any:
    """The pydantic `Field` of an optional field with the bounds of the table."""
    bounds = RANGES[name]
    lower = {"gt": bounds.minimum} if bounds.exclusive_minimum else {"ge": bounds.minimum}
    limits: dict[str, Any] = {**lower, "le": bounds.maximum}
    if name == "seed":
        # JSON Schema tools lose such integers to floats; the model checks them anyway.
        limits = {"ge": int(bounds.minimum), "le": int(bounds.maximum)}
    return Field(default=None, **limits)
