"""What takes a while when a choice is taken is done beside the steps, which go on."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from engine_worker.core.choice.choice import Choice
from engine_worker.core.choice_acceptor import ChoiceAcceptor
from engine_worker.core.choice_output import ChoiceOutput
from engine_worker.core.credits import CreditPolicy
from engine_worker.core.engine import Engine
from engine_worker.core.scheduling.turn_queue import TurnQueue
from engine_worker.grammar.constraint import Constraint
from engine_worker.serving import acceptance_queue
from engine_worker.serving.acceptance_queue import (
    QUICK_PROMPT_TOKENS,
    QUICK_STOP_CHARACTERS,
    QUICK_TOKEN_IDS,
    AcceptanceQueue,
    is_quick,
)
from engine_worker.serving.handler import EngineHandler
from engine_worker.serving.step_loop import StepLoop
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.output_text import OutputText
from engine_worker.text.preparation import PromptPreparer
from engine_worker.text.stopping import Stop
from engine_worker.text.tokenizer import Tokenizer
from protocol.errors import ErrorCode
from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import (
    Abort,
    Delta,
    Extend,
    Failure,
    Finished,
    Generate,
    Grammar,
    Message,
    SamplingParams,
    StepOutput,
)
from tests.fakes.fake_runner import DeterministicFakeRunner
from tests.fakes.hand_driven_engine import NEXT_TOKEN, expected_tokens
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

PROMPT = (104, 105)
WITH_BAD_WORDS = SamplingParams(temperature=0.0, max_tokens=20, bad_words=("never",))


class WatchedTokenizer(Tokenizer):
    """Notes which threads have it work on whole texts, or read an output from its beginning."""

    def __init__(self) -> None:
        plain = byte_level_tokenizer()
        super().__init__(plain._files, plain.eos_token_ids)
        self.threads: set[threading.Thread] = set()

    def _encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Any]:
        self.threads.add(threading.current_thread())
        return super()._encode_batch(texts, add_special_tokens=add_special_tokens)


class HeldAcceptor:
    """Accepts as the engine does, once it is let go; choices named `broken` raise."""

    def __init__(self, acceptor: ChoiceAcceptor) -> None:
        self._acceptor = acceptor
        self.go = threading.Event()
        self.go.set()
        self.has_begun = threading.Semaphore(0)
        self.begun: list[str] = []

    def accept(self, gateway_id: str, command: Generate, **options: Any) -> ChoiceOutput:
        self.begun.append(command.request_id)
        self.has_begun.release()
        assert self.go.wait(60)
        if command.request_id == "broken":
            raise BaseException("a panic")
        return self._acceptor.accept(gateway_id, command, **options)


class Harness:
    """A handler and its step loop, which the test's own thread runs."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.tokenizer = WatchedTokenizer()
        vocab_size = self.tokenizer.num_tokens
        runner = DeterministicFakeRunner(NEXT_TOKEN, num_blocks=200)
        self.engine = Engine(runner, self.tokenizer, vocab_size=vocab_size, max_model_len=100)
        self.acceptor = HeldAcceptor(self.engine.acceptor)
        self.handler = EngineHandler()
        self.handler.connect(self)
        self.loop = StepLoop(self.engine, self.handler, self)
        preparer = PromptPreparer(
            self.tokenizer,
            ChatTemplate(self.tokenizer, "m"),
            vocab_size=vocab_size,
            max_model_len=100,
            block_size=4,
        )
        policy = CreditPolicy(10_000, 1_000_000, 100)
        self.handler.serve(preparer, policy, self.engine.grammars, self.acceptor)

    def send(self, gateway_id: str, message: Message) -> None:
        self.sent.append(message)

    def gateway_ids(self) -> tuple[str, ...]:
        return ("g",)

    def gateway_version(self, gateway_id: str) -> ProtocolVersion:
        return PROTOCOL_VERSION

    def fill_the_threads(self) -> None:
        """Two choices are being accepted, so that whatever comes now waits."""
        self.acceptor.go.clear()
        for name in ("first", "second"):
            self.handler.on_command("g", generate(name, tenant=name))
            assert self.acceptor.has_begun.acquire(timeout=60)

    def rest(self) -> None:
        """Let the threads go, and step until all is done."""
        self.acceptor.go.set()
        while self.handler.num_unfinished() or self.engine.has_work():
            self.loop.run_once(block=False)
            time.sleep(0)

    def outputs(self) -> list[StepOutput]:
        return [message for message in self.sent if isinstance(message, StepOutput)]

    def deltas(self) -> list[Delta]:
        return [delta for output in self.outputs() for delta in output.deltas]

    def token_ids(self, request_id: str = "r") -> list[int]:
        return [
            token_id
            for delta in self.deltas()
            if delta.request_id == request_id
            for token_id in delta.token_ids
        ]

    def ends(self) -> dict[str, Finished | Failure]:
        ends = [end for output in self.outputs() for end in output.ends]
        assert len({(end.request_id, end.attempt) for end in ends}) == len(ends)
        return {end.request_id: end for end in ends}


