"""A drain between a prompt's answer and its choices: the request has begun, and goes on here."""

import pytest

from engine_worker.serving import promised
from engine_worker.serving.promised import PROMISED_S, PromisedPrompts
from protocol.errors import ErrorCode
from protocol.wire.messages import Cancel, Failure, Finished, Prepared
from tests.unit.engine_worker.serving.test_handler_and_step_loop import Harness, generate, prepare


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def prepared_harness() -> Harness:
    """An engine that has answered the prompt `p` of gateway `g`, and then drains."""
    harness = Harness()
    harness.serve()
    harness.handler.on_command("g", prepare())
    ((_, answer),) = harness.outlet.wait_for(1)
    assert isinstance(answer, Prepared)
    harness.handler.on_drain(5.0)
    return harness


def test_choices_of_a_prompt_that_was_just_read_are_taken_and_awaited() -> None:
    harness = prepared_harness()
    assert harness.handler.num_unfinished() == 1
    harness.handler.on_command("g", generate("p"))
    harness.handler.on_command("g", generate("p", choice=1))
    assert harness.handler.num_unfinished() == 2
    harness.rest()
    assert [type(end) for end in harness.outlet.ends()] == [Finished, Finished]
    assert harness.handler.num_unfinished() == 0


def test_nobody_else_s_are_and_none_that_come_late() -> None:
    harness = prepared_harness()
    harness.handler.on_command("other", generate("p"))
    harness.handler.on_command("g", generate("q"))
    harness.now += PROMISED_S
    assert harness.handler.num_unfinished() == 0
    harness.handler.on_command("g", generate("p"))
    refused = [message for _, message in harness.outlet.sent if isinstance(message, Failure)]
    assert [one.code for one in refused] == [ErrorCode.WORKER_UNAVAILABLE] * 3
    harness.handler.on_command("g", prepare())
    assert isinstance(harness.outlet.sent[-1][1], Failure), "no prompt is read any more"


def test_a_drain_waits_for_nobody_who_left() -> None:
    harness = prepared_harness()
    harness.handler.on_command("g", Cancel(request_id="p"))
    assert harness.handler.num_unfinished() == 0
    harness = prepared_harness()
    harness.handler.on_gateway_lost("g")
    harness.rest()
    assert harness.handler.num_unfinished() == 0


def test_a_prompt_is_waited_for_until_its_first_choice_and_remembered_for_further_ones() -> None:
    clock = Clock()
    prompts = PromisedPrompts(clock)
    assert not prompts.take("g", "a")
    prompts.on_answered("g", "a")
    clock.now += 1.0
    prompts.on_answered("g", "b")
    prompts.on_answered("h", "a")
    assert prompts.num_waiting == 3
    assert prompts.take("g", "a")
    assert prompts.num_waiting == 2
    assert prompts.take("g", "a")
    clock.now += PROMISED_S - 1.0
    assert not prompts.take("g", "a")
    assert prompts.take("g", "b")
    prompts.forget_gateway("h")
    assert not prompts.take("h", "a")
    assert prompts.num_waiting == 0


def test_one_that_is_answered_again_has_its_time_again() -> None:
    clock = Clock()
    prompts = PromisedPrompts(clock)
    for request_id in ("a", "b", "a"):
        prompts.on_answered("g", request_id)
        clock.now += 0.9
    assert [prompts.take("g", request_id) for request_id in ("a", "b")] == [True, True]
    clock.now += 0.5
    assert [prompts.take("g", request_id) for request_id in ("a", "b")] == [True, False]


@pytest.mark.parametrize("takes", [True, False])
def test_what_is_remembered_is_bounded_by_its_time(takes: bool) -> None:
    clock = Clock()
    prompts = PromisedPrompts(clock)
    for number in range(1000):
        prompts.on_answered("g", str(number))
        if takes:
            prompts.take("g", str(number))
        clock.now += promised.PROMISED_S / 10
    assert len(prompts._answered) <= 11
    assert len(prompts._waiting) <= 11
