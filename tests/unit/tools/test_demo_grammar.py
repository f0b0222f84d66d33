"""The written grammar: deterministic, and evaluation stays out of training."""

import random
from itertools import pairwise
from typing import Any

import pytest

from tools.demo_model import lists
from tools.demo_model.conversation import Conversation, Message
from tools.demo_model.draw import Draw, is_held_out
from tools.demo_model.grammar import (
    CATEGORIES,
    TOOL_CATEGORIES,
    example,
    pinned_conversation,
    training_conversation,
)
from tools.demo_model.readme_prompts import README_PROMPTS, WELL_KNOWN_CITIES


def training_sample(count: int, seed: int = 0) -> list[Conversation]:
    rng = random.Random(seed)
    return [training_conversation(rng, max_characters=0) for _ in range(count)]


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return training_sample(6000)


def questions(conversation: Conversation) -> list[str]:
    return [str(m["content"]) for m in conversation.messages if m["role"] == "user"]


def asked_and_answered(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    """Each question with the kind of its answer: the same words may ask where no tool fits."""
    pairs = []
    for message, answer in pairwise(messages):
        if message["role"] == "user":
            kind = "call" if answer.get("tool_calls") else str(answer["content"])
            pairs.append((str(message["content"]), kind))
    return pairs


def test_the_same_seed_makes_the_same_conversations() -> None:
    assert training_sample(50, seed=3) == training_sample(50, seed=3)
    assert training_sample(50, seed=3) != training_sample(50, seed=4)


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_same_seed_makes_the_same_examples(category: str) -> None:
    first, second = (example(random.Random(5), category, "open") for _ in range(2))
    assert first == second
    assert first.expected["role"] == "assistant"
    assert first.prompt.messages[-1]["role"] in ("user", "tool")


@pytest.mark.parametrize("category", [*TOOL_CATEGORIES, "arithmetic", "sort", "copy", "json"])
def test_closed_questions_are_never_asked_in_training(
    category: str, conversations: list[Conversation]
) -> None:
    trained = {pair for item in conversations for pair in asked_and_answered(item.messages)}
    rng = random.Random(9)
    asked = set()
    for _ in range(200):
        drawn = example(rng, category, "closed")
        asked.add(asked_and_answered((*drawn.prompt.messages, drawn.expected))[-1])
    assert not asked & trained


def test_words_of_the_open_level_never_occur_in_training(
    conversations: list[Conversation],
) -> None:
    seen = {word for item in conversations for word in str(item).replace("'", " ").split()}
    unseen = {word for _, words in lists.WORDS.values() for word in words}
    assert "Paris" in seen
    assert not unseen & seen


def test_made_up_words_of_training_and_of_the_open_level_are_disjoint() -> None:
    draws = [Draw(random.Random(1), "train"), Draw(random.Random(1), "open")]
    train, unseen = ({draw.made_up_word() for _ in range(400)} for draw in draws)
    assert not train & unseen
    assert all(is_held_out("word:" + word) or word in lists.UNSEEN_WORDS for word in unseen)


def test_closed_values_come_from_the_lists() -> None:
    draw = Draw(random.Random(2), "closed")
    assert {draw.listed("room") for _ in range(200)} == set(lists.WORDS["room"][0])


def test_one_combination_in_eight_is_held_out() -> None:
    share = sum(is_held_out(f"combination {index}") for index in range(4000)) / 4000
    assert share == pytest.approx(1 / 8, abs=0.02)


def test_training_contains_every_readme_prompt(conversations: list[Conversation]) -> None:
    trained = {str(item.messages) + str(item.tools) for item in conversations}
    pinned = [pinned_conversation(prompt) for prompt in README_PROMPTS]
    assert len(pinned) == len(WELL_KNOWN_CITIES) + 4
    found = [str(item.messages) + str(item.tools) in trained for item in pinned]
    assert sum(found) > len(found) * 0.9


def test_every_call_names_an_offered_tool_and_its_arguments(
    conversations: list[Conversation],
) -> None:
    num_calls = 0
    for item in conversations:
        functions: list[Any] = [tool["function"] for tool in item.tools]
        schemas = {function["name"]: function for function in functions}
        for message in item.messages:
            calls = message.get("tool_calls")
            for call in calls if isinstance(calls, list) else []:
                function = schemas[call["function"]["name"]]
                parameters = function["parameters"]
                assert set(call["function"]["arguments"]) <= set(parameters["properties"])
                assert set(call["function"]["arguments"]) >= set(parameters["required"])
                num_calls += 1
    assert num_calls > 2000


def test_every_text_argument_is_copied_from_the_question(
    conversations: list[Conversation],
) -> None:
    for item in conversations:
        question = ""
        for message in item.messages:
            if message["role"] == "user":
                question = str(message["content"])
            calls = message.get("tool_calls")
            for call in calls if isinstance(calls, list) else []:
                for value in call["function"]["arguments"].values():
                    if not isinstance(value, bool):
                        assert str(value) in question


def test_a_long_conversation_has_many_turns() -> None:
    item = training_conversation(random.Random(1), max_characters=4000)
    assert len(questions(item)) > 20


@pytest.mark.parametrize("category", CATEGORIES)
def test_drawing_examples_ends_also_where_the_offered_tools_have_few_combinations(
    category: str,
) -> None:
    rng = random.Random(0)
    examples = [example(rng, category, "closed") for _ in range(60)]
    assert {item.category for item in examples} == {category}