@pytest.fixture
def few_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a harness that is made after it: eight choices, four of them of one tenant."""
    monkeypatch.setattr(acceptance_queue, "MAX_WAITING", 8)
    monkeypatch.setattr(acceptance_queue, "MAX_TENANT_WAITING", 4)


@pytest.fixture
def harness() -> Iterator[Harness]:
    before = set(threading.enumerate())
    harness = Harness()
    yield harness
    harness.acceptor.go.set()
    harness.handler.close()
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith(("accept", "grammar")) and thread.ident is not None:
            thread.join(60)


def generate(request_id: str = "r", **changes: Any) -> Generate:
    options: dict[str, Any] = {
        "choice": 0,
        "attempt": 1,
        "prompt_token_ids": PROMPT,
        "sampling": WITH_BAD_WORDS,
        "lease_tokens": 100,
        "deadline_s": 60.0,
        "want_token_ids": True,
        **changes,
    }
    return Generate(request_id=request_id, **options)


def test_the_steps_thread_never_has_a_text_tokenised(harness: Harness) -> None:
    harness.handler.on_command("g", generate())
    harness.handler.on_command("g", generate("two", output_token_ids=(97, 98)))
    harness.rest()
    assert all(isinstance(end, Finished) for end in harness.ends().values())
    assert harness.tokenizer.threads
    assert threading.current_thread() not in harness.tokenizer.threads


@pytest.mark.parametrize("grammar", [None, Grammar(kind="regex", source="[ -~]{30}")])
def test_the_steps_thread_reads_no_token_of_an_earlier_attempt(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, grammar: Grammar | None
) -> None:
    plain = SamplingParams(temperature=0.0, max_tokens=30)
    output = tuple(b"from an earlier attempt")
    threads: list[threading.Thread] = []
    push = OutputText.push

    def watched(text: OutputText, choice: Choice, *, is_complete: bool = False) -> Stop | None:
        threads.append(threading.current_thread())
        return push(text, choice, is_complete=is_complete)

    plain_text = ChoiceOutput.plain_text

    def watched_plain(choice: ChoiceOutput, token_ids: Sequence[int]) -> Any:
        found = plain_text(choice, token_ids)
        threads.extend([threading.current_thread()] * len(token_ids) if found else [])
        return found

    monkeypatch.setattr(OutputText, "push", watched)
    monkeypatch.setattr(ChoiceOutput, "plain_text", watched_plain)
    harness.handler.on_command(
        "g", generate(output_token_ids=output, sampling=plain, grammar=grammar)
    )
    harness.rest()
    assert isinstance(harness.ends()["r"], Finished)
    assert len(threads) == 30
    assert threads.count(threading.current_thread()) == 30 - len(output)


def test_others_run_while_a_choice_is_accepted(harness: Harness) -> None:
    harness.fill_the_threads()
    plain = SamplingParams(temperature=0.0, max_tokens=5)
    harness.handler.on_command("g", generate("quick", sampling=plain))
    harness.loop.run_once(block=False)
    while harness.engine.has_work():
        harness.loop.run_once(block=False)
    assert set(harness.ends()) == {"quick"}
    assert harness.handler.num_unfinished() == 2
    harness.rest()
    assert set(harness.ends()) == {"quick", "first", "second"}


def test_a_lease_that_grows_meanwhile_counts(harness: Harness) -> None:
    harness.acceptor.go.clear()
    harness.handler.on_command("g", generate("begun", lease_tokens=1, tenant="a"))
    harness.handler.on_command("g", generate("begun too", lease_tokens=1, tenant="b"))
    harness.handler.on_command("g", generate("waits", lease_tokens=1, tenant="c"))
    for name in ("begun", "begun too", "waits"):
        extend = Extend(request_id=name, choice=0, attempt=1, lease_tokens=100)
        harness.handler.on_command("g", extend)
        harness.loop.run_once(block=False)
    harness.rest()
    for name in ("begun", "begun too", "waits"):
        assert harness.token_ids(name) == expected_tokens(PROMPT, 20)


def test_an_abort_ends_what_waits_and_what_is_being_accepted(harness: Harness) -> None:
    harness.fill_the_threads()
    harness.handler.on_command("g", generate("waits"))
    for name in ("first", "waits"):
        harness.handler.on_command("g", Abort(request_id=name, choice=0, attempt=1))
    harness.loop.run_once(block=False)
    ends = harness.ends()
    assert {name: end.finish_reason for name, end in ends.items() if isinstance(end, Finished)} == {
        "first": "abort",
        "waits": "abort",
    }
    harness.rest()
    assert harness.acceptor.begun == ["first", "second"]
    assert set(harness.ends()) == {"first", "second", "waits"}


def test_what_a_lost_gateway_wanted_is_dropped(harness: Harness) -> None:
    harness.fill_the_threads()
    harness.handler.on_command("g", generate("waits"))
    harness.handler.on_command("other", generate("theirs"))
    harness.handler.on_gateway_lost("g")
    harness.rest()
    assert set(harness.ends()) == {"theirs"}
    assert harness.acceptor.begun == ["first", "second", "theirs"]


def test_to_drop_what_a_lost_gateway_wanted_takes_as_long_as_there_is_of_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_looks = 0
    drop = TurnQueue.drop

    def watched(queue: TurnQueue[Any], is_unwanted: Callable[[Any], bool]) -> list[Any]:
        def look(item: Any) -> bool:
            nonlocal num_looks
            num_looks += 1
            return is_unwanted(item)

        return drop(queue, look)

    monkeypatch.setattr(TurnQueue, "drop", watched)
    harness.fill_the_threads()
    num_waiting = 500
    for number in range(num_waiting):
        harness.handler.on_command("g", generate(f"waits {number}"))
    num_looks = 0
    harness.handler.on_gateway_lost("g")
    assert 0 < num_looks <= 4 * num_waiting
    harness.rest()
    assert harness.acceptor.begun == ["first", "second"]


def test_a_bug_in_accepting_costs_that_request_only(harness: Harness) -> None:
    harness.handler.on_command("g", generate("broken"))
    harness.handler.on_command("g", generate("broken", choice=1))
    harness.handler.on_command("g", generate("good"))
    harness.acceptor.go.set()
    while harness.handler.num_unfinished() or harness.engine.has_work():
        harness.loop.run_once(block=False)
    ends = [end for output in harness.outputs() for end in output.ends]
    failures = [end for end in ends if isinstance(end, Failure)]
    assert [end.code for end in failures] == [ErrorCode.INTERNAL_ERROR] * 2
    assert harness.token_ids("good") == expected_tokens(PROMPT, 20)


def test_what_is_wrong_with_a_request_is_told_as_if_it_were_quick(harness: Harness) -> None:
    sampling = SamplingParams(bad_words=("never",), temperature=-1.0)
    harness.handler.on_command("g", generate(sampling=sampling))
    harness.rest()
    (end,) = harness.ends().values()
    assert isinstance(end, Failure)
    assert (end.code, end.param) == (ErrorCode.INVALID_REQUEST, "temperature")


def test_one_tenant_leaves_places_to_others() -> None:
    assert acceptance_queue.MAX_TENANT_WAITING < acceptance_queue.MAX_WAITING


def test_more_than_may_wait_is_refused_as_overload(few_may_wait: None, harness: Harness) -> None:
    harness.fill_the_threads()
    for index in range(4 + 1):
        harness.handler.on_command("g", generate(str(index)))
    for index in range(4 + 1):
        harness.handler.on_command("g", generate(f"other {index}", tenant=f"other {index}"))
    refused = [message for message in harness.sent if isinstance(message, Failure)]
    assert [(failure.request_id, failure.code) for failure in refused] == [
        ("4", ErrorCode.OVERLOADED),
        ("other 4", ErrorCode.OVERLOADED),
    ]
    assert all(failure.retry_after_s is not None for failure in refused)
    harness.handler.on_gateway_lost("g")
    harness.rest()
    assert harness.handler.num_unfinished() == 0


def test_a_request_whose_time_is_up_fails_without_being_looked_at(harness: Harness) -> None:
    harness.fill_the_threads()
    harness.handler.on_command("g", generate("late", deadline_s=0.0))
    harness.rest()
    end = harness.ends()["late"]
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.DEADLINE_EXCEEDED
    assert "late" not in harness.acceptor.begun


def test_a_grammar_that_is_ready_only_after_the_end_is_dropped(harness: Harness) -> None:
    grammar = Grammar(kind="regex", source="a")
    queue = AcceptanceQueue(harness.acceptor, fail_if_called, lambda: 0.0)
    queue.close()
    constraint = harness.engine.grammars.start(grammar, SamplingParams())
    queue.submit_compiled("g", generate(grammar=grammar), 0.0, constraint)
    assert harness.acceptor.begun == []


def fail_if_called(*_: object) -> None:
    pytest.fail("nobody listens any more")


def test_a_suspect_is_accepted_only_when_it_is_alone(harness: Harness) -> None:
    """What it has tokenised may be what kills engines, and others would die with it."""
    sampling = SamplingParams(temperature=0.0, max_tokens=5)
    harness.handler.on_command("g", generate("other", sampling=sampling))
    harness.loop.run_once(block=False)
    harness.handler.on_command("g", generate("suspect", is_alone=True))
    harness.rest()
    refused = harness.ends()["suspect"]
    assert isinstance(refused, Failure)
    assert refused.code is ErrorCode.CREDIT_EXCEEDED
    assert not harness.tokenizer.threads
    harness.handler.on_command("g", generate("suspect", is_alone=True, attempt=2))
    harness.rest()
    assert harness.tokenizer.threads == {threading.current_thread()}
    assert harness.token_ids("suspect") == expected_tokens(PROMPT, 20)


def test_tenants_take_turns(harness: Harness) -> None:
    harness.fill_the_threads()
    for index in range(5):
        harness.handler.on_command("g", generate(f"many {index}", tenant="many"))
    harness.handler.on_command("g", generate("one", tenant="one"))
    harness.rest()
    assert harness.acceptor.begun.index("one") <= 3


@pytest.fixture
def one_is_accepted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a harness that is made after it."""
    monkeypatch.setattr(acceptance_queue, "_NUM_THREADS", 1)


