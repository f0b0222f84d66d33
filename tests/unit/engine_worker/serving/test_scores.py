"""A Score's way through an engine: tokenised in a thread, computed in the step loop, answered once."""

import json
import threading
from array import array
from typing import Any

import pytest

from engine_worker.core.credits import CreditPolicy
from engine_worker.core.engine import Engine
from engine_worker.core.scoring import ScoreTask, score_task
from engine_worker.serving.step_loop import StepLoop
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.preparation import PromptPreparer
from engine_worker.text.score_preparation import ScorePreparer
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    Cancel,
    ClearCache,
    Extend,
    Failure,
    Finished,
    Message,
    Score,
    Scored,
    ScoredQuestion,
)
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token, scored_logprob
from tests.unit.engine_worker.serving.test_handler_and_step_loop import TOKENIZER, House, generate

TEMPLATE = ChatTemplate(TOKENIZER, "m")
PREPARER = ScorePreparer(TOKENIZER, TEMPLATE, vocab_size=TOKENIZER.num_tokens, max_len=100)


def score(request_id: str = "s", **changes: Any) -> Score:
    options: dict[str, Any] = {
        "deadline_s": 60.0,
        "messages_json": json.dumps([{"role": "user", "content": "The sky is blue. "}]),
        "questions": (ScoredQuestion(text="Is it?"), ScoredQuestion(text="Which?", label_set=1)),
        "label_sets": (("Y", "N"), ("A", "B", "C")),
        "tenant": "t",
        **changes,
    }
    return Score(request_id=request_id, **options)


class ScoringHouse(House):
    """A house whose engine scores; `gate` lets tokenising go on."""

    def __init__(self, *, has_scores: bool = True, **options: Any) -> None:
        super().__init__(**options)
        # With the control tokens of the template, which come after all others.
        self.engine = Engine(
            DeterministicFakeRunner(hashed_token(250)),
            TOKENIZER,
            vocab_size=TOKENIZER.num_tokens,
            max_model_len=100,
            clock=lambda: self.now,
        )
        self.loop = StepLoop(self.engine, self.handler, self.outlet, clock=lambda: self.now)
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        prompts = PromptPreparer(
            TOKENIZER, TEMPLATE, vocab_size=TOKENIZER.num_tokens, max_model_len=100, block_size=4
        )
        self.handler.serve(
            prompts,
            CreditPolicy(8, 1000, 100),
            self.engine.grammars,
            self.engine.acceptor,
            self.tokenise if has_scores else None,
        )

    def tokenise(self, gateway_id: str, command: Score, received_at: float) -> ScoreTask:
        self.begun.release()
        assert self.gate.wait(10)
        prompt = PREPARER.prepare(command)
        return score_task(gateway_id, command, prompt, self.engine.score_limits, received_at)

    def answers(self) -> list[Message]:
        return [one for _, one in self.outlet.sent if isinstance(one, Scored | Failure)]

    def wait_for_tokens(self) -> None:
        """Until everything that was sent is at the step loop."""
        item = self.handler.inbox.get(timeout=10)
        self.handler.inbox.put(item)


def test_the_answer_has_each_label_of_each_question_in_order() -> None:
    house = ScoringHouse()
    house.handler.on_command("g", score())
    house.wait_for_tokens()
    assert house.handler.num_unfinished() == 1
    house.rest()
    (answer,) = house.answers()
    assert isinstance(answer, Scored)
    prompt = PREPARER.prepare(score())
    expected = [
        scored_logprob([*prompt.head, *texts.token_ids], label[0])
        for texts in prompt.questions
        for label in texts.labels
    ]
    found = array("f")
    found.frombytes(answer.logprobs)
    assert found.tolist() == expected
    assert answer.num_prompt_tokens == prompt.num_tokens
    assert house.handler.num_unfinished() == 0


def test_what_is_wrong_with_it_is_said_and_an_engine_that_scores_nothing_says_so() -> None:
    house = ScoringHouse()
    house.handler.on_command("g", score(label_sets=(("A", "A"), ("B",))))
    (_, failure), *_ = house.outlet.wait_for(1)
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.INVALID_REQUEST
    house = ScoringHouse(has_scores=False)
    house.handler.on_command("g", score())
    (_, failure), *_ = house.outlet.wait_for(1)
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.UNSUPPORTED_PARAMETER


