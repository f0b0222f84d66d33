"""Packing: loss on answers, rows that are filled, batches that follow from seed and step."""

import random

import numpy as np
import pytest

from engine_worker.demo import demo_model_path
from tools.demo_model.conversation import Conversation, assistant, user
from tools.demo_model.grammar import training_conversation
from tools.demo_model.packing import (
    ANSWER_LOSS_WEIGHT,
    LONG_ROW,
    PROMPT_LOSS_WEIGHT,
    ChatFormat,
    packed_batch,
)

TWO_TURNS = Conversation((user("Hi"), assistant("{1}"), user("Bye"), assistant("Goodbye!")))


@pytest.fixture(scope="module")
def chat_format() -> ChatFormat:
    return ChatFormat(demo_model_path())


def test_only_answers_and_their_ends_have_full_weight(chat_format: ChatFormat) -> None:
    token_ids, weights = chat_format.training_ids(TWO_TURNS, 1000)
    pairs = zip(token_ids, weights, strict=True)
    answers = [token for token, weight in pairs if weight == ANSWER_LOSS_WEIGHT]
    text = chat_format.tokenizer.decode(answers, skip_special_tokens=False)
    assert text == "{1}<|im_end|>Goodbye!<|im_end|>"
    assert set(weights) == {ANSWER_LOSS_WEIGHT, PROMPT_LOSS_WEIGHT}


def test_the_tokens_of_training_are_those_of_serving(chat_format: ChatFormat) -> None:
    for seed in range(30):
        item = training_conversation(random.Random(seed), max_characters=0)
        *asked, _ = item.messages
        prompt = chat_format.prompt_ids(Conversation(tuple(asked), item.tools))
        token_ids, _ = chat_format.training_ids(item, 10_000)
        assert token_ids[: len(prompt)] == prompt


def test_a_long_conversation_ends_with_an_answer_that_fits(chat_format: ChatFormat) -> None:
    whole, _ = chat_format.training_ids(TWO_TURNS, 1000)
    shortened, weights = chat_format.training_ids(TWO_TURNS, len(whole) - 1)
    assert chat_format.tokenizer.decode(shortened).endswith("assistant\n{1}")
    assert weights[-1] == ANSWER_LOSS_WEIGHT
    assert chat_format.training_ids(TWO_TURNS, 5) == ([], [])


def test_a_batch_follows_from_seed_and_step(chat_format: ChatFormat) -> None:
    def tokens(seed: int, step: int) -> list[int]:
        batch = packed_batch(chat_format, seed, step, num_rows=2, row_length=128)
        return list(batch.token_ids.ravel())

    assert tokens(1, 7) == tokens(1, 7)
    assert tokens(1, 7) != tokens(1, 8)
    assert tokens(1, 7) != tokens(2, 7)


def test_targets_follow_inputs_and_padding_has_no_weight(chat_format: ChatFormat) -> None:
    batch = packed_batch(chat_format, 0, 0, num_rows=8, row_length=256)
    assert batch.token_ids.shape == batch.documents.shape == (8, 256)
    assert np.array_equal(batch.token_ids[:, 1:], batch.targets[:, :-1])
    assert np.count_nonzero(batch.documents) > 0.85 * batch.documents.size
    # No token predicts across the border of two conversations.
    borders = batch.documents[:, 1:] != batch.documents[:, :-1]
    assert not batch.weights[:, :-1][borders].any()


def test_long_rows_hold_long_conversations(chat_format: ChatFormat) -> None:
    batch = packed_batch(chat_format, 0, 0, num_rows=2, row_length=2 * LONG_ROW)
    _, lengths = np.unique(batch.documents[0], return_counts=True)
    assert lengths.max() > LONG_ROW // 2