@pytest.mark.usefixtures("one_is_accepted_at_a_time")
def test_whose_grammar_was_compiled_first_is_accepted_first(harness: Harness) -> None:
    harness.acceptor.go.clear()
    harness.handler.on_command("g", generate("begun", tenant="t"))
    assert harness.acceptor.has_begun.acquire(timeout=60)
    harness.handler.on_command("g", generate("plain", tenant="t"))
    (acceptances,) = harness.handler._choice_queues[1:]
    assert isinstance(acceptances, AcceptanceQueue)
    constraint = cast(Constraint, None)  # to compile one takes a process
    for name in ("first", "second", "third"):
        harness.handler.inbox.expect()
        command = generate(name, tenant="t")
        acceptances.submit_compiled("g", command, time.monotonic(), constraint)
    harness.rest()
    assert harness.acceptor.begun == ["begun", "plain", "first", "second", "third"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"sampling": SamplingParams(stop=("\n", "User:"))}, True),
        ({"sampling": SamplingParams(bad_words=("a",))}, False),
        ({"sampling": SamplingParams(stop=("a" * (QUICK_STOP_CHARACTERS + 1),))}, False),
        ({"output_token_ids": (5,)}, False),
        ({"grammar": Grammar(kind="regex", source="a")}, False),
        ({"prompt_token_ids": (5,) * QUICK_PROMPT_TOKENS}, True),
        ({"prompt_token_ids": (5,) * (QUICK_PROMPT_TOKENS + 1)}, False),
        ({"sampling": SamplingParams(allowed_token_ids=(5,) * QUICK_TOKEN_IDS)}, True),
        ({"sampling": SamplingParams(allowed_token_ids=(5,) * (QUICK_TOKEN_IDS + 1))}, False),
    ],
)
def test_only_what_is_quick_is_left_to_the_steps_thread(
    changes: dict[str, Any], expected: bool
) -> None:
    assert is_quick(generate(**{"sampling": SamplingParams(), **changes})) is expected


def test_the_same_tokens_come_as_from_an_engine_that_accepts_by_itself(harness: Harness) -> None:
    tokens = expected_tokens(PROMPT, 20)
    harness.handler.on_command("g", generate("resumed", output_token_ids=tuple(tokens[:7])))
    harness.rest()
    assert harness.token_ids("resumed") == tokens[7:]
