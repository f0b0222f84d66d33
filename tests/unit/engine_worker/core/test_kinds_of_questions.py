"""What a kind of question begins with: a prompt of its own, or part of every row."""

from dataclasses import replace

import pytest

from engine_worker.core.choice.score_pack import ScoredTexts
from tests.unit.engine_worker.core.test_scoring import Harness, expected, logprobs


def of_two_kinds(num_questions: int) -> tuple[ScoredTexts, ...]:
    """Two thirds are of one kind; the last one is longer than any pack."""
    one, other = (30, 31, 32), (35, 36)
    questions = [
        ScoredTexts((7, number), ((1,), (2,)), 2 * number, other if number % 3 == 0 else one)
        for number in range(num_questions)
    ]
    long = ScoredTexts(tuple(range(60, 83)), ((4,), (5,)), 2 * num_questions, one)
    return (*questions, long)


@pytest.mark.parametrize(
    ("num_questions", "least", "num_in_prompts"),
    [
        # The other kind finds the head's whole blocks of four, the long question those of its kind.
        (12, 4, (13 + 2) + (13 + 3 - 12) + (3 + 13 + 22 - 16)),
        # A kind with four questions is no prompt.
        (12, 5, 13 + (13 + 3 - 12) + (3 + 13 + 22 - 16)),
        (12, 100, 13 + (3 + 13 + 22 - 12)),
        (3, 1, (13 + 2) + (13 + 3 - 12) + (3 + 13 + 22 - 16)),
    ],
)
def test_what_a_kind_of_question_begins_with_is_computed_once_if_it_has_enough_of_them(
    num_questions: int, least: int, num_in_prompts: int
) -> None:
    """What a question gets and is charged is the same in any case."""
    questions = of_two_kinds(num_questions)
    harness = Harness(least_of_a_kind=least)
    harness.engine.score(harness.task("s", questions))
    harness.run()
    (answer,) = harness.answers
    assert logprobs(answer) == pytest.approx(expected(questions))
    assert answer.num_prompt_tokens == 13 + 3 + 2 + num_questions * 2 + 23
    assert answer.num_tokens == (2,) * num_questions + (23,)
    assert answer.num_cached_tokens == 0
    num_computed = sum(len(row.token_ids) for batch in harness.runner.batches for row in batch.rows)
    assert num_computed == num_in_prompts
    for number in (0, 1):
        alone = replace(questions[number], first=0)
        harness.answers.clear()
        harness.engine.score(harness.task(f"alone {number}", (alone,)))
        harness.run()
        both = logprobs(answer)[2 * number : 2 * number + 2]
        assert logprobs(harness.answers[0]) == both


def test_a_kind_that_is_asked_alone_needs_one_prompt() -> None:
    questions = of_two_kinds(2)[1:2]
    harness = Harness()
    harness.engine.score(harness.task("s", (replace(questions[0], first=0),)))
    harness.run()
    assert {len(row) for pack in harness.runner.packs for row in pack.rows} == {2}
    num_computed = sum(len(row.token_ids) for batch in harness.runner.batches for row in batch.rows)
    assert num_computed == 13 + 3