def test_a_cancelled_score_is_dropped_wherever_it_is() -> None:
    house = ScoringHouse()
    house.gate.clear()
    house.handler.on_command("g", score("in a thread"))
    assert house.begun.acquire(timeout=10)
    house.handler.on_command("g", Cancel(request_id="in a thread"))
    house.gate.set()
    house.handler.on_command("g", score("at the loop"))
    house.wait_for_tokens()
    house.loop.run_once(block=False)
    house.handler.on_command("g", Cancel(request_id="at the loop"))
    house.rest()
    (told,) = house.answers()
    assert isinstance(told, Scored)
    assert (told.request_id, told.logprobs) == ("at the loop", b"")
    assert house.handler.num_unfinished() == 0
    # Nobody hands on what is over.
    house.handler.on_command("g", Cancel(request_id="at the loop"))
    assert house.handler.inbox.empty()


def test_beyond_its_credit_a_gateway_is_refused_and_may_try_again() -> None:
    house = ScoringHouse()
    for number in range(8):
        command = generate(f"r{number}", prompt_token_ids=(1,) * 90)
        house.handler.on_command("g", command)
    house.loop.run_once(block=False)
    house.handler.on_command("g", score())
    house.wait_for_tokens()
    house.loop.run_once(block=False)
    (failure,) = house.answers()
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.CREDIT_EXCEEDED
    house.rest()
    house.handler.on_command("g", score())
    house.wait_for_tokens()
    house.rest()
    assert isinstance(house.answers()[-1], Scored)


def _raise(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("method", ["score", "add", "clear_cache", "abort", "extend"])
def test_a_command_that_the_engine_breaks_at_costs_nobody_else_anything(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = ScoringHouse()
    house.handler.on_command("g", generate("before"))
    house.loop.run_once(block=False)
    monkeypatch.setattr(house.engine, method, _raise)
    house.handler.on_command("g", score("s"))
    house.wait_for_tokens()
    for command in (
        generate("r"),
        ClearCache(request_id="c"),
        Extend(request_id="before", choice=0, attempt=1, lease_tokens=200),
        Abort(request_id="r", attempt=1),
    ):
        house.handler.on_command("g", command)
    house.rest()
    failures = [one for one in house.answers() if isinstance(one, Failure)]
    failures += [end for end in house.outlet.ends() if isinstance(end, Failure)]
    broken = {"score": ["s"], "add": ["r"], "clear_cache": ["c"]}.get(method, [])
    assert [failure.request_id for failure in failures] == broken
    assert all(failure.code is ErrorCode.INTERNAL_ERROR for failure in failures)
    assert "before" in {end.request_id for end in house.outlet.ends() if isinstance(end, Finished)}
    assert house.handler.num_unfinished() == 0


def test_a_label_of_too_many_tokens_is_refused_before_the_step_loop_sees_it() -> None:
    house = ScoringHouse()
    house.handler.on_command("g", score(label_sets=(("Y" * 10, "N"), ("A",))))
    (_, failure), *_ = house.outlet.wait_for(1)
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.INVALID_REQUEST
    assert "10 tokens of this model" in failure.message
    house.rest()
    assert house.handler.num_unfinished() == 0


def test_a_gateway_that_is_lost_takes_its_scores_along() -> None:
    house = ScoringHouse()
    house.handler.on_command("g", score())
    house.wait_for_tokens()
    house.loop.run_once(block=False)
    house.handler.on_gateway_lost("g")
    house.rest()
    assert house.answers() == []
    assert house.handler.num_unfinished() == 0


def test_a_draining_engine_refuses_new_scores_and_ends_old_ones() -> None:
    house = ScoringHouse()
    house.handler.on_command("g", score("old"))
    house.wait_for_tokens()
    house.handler.on_drain(10.0)
    house.handler.on_command("g", score("new"))
    house.rest()
    assert {type(one): getattr(one, "request_id", "") for one in house.answers()} == {
        Failure: "new",
        Scored: "old",
    }
