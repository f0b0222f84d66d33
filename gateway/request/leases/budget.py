"""How many tokens a request reserves: before its prompts are tokenised, and after."""

from collections.abc import Sequence

from gateway.request.jobs.job import GenerationJob
from protocol.wire.messages import EngineOffer, Prepared

MIN_SLICE_TOKENS = 64


class TokenBudget:
    """The bounds of one request in tokens.

    Args:
        job: What is asked for.
        slice_tokens: What a choice reserves at a time when the client set no limit.
    """

    def __init__(self, job: GenerationJob, slice_tokens: int) -> None:
        self._job = job
        self._slice_tokens = slice_tokens
        self._max_output_tokens: int | None = None

    @property
    def asked_tokens(self) -> int:
        """Output tokens that the client named, all choices together; one each if it named none."""
        return (self._job.max_tokens or 1) * self._job.num_choices_in_all

    def cap(self, max_completion_tokens: int | None) -> None:
        """The caller may have so many output tokens in all; every choice the same of them."""
        if max_completion_tokens is not None:
            self._max_output_tokens = max_completion_tokens // self._job.num_choices_in_all

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
        return prompt_tokens, output_tokens * job.num_choices_in_all

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
        return min(limit, self._job.max_tokens or self._slice_tokens)

    def released(self, reserved: int) -> int:
        """Of what a choice has reserved, what its engine may make at once.

        Of a stream only a slice, so that an engine never runs far ahead of a reader that has
        stopped; the slice is smaller where a token brings many log probabilities along.
        """
        options = self._job.options
        if not options.is_streaming:
            return reserved
        return min(reserved, self.slice_tokens)

    @property
    def slice_tokens(self) -> int:
        """Output tokens that a choice gets at a time."""
        options = self._job.options
        num_beside = (options.num_top_logprobs or 0) + options.num_wanted_logprobs
        if not options.is_streaming or not num_beside:
            return self._slice_tokens
        return max(MIN_SLICE_TOKENS, self._slice_tokens // (1 + num_beside))

    def reservation(self, prepared: Sequence[Prepared]) -> tuple[int, int]:
        """Prompt and output tokens of all choices together, now that the prompts are known."""
        prompt_tokens = sum(len(one.prompt_token_ids) for one in prepared)
        slices = (self.slice_of(limit) for limit in self.output_limits(prepared))
        return prompt_tokens, sum(slices) * self._job.num_choices

    def _first_slice(self, offer: EngineOffer | None) -> int:
        wanted = self._job.max_tokens or self._slice_tokens
        return wanted if offer is None else min(wanted, offer.max_model_len)
