"""What an answer shows beside its text, as the client asked for it."""

from typing import Any, Final

from msgspec import Struct, structs


class AnswerOptions(Struct, frozen=True):
    """The defaults show nothing more than text.

    Attributes:
        num_choices: Choices generated for each prompt.
        num_answers: Choices shown for each prompt; fewer than `num_choices` shows the best.
        num_top_logprobs: Likely tokens beside each output token; None shows no log probabilities.
        num_wanted_logprobs: Tokens beside each output token that the client names, likely or not.
        num_prompt_logprobs: Likewise beside each token of the prompt.
        is_streaming: Whether the answer travels as it comes.
        echoes: The prompt stands before the text.
        shows_token_ids: The ids of prompt and output are told.
        names_token_ids: Tokens are written as `token_id:…`, which no two of them share.
        shows_budget_warnings: `budget_warnings` tells which limits are used up to a threshold.
        shows_timings: `timings` tells how long it took.
        shows_reasoning: Reasoning is told.
        names_functions: A call is told as OpenAI's deprecated `function_call`.
        custom_tools: Names of the tools whose calls are told with a text as `input`.
        include_usage: A stream ends with the usage; `continuous_usage` tells it in every chunk.
    """

    num_choices: int = 1
    num_answers: int = 1
    num_top_logprobs: int | None = None
    num_wanted_logprobs: int = 0
    num_prompt_logprobs: int | None = None
    is_streaming: bool = False
    echoes: bool = False
    shows_token_ids: bool = False
    names_token_ids: bool = False
    shows_budget_warnings: bool = False
    shows_timings: bool = False
    shows_reasoning: bool = True
    names_functions: bool = False
    custom_tools: frozenset[str] = frozenset()
    include_usage: bool = False
    continuous_usage: bool = False

    def changed(self, **fields: Any) -> "AnswerOptions":
        """The same options with other values of some fields."""
        return AnswerOptions(**{**structs.asdict(self), **fields})

    @property
    def ranks(self) -> bool:
        """Whether only the best choices of each prompt are shown."""
        return self.num_answers < self.num_choices

    @property
    def shows_prompt(self) -> bool:
        """Whether anything is told of the prompt."""
        return self.echoes or self.shows_token_ids or self.num_prompt_logprobs is not None

    @property
    def shows_logprobs(self) -> bool:
        """Whether log probabilities of output or prompt are shown."""
        return self.num_top_logprobs is not None or self.num_prompt_logprobs is not None

    @property
    def engine_logprobs(self) -> int | None:
        """What an engine has to report for the output; ranking needs the tokens' own."""
        return 0 if self.num_top_logprobs is None and self.ranks else self.num_top_logprobs

    @property
    def engine_prompt_logprobs(self) -> int | None:
        """What an engine has to report for the prompt; an echo has as many as the output."""
        wanted = [self.num_prompt_logprobs, self.num_top_logprobs if self.echoes else None]
        return max((number for number in wanted if number is not None), default=None)


PLAIN_ANSWER: Final = AnswerOptions()
"""One choice, only text."""
