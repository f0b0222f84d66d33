"""How long reasoning may be: what the client says, what an effort stands for, who can end it."""

from typing import Any

import pytest

from gateway.errors import UnsupportedFieldError
from gateway.request.jobs.thoughts import BUDGET_FIELD, ThoughtLimit, check_budget, thought_limit
from protocol.version import EXTRAS_VERSION, PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import ParseOpened, Thought
from tests.fakes.request_parts import engine_offer, generation_job

OLDER = ProtocolVersion(EXTRAS_VERSION.major, EXTRAS_VERSION.minor - 1)
BUDGETS = {"low": 100, "none": 0, "high": -1}
MARKED = Thought(begins="marked", starts=("<think>",), ends=("</think>",), closing="</think>")
CLOSED = Thought(begins="no", ends=("</think>",), closing="</think>")


def opened(thought: Thought | None = MARKED) -> ParseOpened:
    return ParseOpened(request_id="r", attempt=1, thought=thought)


def test_a_number_of_tokens_is_refused_of_a_model_without_reasoning() -> None:
    job = generation_job(thinking_budget=5, demands_budget=True)
    with pytest.raises(UnsupportedFieldError, match="`m` has no reasoning") as raised:
        check_budget(job, engine_offer(), PROTOCOL_VERSION)
    assert raised.value.param == BUDGET_FIELD


def test_a_number_of_tokens_is_refused_of_an_engine_that_can_not_end_reasoning() -> None:
    job = generation_job(thinking_budget=5, demands_budget=True)
    offer = engine_offer(reasoning_format="think")
    check_budget(job, offer, EXTRAS_VERSION)
    with pytest.raises(UnsupportedFieldError) as raised:
        check_budget(job, offer, OLDER)
    assert raised.value.param == BUDGET_FIELD


def test_a_budget_that_nobody_insists_on_is_refused_of_no_model() -> None:
    check_budget(generation_job(thinking_budget=5), engine_offer(), OLDER)


def test_the_number_that_a_client_says_counts_before_that_of_its_effort() -> None:
    job = generation_job(thinking_budget=7, reasoning_effort="low")
    assert thought_limit(job, BUDGETS, opened(), PROTOCOL_VERSION) == ThoughtLimit(MARKED, 7)
    job = generation_job(reasoning_effort="low")
    assert thought_limit(job, BUDGETS, opened(), PROTOCOL_VERSION) == ThoughtLimit(MARKED, 100)


def test_no_reasoning_at_all_is_a_limit_of_nothing() -> None:
    for job in (generation_job(thinking_budget=0), generation_job(reasoning_effort="none")):
        assert thought_limit(job, BUDGETS, opened(), PROTOCOL_VERSION) == ThoughtLimit(MARKED, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"thinking_budget": -1},
        {"thinking_budget": -1, "reasoning_effort": "low"},
        {"reasoning_effort": "high"},
        {"reasoning_effort": "unheard of"},
    ],
)
def test_reasoning_is_as_long_as_it_wants_where_nobody_says_a_number(
    fields: dict[str, Any],
) -> None:
    assert thought_limit(generation_job(**fields), BUDGETS, opened(), PROTOCOL_VERSION) is None


def test_engines_of_an_older_wire_are_told_of_no_limit() -> None:
    job = generation_job(thinking_budget=7)
    assert thought_limit(job, BUDGETS, opened(), EXTRAS_VERSION) == ThoughtLimit(MARKED, 7)
    assert thought_limit(job, BUDGETS, opened(), OLDER) is None


def test_a_prompt_that_has_closed_its_reasoning_needs_no_limit() -> None:
    job = generation_job(thinking_budget=7, demands_budget=True)
    assert thought_limit(job, BUDGETS, opened(CLOSED), PROTOCOL_VERSION) is None


@pytest.mark.parametrize("answer", [None, opened(None)])
def test_a_format_without_an_end_of_reasoning_leaves_it_unless_a_number_is_demanded(
    answer: ParseOpened | None,
) -> None:
    job = generation_job(thinking_budget=7)
    assert thought_limit(job, BUDGETS, answer, PROTOCOL_VERSION) is None
    demanded = generation_job(thinking_budget=7, demands_budget=True)
    with pytest.raises(UnsupportedFieldError) as raised:
        thought_limit(demanded, BUDGETS, answer, PROTOCOL_VERSION)
    assert raised.value.param == BUDGET_FIELD
    assert str(raised.value) == (
        "No marker ends the reasoning of the model `m`, so it can't be given a number of tokens;"
        " use `reasoning_effort`."
    )
