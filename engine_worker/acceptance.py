"""Checks a Generate command field by field and makes the engine's own request of it."""

import math
from dataclasses import dataclass

from engine_worker.allowed_tokens import AllowedTokens
from engine_worker.batch import RowSampling
from engine_worker.errors import InvalidRequestError
from engine_worker.grammar.constraint import Constraint
from engine_worker.preparation import check_length, check_token_ids
from engine_worker.request import Request
from protocol.messages import Generate, SamplingParams

MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 32
# Below it softmax is an argmax in float32 anyway; dividing by it would only overflow.
_GREEDY_TEMPERATURE = 1e-5
_SEED_MASK = (1 << 64) - 1
# The device holds it in 32 bits; what doesn't fit would spoil the step of everybody else.
_MAX_INT32 = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class AcceptanceLimits:
    """What requests are checked against.

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
    *,
    received_at: float,
    arrival: int,
) -> Request:
    """A request that can run, without the output of an earlier attempt.

    Args:
        gateway_id: Who wants it.
        command: What is wanted.
        limits: What it is checked against.
        arrival: Number of requests before it.
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
    return Request(
        gateway_id=gateway_id,
        request_id=command.request_id,
        choice=command.choice,
        attempt=command.attempt,
        prompt_token_ids=command.prompt_token_ids,
        sampling=_row_sampling(sampling, command.choice),
        max_output_tokens=max_output_tokens,
        lease_tokens=command.lease_tokens,
        deadline=received_at + command.deadline_s,
        priority=command.priority,
        arrival=arrival,
        # The log probabilities of a prompt come from computing all of it.
        reads_cache=sampling.prompt_logprobs is None,
        min_tokens=sampling.min_tokens,
        eos_token_ids=eos_token_ids,
        stop_token_ids=stop_token_ids,
        allowed_tokens=_allowed_tokens(
            sampling, limits.vocab_size, ending_token_ids=eos_token_ids | stop_token_ids
        ),
    )


def _allowed_tokens(
    sampling: SamplingParams, vocab_size: int, *, ending_token_ids: frozenset[int]
) -> AllowedTokens | None:
    """What the request forbids; None when that is nothing."""
    if not sampling.min_tokens:
        return None
    return AllowedTokens(
        vocab_size, ending_token_ids=ending_token_ids, min_tokens=sampling.min_tokens
    )


def _check_command(command: Generate, limits: AcceptanceLimits) -> None:
    if command.grammar is not None:
        _check_beside_grammar(command.sampling)
    if not command.prompt_token_ids:
        raise InvalidRequestError("The prompt is empty.", param="prompt")
    check_token_ids(command.prompt_token_ids, limits.vocab_size)
    check_token_ids(command.output_token_ids, limits.vocab_size)
    check_sampling(command.sampling, limits.vocab_size)
    check_length(len(command.prompt_token_ids), None, limits.max_model_len, "prompt")
    if not math.isfinite(command.deadline_s):
        raise InvalidRequestError("'deadline_s' must be a finite number.", param="deadline_s")
    if not 0 <= command.choice <= _MAX_INT32:
        raise InvalidRequestError(f"'choice' must be 0 to {_MAX_INT32}.", param="choice")


def check_first_token(request: Request, constraint: Constraint) -> None:
    """Refuse a request whose own parameters leave nothing of its grammar.

    Raises:
        InvalidRequestError: No token may come first.
    """
    allowed = request.allowed_mask()
    if allowed is None or request.output_token_ids or constraint.has_forced:
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
    """Refuse sampling parameters that have no meaning.

    Raises:
        RequestError: The first field that is wrong.
    """
    _check("temperature", sampling.temperature >= 0, "0 or more", sampling.temperature)
    _check("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1", sampling.top_p)
    _check("min_p", 0 <= sampling.min_p <= 1, "between 0 and 1", sampling.min_p)
    _check("top_k", sampling.top_k >= 0, "0 (off) or more", sampling.top_k)
    _check("presence_penalty", True, "a number", sampling.presence_penalty)
    _check("frequency_penalty", True, "a number", sampling.frequency_penalty)
    _check(
        "repetition_penalty",
        sampling.repetition_penalty > 0,
        "above 0",
        sampling.repetition_penalty,
    )
    max_tokens = sampling.max_tokens
    if max_tokens is not None:
        _check("max_tokens", max_tokens >= 1, "1 or more", max_tokens)
    _check("min_tokens", sampling.min_tokens >= 0, "0 or more", sampling.min_tokens)
    if max_tokens is not None and sampling.min_tokens > max_tokens:
        raise InvalidRequestError(
            f"'min_tokens' ({sampling.min_tokens}) is above 'max_tokens' ({max_tokens}).",
            param="min_tokens",
        )
    if not all(sampling.stop):
        raise InvalidRequestError("A stop string can't be empty.", param="stop")
    if len(sampling.stop) > MAX_STOP_STRINGS:
        raise InvalidRequestError(
            f"There are {len(sampling.stop)} stop strings; at most {MAX_STOP_STRINGS} work.",
            param="stop",
        )
    if any(len(text) > MAX_STOP_CHARACTERS for text in sampling.stop):
        raise InvalidRequestError(
            f"A stop string is longer than {MAX_STOP_CHARACTERS} characters.", param="stop"
        )
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequestError(
            f"There are more than {MAX_STOP_TOKEN_IDS} stop token ids.", param="stop_token_ids"
        )
    for token_id in sampling.stop_token_ids:
        _check(
            "stop_token_ids",
            0 <= token_id < vocab_size,
            f"between 0 and {vocab_size - 1}",
            token_id,
        )


def _check(name: str, holds: bool, rule: str, value: float) -> None:
    if not (math.isfinite(value) and holds):
        raise InvalidRequestError(f"'{name}' must be {rule}, not {value}.", param=name)


def _row_sampling(sampling: SamplingParams, choice: int) -> RowSampling:
    greedy = sampling.temperature < _GREEDY_TEMPERATURE
    return RowSampling(
        temperature=0.0 if greedy else sampling.temperature,
        top_k=min(sampling.top_k, _MAX_INT32),  # more than any vocabulary: keeps all
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed & _SEED_MASK,
        choice=choice,
    )
