"""How many tokens a request reserves: before its prompts are tokenised, and after."""

from collections.abc import Sequence

from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.jobs.job import GenerationJob
from protocol.wire.messages import EngineOffer, Prepared

MIN_SLICE_TOKENS = 64


class TokenBudget:
    """The bounds of one request in tokens.

    Args:
        job: What is asked for.
        slice_tokens: What a choice reserves at a time when the client set no limit.

    Attributes:
        asked_tokens: Output tokens that the client named, all choices together; one each if it
            named none.
        slice_tokens: Output tokens that a choice gets at a time.
    """

    def __init__(self, job: GenerationJob, slice_tokens: int) -> None:
        self._job = job
        self._num_choices = job.num_choices_in_all
        self._first_tokens = job.max_tokens or slice_tokens
        self._max_output_tokens: int | None = None
        self.asked_tokens = (job.max_tokens or 1) * self._num_choices
        self.slice_tokens = _slice_tokens(job.options, slice_tokens)

    def cap(self, max_completion_tokens: int | None) -> None:
        """The caller may have so many output tokens in all; every choice the same of them."""
        if max_completion_tokens is not None:
            self._max_output_tokens = max_completion_tokens // self._num_choices

    def first_reservation(self, offer: EngineOffer | None) -> tuple[int, int]:
        """Prompt and output tokens of all choices together, before anything is tokenised.

        Args:
            offer: What is known of the model; a prompt beyond its context will be refused, so
                nobody has to reserve more.
        """
        job = self._job
        prompt_tokens, output_tokens = job.prompt_bytes, self._first_slice(offer)
        if offer is not None:
            prompt_tokens = min(prompt_tokens, offer.max_model_len * len(job.prepares))
        return prompt_tokens, output_tokens * self._num_choices

    def upper_bound(self, offer: EngineOffer) -> int:
        """Tokens of one choice before its prompt is tokenised."""
        return min(self._job.prompt_bytes + self._first_slice(offer), offer.max_model_len)

    def output_limits(self, prepared: Sequence[Prepared]) -> list[int]:
        """Output tokens at most, for each prompt."""
        wanted = self._job.max_tokens
        if self._max_output_tokens is not None:
            most = self._max_output_tokens
            wanted = most if wanted is None else min(wanted, most)
        return [
            one.max_output_tokens if wanted is None else min(wanted, one.max_output_tokens)
            for one in prepared
        ]

    def slice_of(self, limit: int) -> int:
        """Output tokens that a choice with such a limit reserves at first."""
        return min(limit, self._first_tokens)

    def released(self, reserved: int) -> int:
        """Of what a choice has reserved, what its engine may make at once.

        Of a stream only a slice, so that an engine never runs far ahead of a reader that has
        stopped; the slice is smaller where a token brings many log probabilities along.
        """
        if not self._job.options.is_streaming:
            return reserved
        return min(reserved, self.slice_tokens)

    def reservation(
        self, prompt_tokens: Sequence[int], output_limits: Sequence[int]
    ) -> tuple[int, int]:
        """Prompt and output tokens of all choices together, now that the prompts are known.

        Args:
            prompt_tokens: Of each prompt.
            output_limits: Of each prompt, as `output_limits` says.
        """
        slices = sum(map(self.slice_of, output_limits))
        return sum(prompt_tokens), slices * self._job.options.num_choices

    def _first_slice(self, offer: EngineOffer | None) -> int:
        most = self._first_tokens
        return most if offer is None else min(most, offer.max_model_len)


def _slice_tokens(options: AnswerOptions, slice_tokens: int) -> int:
    """Fewer tokens at a time for a stream in which each of them brings others along."""
    num_beside = (options.num_top_logprobs or 0) + options.num_wanted_logprobs
    if not options.is_streaming or not num_beside:
        return slice_tokens
    return max(MIN_SLICE_TOKENS, slice_tokens // (1 + num_beside))
