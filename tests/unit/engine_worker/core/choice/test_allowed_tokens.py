"""Masks of tokens, and which tokens an output may take next."""

import pytest

from engine_worker.core.choice.allowed_tokens import AllowedTokens
from engine_worker.core.choice.token_mask import (
    allow_all,
    allow_only,
    forbid,
    is_allowed,
    num_mask_words,
)

VOCAB_SIZE = 70


def allowed(tokens: AllowedTokens, *output: int) -> set[int]:
    mask = tokens.mask(output)
    if mask is None:
        return set(range(VOCAB_SIZE))
    return {token_id for token_id in range(VOCAB_SIZE) if is_allowed(mask, token_id)}


def without(*token_ids: int) -> set[int]:
    return set(range(VOCAB_SIZE)) - set(token_ids)


@pytest.mark.parametrize(("vocab_size", "num_words"), [(1, 1), (32, 1), (33, 2), (70, 3)])
def test_a_mask_has_a_bit_for_each_token(vocab_size: int, num_words: int) -> None:
    assert num_mask_words(vocab_size) == num_words
    assert allow_all(vocab_size).shape == (num_words,)


def test_tokens_of_one_word_are_allowed_and_forbidden_apart() -> None:
    mask = allow_only([0, 31, 32, 69], VOCAB_SIZE)
    forbid(mask, [31, 32, 32, 5])
    assert [i for i in range(VOCAB_SIZE) if is_allowed(mask, i)] == [0, 69]


def test_a_request_that_forbids_nothing_has_no_mask() -> None:
    assert AllowedTokens(VOCAB_SIZE).mask([1, 2]) is None


def test_before_min_tokens_the_output_cannot_end() -> None:
    tokens = AllowedTokens(VOCAB_SIZE, ending_token_ids=frozenset({3, 66}), min_tokens=2)
    assert allowed(tokens) == allowed(tokens, 1) == without(3, 66)
    assert tokens.mask([1, 1]) is None


def test_any_number_of_ending_tokens_is_masked() -> None:
    ending = frozenset(range(69))
    tokens = AllowedTokens(VOCAB_SIZE, ending_token_ids=ending, min_tokens=1)
    assert allowed(tokens) == {69}


def test_a_forbidden_token_never_comes_and_a_sequence_is_never_completed() -> None:
    tokens = AllowedTokens(VOCAB_SIZE, forbidden_sequences=[(7,), (1, 2), (5, 1, 4), (1, 1)])
    assert allowed(tokens) == without(7)
    assert allowed(tokens, 5) == without(7)
    assert allowed(tokens, 1) == without(7, 2, 1)
    assert allowed(tokens, 5, 1) == without(7, 2, 4, 1)
    assert allowed(tokens, 6, 1) == without(7, 2, 1)
    assert allowed(tokens, 1, 6) == without(7)


def test_only_allowed_tokens_come_less_what_is_forbidden() -> None:
    tokens = AllowedTokens(
        VOCAB_SIZE,
        allowed_token_ids=(1, 2, 3, 4),
        forbidden_sequences=[(4,), (1, 2)],
        ending_token_ids=frozenset({3}),
        min_tokens=2,
    )
    assert allowed(tokens) == {1, 2}
    assert allowed(tokens, 1) == {1}
    assert allowed(tokens, 1, 1) == {1, 3}
    assert allowed(tokens, 2, 2) == {1, 2, 3}


def test_a_mask_that_was_given_out_is_not_changed_by_the_next_one() -> None:
    tokens = AllowedTokens(VOCAB_SIZE, forbidden_sequences=[(7,), (1, 2)])
    before = tokens.mask([])
    assert before is not None
    tokens.mask([1])
    assert is_allowed(before, 2)


def test_tokens_that_the_model_does_not_have_change_nothing() -> None:
    tokens = AllowedTokens(
        VOCAB_SIZE,
        forbidden_sequences=[(VOCAB_SIZE + 500,), (1, VOCAB_SIZE), (VOCAB_SIZE, 2)],
        ending_token_ids=frozenset({3, VOCAB_SIZE + 500}),
        min_tokens=1,
    )
    assert allowed(tokens) == without(3)
    assert tokens.mask([1]) is None
