"""A Score's way through an engine: tokenised in a thread, computed in the step loop, answered
once."""

import json
import threading
from array import array
from typing import Any

import pytest

from engine_worker.core.credits import CreditPolicy
from engine_worker.core.engine import Engine
from engine_worker.core.score_task import ScoreTask, score_task
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
from tests.unit.engine_worker.serving.test_handler_and_step_loop import TOKENIZER, Harness, generate

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


class ScoringHarness(Harness):
    """A deployment whose engine scores; `gate` lets tokenising go on."""

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
        assert self.gate.wait(60)
        prompt = PREPARER.prepare(command)
        return score_task(gateway_id, command, prompt, self.engine.score_limits, received_at)

    def answers(self) -> list[Message]:
        return [one for _, one in self.outlet.sent if isinstance(one, Scored | Failure)]

    def wait_for_tokens(self) -> None:
        """Until everything that was sent is at the step loop."""
        item = self.handler.inbox.take(60.0)
        assert item is not None
        self.handler.inbox.put(item)
        self.handler.inbox.done(1)


def test_the_answer_has_each_label_of_each_question_in_order() -> None:
    harness = ScoringHarness()
    harness.handler.on_command("g", score())
    harness.wait_for_tokens()
    assert harness.handler.num_unfinished() == 1
    harness.rest()
    (answer,) = harness.answers()
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
    assert harness.handler.num_unfinished() == 0


def test_what_is_wrong_with_it_is_said_and_an_engine_that_scores_nothing_says_so() -> None:
    harness = ScoringHarness()
    harness.handler.on_command("g", score(label_sets=(("A", "A"), ("B",))))
    (_, failure), *_ = harness.outlet.wait_for(1)
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.INVALID_REQUEST
    harness = ScoringHarness(has_scores=False)
    harness.handler.on_command("g", score())
    (_, failure), *_ = harness.outlet.wait_for(1)
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.UNSUPPORTED_PARAMETER


def test_a_cancelled_score_is_dropped_wherever_it_is() -> None:
    harness = ScoringHarness()
    harness.gate.clear()
    harness.handler.on_command("g", score("in a thread"))
    assert harness.begun.acquire(timeout=60)
    harness.handler.on_command("g", Cancel(request_id="in a thread"))
    harness.gate.set()
    harness.handler.on_command("g", score("at the loop"))
    harness.wait_for_tokens()
    harness.loop.run_once(block=False)
    harness.handler.on_command("g", Cancel(request_id="at the loop"))
    harness.rest()
    (told,) = harness.answers()
    assert isinstance(told, Scored)
    assert (told.request_id, told.logprobs) == ("at the loop", b"")
    assert harness.handler.num_unfinished() == 0
    # Nobody hands on what is over.
    harness.handler.on_command("g", Cancel(request_id="at the loop"))
    assert harness.handler.inbox.empty()


def test_beyond_its_credit_a_gateway_is_refused_and_may_try_again() -> None:
    harness = ScoringHarness()
    for number in range(8):
        command = generate(f"r{number}", prompt_token_ids=(1,) * 90)
        harness.handler.on_command("g", command)
    harness.loop.run_once(block=False)
    harness.handler.on_command("g", score())
    harness.wait_for_tokens()
    harness.loop.run_once(block=False)
    (failure,) = harness.answers()
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.CREDIT_EXCEEDED
    harness.rest()
    harness.handler.on_command("g", score())
    harness.wait_for_tokens()
    harness.rest()
    assert isinstance(harness.answers()[-1], Scored)


def _raise(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("method", ["score", "add", "clear_cache", "abort", "extend"])
def test_a_command_that_the_engine_breaks_at_costs_nobody_else_anything(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = ScoringHarness()
    harness.handler.on_command("g", generate("before"))
    harness.loop.run_once(block=False)
    monkeypatch.setattr(harness.engine, method, _raise)
    harness.handler.on_command("g", score("s"))
    harness.wait_for_tokens()
    for command in (
        generate("r"),
        ClearCache(request_id="c"),
        Extend(request_id="before", choice=0, attempt=1, lease_tokens=200),
        Abort(request_id="r", attempt=1),
    ):
        harness.handler.on_command("g", command)
    harness.rest()
    failures = [one for one in harness.answers() if isinstance(one, Failure)]
    failures += [end for end in harness.outlet.ends() if isinstance(end, Failure)]
    broken = {"score": ["s"], "add": ["r"], "clear_cache": ["c"]}.get(method, [])
    assert [failure.request_id for failure in failures] == broken
    assert all(failure.code is ErrorCode.INTERNAL_ERROR for failure in failures)
    assert "before" in {
        end.request_id for end in harness.outlet.ends() if isinstance(end, Finished)
    }
    assert harness.handler.num_unfinished() == 0


def test_a_label_of_too_many_tokens_is_refused_before_the_step_loop_sees_it() -> None:
    harness = ScoringHarness()
    harness.handler.on_command("g", score(label_sets=(("Y" * 10, "N"), ("A",))))
    (_, failure), *_ = harness.outlet.wait_for(1)
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.INVALID_REQUEST
    assert "10 tokens of this model" in failure.message
    harness.rest()
    assert harness.handler.num_unfinished() == 0


def test_a_gateway_that_is_lost_takes_its_scores_along() -> None:
    harness = ScoringHarness()
    harness.handler.on_command("g", score())
    harness.wait_for_tokens()
    harness.loop.run_once(block=False)
    harness.handler.on_gateway_lost("g")
    harness.rest()
    assert harness.answers() == []
    assert harness.handler.num_unfinished() == 0


def test_a_draining_engine_refuses_new_scores_and_ends_old_ones() -> None:
    harness = ScoringHarness()
    harness.handler.on_command("g", score("old"))
    harness.wait_for_tokens()
    harness.handler.on_drain(10.0)
    harness.handler.on_command("g", score("new"))
    harness.rest()
    assert {type(one): getattr(one, "request_id", "") for one in harness.answers()} == {
        Failure: "new",
        Scored: "old",
    }
