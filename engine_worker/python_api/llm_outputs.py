"""What the Python API gives back: plain, frozen records."""

from dataclasses import dataclass

from protocol.wire.messages import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Completion:
    """One choice.

    Attributes:
        index: Of the choice, from 0.
        text: As a client would get it: stop strings cut off, special tokens left out unless asked
            for. Tool calls stay in it, in the model's own format.
        token_ids: All that was generated, the token that ended it included.
        finish_reason: `stop` or `length`.
        stop_reason: The stop string or token id that ended it, if one did.
        logprobs: One entry a token, when they were asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answer to one prompt.

    Attributes:
        prompt_token_ids: As the model read it.
        completions: The choices, in order.
        cached_tokens: Prompt tokens that needn't be computed.
        prompt_logprobs: From the prompt's second token on, when they were asked for.
    """

    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def text(self) -> str:
        """Of the first choice."""
        return self.completions[0].text
