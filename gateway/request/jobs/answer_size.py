"""Estimates how large an answer can get, before anything is computed for it."""

from collections.abc import Sequence

from gateway.errors import InvalidRequestError
from gateway.request.jobs.job import GenerationJob

TOKEN_BYTES = 6
"""Text of a token in an answer, escapes included."""
LOGPROB_BYTES = 96
"""One token with its log probability and its bytes, as JSON."""


def check_answer_size(
    job: GenerationJob, prompt_tokens: Sequence[int], output_limits: Sequence[int], max_bytes: int
) -> None:
    """Refuse what would be answered with more than a client or this server can hold.

    A stream's output leaves as it is made, so only what it tells of its prompts counts.

    Args:
        job: What is asked for.
        prompt_tokens: Tokens of each prompt.
        output_limits: Output tokens at most of a choice of each prompt.
        max_bytes: Larger answers are refused.

    Raises:
        InvalidRequestError: With both numbers.
    """
    options = job.options
    estimate = 0
    per_prompt_token = TOKEN_BYTES if options.echoes or options.shows_token_ids else 0
    num_beside_prompt = options.engine_prompt_logprobs
    if num_beside_prompt is not None:
        per_prompt_token += (1 + num_beside_prompt) * LOGPROB_BYTES
    per_token = TOKEN_BYTES
    if options.num_top_logprobs is not None:
        num_beside = options.num_top_logprobs + options.num_wanted_logprobs
        per_token += (1 + num_beside) * LOGPROB_BYTES
    for num_prompt, num_output in zip(prompt_tokens, output_limits, strict=True):
        num_shown = options.num_choices if options.echoes else 1
        estimate += num_prompt * per_prompt_token * num_shown
        if not options.is_streaming and not job.discards_output:
            estimate += num_output * per_token * options.num_choices
    if estimate > max_bytes:
        raise InvalidRequestError(
            f"The answer could have {estimate} bytes, over this server's limit of {max_bytes} "
            "(PENSTOCK_MAX_ANSWER_BYTES). Ask for fewer choices, tokens or log probabilities, or "
            "for a stream.",
            param="logprobs" if options.shows_logprobs else "n",
        )
