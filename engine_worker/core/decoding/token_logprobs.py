"""Log probabilities as they go to gateways: with the text and the bytes of each token."""

from collections.abc import Sequence

from engine_worker.core.choice.batch import TokenScores
from engine_worker.core.choice.choice import Choice
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import TokenLogprob, TokenLogprobs


def prompt_tokens_to_score(choice: Choice, num_tokens: int) -> tuple[int, ...]:
    """The tokens that follow the next `num_tokens` of a prompt, if their scores are still wanted.

    Empty when they aren't; after a preemption some that were told already may come again.
    """
    start = choice.num_computed_tokens
    if choice.sampling.num_prompt_logprobs is None:
        return ()
    if start + num_tokens <= choice.num_scored_tokens:
        return ()
    return choice.prompt_token_ids[start + 1 : start + num_tokens + 1]


def take_prompt_scores(
    choice: Choice, start: int, scores: Sequence[TokenScores]
) -> Sequence[TokenScores]:
    """Those of a chunk's scores that are new; from now on they count as told.

    Args:
        choice: Whose prompt it is.
        start: Position of the chunk's first token.
        scores: Of the tokens that follow the chunk's, from its first on.
    """
    new = scores[max(0, choice.num_scored_tokens - start) :]
    choice.num_scored_tokens = max(choice.num_scored_tokens, start + len(scores))
    return new


def describe(scores: TokenScores, tokenizer: Tokenizer) -> TokenLogprobs:
    """One position for the wire."""

    def described(token_id: int, logprob: float, rank: int) -> TokenLogprob:
        data = tokenizer.token_bytes(token_id)
        return TokenLogprob(
            token_id=token_id,
            text=data.decode(errors="replace"),
            data=data,
            logprob=logprob,
            rank=rank,
        )

    return TokenLogprobs(
        chosen=described(scores.token_id, scores.logprob, scores.rank),
        top=tuple(
            described(token_id, logprob, rank)
            for rank, (token_id, logprob) in enumerate(scores.top, start=1)
        ),
        wanted=tuple(described(token_id, logprob, 0) for token_id, logprob in scores.wanted),
    )
