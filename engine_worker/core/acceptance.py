"""Checks a Generate command field by field and makes the engine's choice of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine_worker.core.choice.allowed_tokens import AllowedTokens
from engine_worker.core.choice.batch import RowSampling
from engine_worker.core.choice.choice import Choice
from engine_worker.errors import InvalidRequestError
from engine_worker.grammar.constraint import Constraint
from engine_worker.text.preparation import check_length, check_token_ids
from protocol.wire.messages import Generate, SamplingParams
from protocol.wire.sampling_ranges import (
    LOGIT_BIAS,
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORD_CHARACTERS,
    MAX_BAD_WORDS,
    MAX_INT32,
    MAX_LOGIT_BIASES,
    MAX_LOGPROB_TOKEN_IDS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    NUMBER_RANGES,
    WORDS,
)

# Below it softmax is an argmax in float32 anyway; dividing by it would only overflow.
_GREEDY_TEMPERATURE = 1e-5
_SEED_MASK = (1 << 64) - 1

EncodeWords = Callable[[Sequence[str]], list[tuple[int, ...]]]
"""The token sequences that spell some words; raises InvalidRequestError."""


@dataclass(frozen=True, slots=True)
class AcceptanceLimits:
    """What choices are checked against.

    Attributes:
        vocab_size: Token ids at or above it are refused.
        max_model_len: Prompt and output together, tokens.
        eos_token_ids: Ids that end an output unless `ignore_eos`.
    """

    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]


def accept(
    gateway_id: str,
    command: Generate,
    limits: AcceptanceLimits,
    encode_words: EncodeWords,
    *,
    received_at: float,
) -> Choice:
    """A choice that can run, without the output of an earlier attempt.

    Args:
        gateway_id: Who wants it.
        command: What is wanted.
        limits: What it is checked against.
        encode_words: Spells `bad_words`.
        received_at: On the engine's monotonic clock; the deadline counts from it.

    Raises:
        RequestError: The first field that is wrong, named in `param`.
    """
    _check_command(command, limits)
    sampling = command.sampling
    num_prompt_tokens = len(command.prompt_token_ids)
    eos_token_ids = frozenset[int]() if sampling.ignore_eos else limits.eos_token_ids
    stop_token_ids = frozenset(sampling.stop_token_ids)
    max_output_tokens = limits.max_model_len - num_prompt_tokens
    if sampling.max_tokens is not None:
        max_output_tokens = min(max_output_tokens, sampling.max_tokens)
    return Choice(
        gateway_id=gateway_id,
        request_id=command.request_id,
        index=command.choice,
        attempt=command.attempt,
        prompt_token_ids=command.prompt_token_ids,
        sampling=_row_sampling(sampling, command.choice),
        max_output_tokens=max_output_tokens,
        lease_tokens=command.lease_tokens,
        deadline=received_at + command.deadline_s,
        priority=command.priority,
        is_streaming=command.is_streaming,
        # The log probabilities of a prompt come from computing all of it.
        reads_cache=sampling.prompt_logprobs is None,
        min_tokens=sampling.min_tokens,
        eos_token_ids=eos_token_ids,
        stop_token_ids=stop_token_ids,
        allowed_tokens=_allowed_tokens(
            sampling, limits, encode_words, eos_token_ids | stop_token_ids
        ),
        trace_id=command.trace_id,
        traceparent=command.traceparent,
    )


def _allowed_tokens(
    sampling: SamplingParams,
    limits: AcceptanceLimits,
    encode_words: EncodeWords,
    ending_token_ids: frozenset[int],
) -> AllowedTokens | None:
    """What the request forbids; None when that is nothing."""
    if not (sampling.min_tokens or sampling.bad_words or sampling.allowed_token_ids):
        return None
    try:
        sequences = encode_words(sampling.bad_words) if sampling.bad_words else []
    except InvalidRequestError as error:
        raise InvalidRequestError(error.message, param="bad_words") from error
    allowed = AllowedTokens(
        limits.vocab_size,
        allowed_token_ids=sampling.allowed_token_ids,
        forbidden_sequences=sequences,
        ending_token_ids=ending_token_ids,
        min_tokens=sampling.min_tokens,
    )
    if allowed.is_contradictory:
        raise InvalidRequestError(
            "'allowed_token_ids' has no token that 'bad_words' and 'min_tokens' leave.",
            param="allowed_token_ids",
        )
    return allowed


def _check_command(command: Generate, limits: AcceptanceLimits) -> None:
    check_sampling(command.sampling, limits.vocab_size)
    if command.grammar is not None:
        _check_beside_grammar(command.sampling)
    if not command.prompt_token_ids:
        raise InvalidRequestError("The prompt is empty.", param="prompt")
    check_token_ids(command.prompt_token_ids, limits.vocab_size)
    check_token_ids(command.output_token_ids, limits.vocab_size)
    check_length(len(command.prompt_token_ids), None, limits.max_model_len, "prompt")
    if not math.isfinite(command.deadline_s):
        raise InvalidRequestError("'deadline_s' must be a finite number.", param="deadline_s")
    if not 0 <= command.choice <= MAX_INT32:
        raise InvalidRequestError(f"'choice' must be 0 to {MAX_INT32}.", param="choice")


def check_first_token(choice: Choice, constraint: Constraint) -> None:
    """Refuse a choice whose own parameters leave nothing of its grammar.

    Raises:
        InvalidRequestError: No token may come first.
    """
    allowed = choice.allowed_mask()
    if allowed is None or choice.output_token_ids or constraint.has_forced:
        return
    if not (constraint.mask() & allowed).any() and not constraint.is_accepting:
        raise InvalidRequestError(
            "'allowed_token_ids' allows none of the tokens that the grammar begins with.",
            param="allowed_token_ids",
        )


def _check_beside_grammar(sampling: SamplingParams) -> None:
    """Refuse what would make an output end, or go on, against its grammar."""
    if sampling.ignore_eos:
        raise InvalidRequestError(
            "'ignore_eos' can't go with a grammar: the output ends where the grammar does.",
            param="ignore_eos",
        )
    if sampling.bad_words:
        raise InvalidRequestError(
            "'bad_words' can't go with a grammar: it could leave no way to follow it.",
            param="bad_words",
        )


def check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    """Refuse sampling parameters that the wire doesn't allow.

    Raises:
        InvalidRequestError: The first field that is wrong.
    """
    for name, bounds in NUMBER_RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not bounds.holds(value):
            raise InvalidRequestError(f"'{name}' must be {bounds}, not {value}.", param=name)
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise InvalidRequestError(
            f"'min_tokens' ({sampling.min_tokens}) is above 'max_tokens' ({sampling.max_tokens}).",
            param="min_tokens",
        )
    _check_texts("stop", sampling.stop, MAX_STOP_STRINGS, MAX_STOP_CHARACTERS)
    _check_texts("bad_words", sampling.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS)
    _check_ids("stop_token_ids", sampling.stop_token_ids, MAX_STOP_TOKEN_IDS, vocab_size)
    _check_ids("logprob_token_ids", sampling.logprob_token_ids, MAX_LOGPROB_TOKEN_IDS, vocab_size)
    if sampling.logprob_token_ids and sampling.logprobs is None:
        raise InvalidRequestError(
            "'logprob_token_ids' needs 'logprobs'.", param="logprob_token_ids"
        )
    biased = [token_id for token_id, _ in sampling.logit_bias]
    _check_ids("logit_bias", biased, MAX_LOGIT_BIASES, vocab_size)
    if len(set(biased)) < len(biased):
        raise InvalidRequestError("'logit_bias' names a token id twice.", param="logit_bias")
    for token_id, bias in sampling.logit_bias:
        if not LOGIT_BIAS.holds(bias):
            raise InvalidRequestError(
                f"'logit_bias' of token {token_id} must be {LOGIT_BIAS}, not {bias}.",
                param="logit_bias",
            )
    if sampling.allowed_token_ids is not None:
        if not sampling.allowed_token_ids:
            raise _refused("allowed_token_ids")
        if vocab_size < len(sampling.allowed_token_ids) <= MAX_ALLOWED_TOKEN_IDS:
            raise InvalidRequestError(
                f"'allowed_token_ids' names {len(sampling.allowed_token_ids)} token ids, but this"
                f" model has {vocab_size}; name each once.",
                param="allowed_token_ids",
            )
        _check_ids(
            "allowed_token_ids", sampling.allowed_token_ids, MAX_ALLOWED_TOKEN_IDS, vocab_size
        )


def _check_texts(name: str, texts: Sequence[str], max_num: int, max_characters: int) -> None:
    if len(texts) > max_num or not all(0 < len(text) <= max_characters for text in texts):
        raise _refused(name)


def _check_ids(name: str, token_ids: Sequence[int], max_num: int, vocab_size: int) -> None:
    if len(token_ids) > max_num:
        raise _refused(name)
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise InvalidRequestError(
            f"'{name}' has the token id {wrong}, but this model's ids are 0 to {vocab_size - 1}.",
            param=name,
        )


def _refused(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"'{name}' must be {WORDS[name]}.", param=name)


def _row_sampling(sampling: SamplingParams, choice: int) -> RowSampling:
    # Of all tokens that a `top_p` of 0 may leave, the most likely one alone: ties too.
    greedy = sampling.temperature < _GREEDY_TEMPERATURE or sampling.top_p == 0.0
    return RowSampling(
        temperature=0.0 if greedy else sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed & _SEED_MASK,
        choice=choice,
        logit_bias=sampling.logit_bias,
        num_logprobs=sampling.logprobs,
        num_prompt_logprobs=sampling.prompt_logprobs,
        logprob_token_ids=sampling.logprob_token_ids,
    )
