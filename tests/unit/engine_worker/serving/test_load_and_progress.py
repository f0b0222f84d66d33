"""What heartbeats say of an engine: work without progress is taken for a hang."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from engine_worker.core.credits import CreditPolicy
from engine_worker.core.engine import Engine
from engine_worker.errors import UnsupportedGrammarError
from engine_worker.serving.handler import EngineHandler
from engine_worker.serving.progress import Progress, Side
from engine_worker.serving.step_loop import StepLoop
from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import (
    Embed,
    Failure,
    Finished,
    Generate,
    Grammar,
    Message,
    SamplingParams,
    StepOutput,
)
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
PATTERN = Grammar(kind="regex", source="a")


class Harness:
    """A handler whose grammars and acceptances wait for `go`; the test steps its loop."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.go, self.has_begun = threading.Event(), threading.Event()
        runner = DeterministicFakeRunner(hashed_token(250))
        self.engine = Engine(runner, TOKENIZER, vocab_size=258, max_model_len=100)
        self.handler = EngineHandler()
        self.handler.connect(self)
        self.loop = StepLoop(self.engine, self.handler, self)
        unused: Any = SimpleNamespace(answer=None)
        held: Any = SimpleNamespace(start=self.refuse, accept=self.refuse, close=lambda: None)
        self.handler.serve(unused, CreditPolicy(8, 1000, 100), held, held)

    def refuse(self, *_: object, **__: object) -> None:
        self.has_begun.set()
        assert self.go.wait(60)
        raise UnsupportedGrammarError("No.")

    def send(self, gateway_id: str, message: Message) -> None:
        self.sent.append(message)

    def gateway_ids(self) -> tuple[str, ...]:
        return ("g",)

    def gateway_version(self, gateway_id: str) -> ProtocolVersion:
        return PROTOCOL_VERSION

    def generate(self, **changes: Any) -> None:
        options: dict[str, Any] = {
            "sampling": SamplingParams(max_tokens=4, temperature=0.0),
            "prompt_token_ids": (1, 2, 3),
            **changes,
        }
        command = Generate("r", choice=0, attempt=1, lease_tokens=100, deadline_s=1e6, **options)
        self.handler.on_command("g", command)

    def outputs(self) -> list[StepOutput]:
        return [message for message in self.sent if isinstance(message, StepOutput)]

    def ends(self) -> list[Finished | Failure]:
        return [end for output in self.outputs() for end in output.ends]


@pytest.mark.parametrize("held", [{"grammar": PATTERN}, {"output_token_ids": (5,)}])
def test_a_choice_that_no_step_could_take_yet_is_unfinished_but_does_not_run(
    held: dict[str, Any],
) -> None:
    harness = Harness()
    harness.generate(**held)
    assert harness.has_begun.wait(60)
    assert (harness.handler.load().num_running, harness.handler.num_unfinished()) == (0, 1)
    harness.go.set()
    until_s = time.monotonic() + 60
    while harness.handler.inbox.empty():
        assert time.monotonic() < until_s
        time.sleep(0)
    assert (harness.handler.load().num_running, harness.handler.num_unfinished()) == (1, 1)
    before = harness.handler.progress_counter()
    harness.loop.run_once(block=False)
    (end,) = harness.ends()
    assert isinstance(end, Failure)
    assert (harness.handler.load().num_running, harness.handler.num_unfinished()) == (0, 0)
    # The loop took it: that is progress, though there was nothing to compute.
    assert harness.handler.progress_counter() > before
    harness.handler.close()


def test_steps_that_stand_still_are_no_progress_however_many_texts_are_computed() -> None:
    texts: Any = SimpleNamespace(num_unfinished=0, num_batches=0, takes=Embed, close=lambda: None)
    harness = Harness()
    harness.handler.serve_texts(texts)
    harness.generate()
    harness.loop.run_once(block=False)
    texts.num_unfinished = 1
    texts.num_batches += 1
    seen = {harness.handler.progress_counter()}
    for _ in range(5):
        texts.num_batches += 1
        seen.add(harness.handler.progress_counter())
    assert len(seen) == 1
    harness.loop.run_once(block=False)
    assert harness.handler.progress_counter() not in seen
    harness.handler.close()


def test_texts_that_stand_still_are_no_progress_however_many_steps_run() -> None:
    texts: Any = SimpleNamespace(num_unfinished=1, num_batches=3, takes=Embed, close=lambda: None)
    harness = Harness()
    harness.handler.serve_texts(texts)
    harness.generate()
    harness.loop.run_once(block=False)
    before = harness.handler.progress_counter()
    harness.sent.clear()
    for _ in range(3):
        harness.loop.run_once(block=False)
    assert harness.handler.progress_counter() == before
    # What outputs say and what heartbeats say is one counter.
    assert {output.progress_counter for output in harness.outputs()} == {before}
    texts.num_unfinished = 0
    assert harness.handler.progress_counter() > before
    harness.handler.close()


def test_each_side_that_has_work_has_to_move_for_progress() -> None:
    progress = Progress()

    def told(steps: tuple[int, bool], texts: tuple[int, bool]) -> int:
        return progress.count(*(Side(count, has_work=busy) for count, busy in (steps, texts)))

    assert told((0, True), (0, False)) == 0
    assert told((1, True), (0, False)) == 1
    assert told((1, True), (0, False)) == 1
    assert told((2, True), (0, True)) == 1
    assert told((2, True), (1, True)) == 2
    assert told((2, True), (9, True)) == 2
    assert told((3, True), (9, True)) == 3
    assert told((3, False), (10, True)) == 4
    assert told((3, False), (10, False)) == 4
