"""Log probabilities in the shapes of clients: chat's, the older one of completions, prompts'."""

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.request.delivery.events import PromptReport
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.wire.messages import TokenLogprob, TokenLogprobs

_LEAST = -9999.0
"""What OpenAI writes for a probability of zero; JSON has no infinity."""
_SEARCH_CHARACTERS = 16


def chat_logprobs(tokens: Iterable[TokenLogprobs], options: AnswerOptions) -> dict[str, Any]:
    """The `logprobs` of a chat choice (platform.openai.com, chat completion object)."""
    num_top = options.num_top_logprobs or 0
    content = [
        {
            **_entry(token.chosen, options),
            "top_logprobs": [_entry(one, options) for one in _beside(token, num_top)],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(
    report: PromptReport, options: AnswerOptions
) -> list[dict[str, dict[str, Any]] | None]:
    """One object a token of the prompt, by token id, as vLLM does; null for the first token."""
    num_top = options.num_prompt_logprobs or 0
    listed: list[dict[str, dict[str, Any]] | None] = [None]
    for token in report.logprobs:
        shown = {one.token_id: one for one in (token.chosen, *token.top[:num_top])}
        listed.append(
            {
                str(token_id): {
                    "logprob": max(one.logprob, _LEAST),
                    "rank": one.rank or None,
                    "decoded_token": one.text,
                }
                for token_id, one in shown.items()
            }
        )
    return listed


class CompletionLogprobs:
    """The four parallel lists of a completion's choice, or of one chunk of it."""

    def __init__(self, options: AnswerOptions) -> None:
        self._options = options
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._top: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def add_prompt(self, report: PromptReport) -> None:
        """The tokens of an echoed prompt; nothing is known of the first one."""
        prepared, first = report.prepared, report.prepared.tokens[:1]
        offsets = token_offsets(
            prepared.prompt_text, (*first, *(token.chosen.text for token in report.logprobs))
        )
        if first:
            name = first[0]
            if self._options.names_token_ids:
                name = f"token_id:{prepared.prompt_token_ids[0]}"
            self._tokens.append(name)
            self._logprobs.append(None)
            self._top.append(None)
            self._offsets.append(offsets[0])
        self._add(report.logprobs, offsets[len(first) :])

    def add_output(
        self, tokens: Sequence[TokenLogprobs], token_ends: Sequence[int], start: int, shift: int
    ) -> None:
        """The tokens of a piece of output.

        Args:
            tokens: In order.
            token_ends: For each, the length of the output's whole text with it.
            start: Length of the text before the first.
            shift: Characters of the echo before the output.
        """
        ends = list(token_ends) or [start] * len(tokens)
        self._add(tokens, [shift + offset for offset in (start, *ends[:-1])])

    def as_object(self) -> dict[str, Any]:
        """As OpenAI's `logprobs` of a completion."""
        return {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top,
            "text_offset": self._offsets,
        }

    def _add(self, tokens: Sequence[TokenLogprobs], offsets: Sequence[int]) -> None:
        options = self._options
        num_top = options.num_top_logprobs or 0
        for token, offset in zip(tokens, offsets, strict=False):
            self._tokens.append(_legacy_name(token.chosen, options))
            self._logprobs.append(max(token.chosen.logprob, _LEAST))
            shown = (token.chosen, *_beside(token, num_top))
            self._top.append(
                {_legacy_name(one, options): max(one.logprob, _LEAST) for one in shown}
            )
            self._offsets.append(offset)


def _beside(token: TokenLogprobs, num_top: int) -> Sequence[TokenLogprob]:
    """The likeliest tokens, then those that the client named and that aren't among them."""
    top = token.top[:num_top]
    if not token.wanted:
        return top
    shown = {one.token_id for one in top}
    return (*top, *(one for one in token.wanted if one.token_id not in shown))


def token_offsets(text: str, tokens: Sequence[str]) -> list[int]:
    """Where each token begins in a text that they make, but for some that it doesn't show.

    A token that is not found near its place (a special token, a part of a character) stands where
    the one before it ended.
    """
    offsets: list[int] = []
    position = slack = 0
    for token in tokens:
        found = text.find(token, position, position + len(token) + slack + _SEARCH_CHARACTERS)
        if found < 0 or not token:
            offsets.append(position)
            slack += len(token)
            continue
        offsets.append(found)
        position, slack = found + len(token), 0
    return offsets


def _entry(token: TokenLogprob, options: AnswerOptions) -> dict[str, Any]:
    return {
        "token": f"token_id:{token.token_id}" if options.names_token_ids else token.text,
        "logprob": max(token.logprob, _LEAST),
        "bytes": list(token.data),
    }


def _legacy_name(token: TokenLogprob, options: AnswerOptions) -> str:
    """A token that is only a part of a character is spelt by its bytes, as OpenAI does."""
    if options.names_token_ids:
        return f"token_id:{token.token_id}"
    if "\ufffd" not in token.text:
        return token.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)
