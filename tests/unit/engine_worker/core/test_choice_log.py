"""What an engine logs of a request stands on lines with its id and its client's."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from engine_worker.core.choice.batch import StepBatch, StepResult
from engine_worker.core.engine import Engine
from protocol.wire.messages import Generate, SamplingParams
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token
from tests.fakes.log_lines import LogLines, log_lines
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()


@pytest.fixture
def lines() -> Iterator[LogLines]:
    with log_lines("penstock.engine") as found:
        yield found


def make_engine() -> tuple[Engine, DeterministicFakeRunner]:
    runner = DeterministicFakeRunner(hashed_token(250))
    return Engine(runner, TOKENIZER, vocab_size=TOKENIZER.num_tokens, max_model_len=50), runner


def generate(**changes: Any) -> Generate:
    options: dict[str, Any] = {
        "request_id": "r",
        "choice": 0,
        "attempt": 1,
        "prompt_token_ids": (1, 2, 3),
        "sampling": SamplingParams(max_tokens=2, temperature=0.0),
        "lease_tokens": 100,
        "deadline_s": 60.0,
        "trace_id": "mine-1",
        **changes,
    }
    return Generate(**options)


def run(engine: Engine) -> None:
    while engine.has_work():
        engine.step()


def test_the_beginning_and_the_end_of_a_choice_are_logged(lines: LogLines) -> None:
    engine, _ = make_engine()
    engine.add("g", generate())
    run(engine)
    assert lines.about("mine-1") == [
        ("debug", "choice 0 accepted, attempt 1: 3 prompt tokens, 0 of an earlier attempt"),
        ("debug", "choice 0 ended, attempt 1, 2 output tokens: length"),
    ]


def test_a_refusal_is_logged(lines: LogLines) -> None:
    engine, _ = make_engine()
    engine.add("g", generate(prompt_token_ids=()))
    ((level, message),) = lines.about("mine-1")
    assert level == "debug"
    assert message == "choice 0 refused: invalid_request: The prompt is empty."


def test_each_request_of_a_step_that_failed_has_a_warning(lines: LogLines) -> None:
    engine, runner = make_engine()

    def broken(batch: StepBatch) -> StepResult:
        raise RuntimeError("no device")

    runner.run = broken  # type: ignore[method-assign]
    engine.add("g", generate())
    engine.add("g", generate(choice=1, trace_id="mine-2"))
    run(engine)
    for trace_id in ("mine-1", "mine-2"):
        level, message = lines.about(trace_id)[-1]
        assert level == "warning"
        assert "worker_lost" in message


def test_at_a_higher_level_nothing_is_said_of_what_goes_well(lines: LogLines) -> None:
    logging.getLogger("penstock.engine").setLevel("INFO")
    engine, _ = make_engine()
    engine.add("g", generate())
    run(engine)
    assert not lines.lines
