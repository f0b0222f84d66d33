import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine_worker.core.credits import CreditPolicy
from engine_worker.core.engine import Engine
from engine_worker.grammar.compile_queue import MAX_TENANT_WAITING
from engine_worker.grammar.compiler import CompiledGrammar, GrammarCompiler
from engine_worker.grammar.constraint import Constraint
from engine_worker.serving.handler import EngineHandler
from engine_worker.serving.step_loop import StepLoop
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.preparation import PromptPreparer
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
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
TICKET = Grammar(kind="regex", source="[A-Z]{4}")


class SlowCompiler(GrammarCompiler):
    """Waits for `go` before it compiles."""

    def __init__(self) -> None:
        super().__init__(TOKENIZER, TOKENIZER.num_tokens)
        self.go = threading.Event()
        self.has_begun = threading.Semaphore(0)
        self.begun: list[Grammar] = []
        self.compiled: list[Grammar] = []

    def start(self, grammar: Grammar, sampling: SamplingParams) -> Constraint:
        self.begun.append(grammar)
        self.has_begun.release()
        assert self.go.wait(60)
        constraint = super().start(grammar, sampling)
        self.compiled.append(grammar)
        return constraint


class Harness:
    """A handler and its step loop, with a compiler that waits to be told."""

    def __init__(self) -> None:
        self._others = set(threading.enumerate())
        self.sent: list[Message] = []
        self.compiler = SlowCompiler()
        runner = DeterministicFakeRunner(hashed_token(TOKENIZER.num_tokens))
        self.engine = Engine(
            runner,
            TOKENIZER,
            vocab_size=TOKENIZER.num_tokens,
            max_model_len=100,
            grammars=self.compiler,
        )
        self.handler = EngineHandler()
        self.handler.connect(self)
        self.loop = StepLoop(self.engine, self.handler, self)
        preparer = PromptPreparer(
            TOKENIZER,
            ChatTemplate(TOKENIZER, "m"),
            vocab_size=TOKENIZER.num_tokens,
            max_model_len=100,
            block_size=4,
        )
        policy = CreditPolicy(300, 100_000, 100)
        self.handler.serve(preparer, policy, self.compiler, self.engine.acceptor)

    def send(self, gateway_id: str, message: Message) -> None:
        self.sent.append(message)

    def gateway_ids(self) -> tuple[str, ...]:
        return ("g",)

    def gateway_version(self, gateway_id: str) -> ProtocolVersion:
        return PROTOCOL_VERSION

    def fill_the_threads(self) -> None:
        """Two requests are being compiled, so that whatever comes now waits."""
        for name in ("first", "second"):
            self.handler.on_command("g", generate(name, tenant=name))
            assert self.compiler.has_begun.acquire(timeout=60)

    def close(self) -> None:
        """End the threads; what was being compiled may still come."""
        self.compiler.go.set()
        self.handler.close()
        for thread in set(threading.enumerate()) - self._others:
            if thread.name.startswith("grammar") and thread.ident is not None:
                thread.join(60)

    def rest(self) -> None:
        """Let the compiler go, wait for it, and step until all is done."""
        self.compiler.go.set()
        while self.handler.num_unfinished() or self.engine.has_work():
            self.loop.run_once()

    def outputs(self) -> list[StepOutput]:
        return [message for message in self.sent if isinstance(message, StepOutput)]

    def deltas(self) -> list[Delta]:
        return [delta for output in self.outputs() for delta in output.deltas]

    def ends(self) -> list[Finished | Failure]:
        return [end for output in self.outputs() for end in output.ends]


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()


def generate(
    request_id: str = "r", grammar: Grammar | None = TICKET, lease: int = 100, **changes: Any
) -> Generate:
    options: dict[str, Any] = {
        "choice": 0,
        "attempt": 1,
        "prompt_token_ids": (1, 2, 3),
        "sampling": SamplingParams(temperature=0.0, max_tokens=20),
        "lease_tokens": lease,
        "deadline_s": 60.0,
        "grammar": grammar,
        **changes,
    }
    return Generate(request_id=request_id, **options)


def test_other_requests_run_while_a_grammar_is_compiled(harness: Harness) -> None:
    harness.handler.on_command("g", generate("constrained"))
    harness.handler.on_command("g", generate("free", grammar=None))
    harness.loop.run_once(block=False)
    while harness.engine.has_work():
        harness.loop.run_once(block=False)
    assert [end.request_id for end in harness.ends()] == ["free"]
    assert harness.handler.num_unfinished() == 1
    harness.rest()
    assert [end.request_id for end in harness.ends()] == ["free", "constrained"]
    text = "".join(delta.text for delta in harness.deltas() if delta.request_id == "constrained")
    assert len(text) == 4
    assert text.isupper()
    assert harness.handler.num_unfinished() == 0


def test_a_hopeless_grammar_is_a_failure_with_its_reason(harness: Harness) -> None:
    harness.handler.on_command("g", generate(grammar=Grammar(kind="regex", source="(a")))
    harness.rest()
    (end,) = harness.ends()
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.UNSUPPORTED_GRAMMAR
    assert "unclosed group" in end.message
    assert not harness.deltas()


def test_a_bug_while_compiling_is_a_failure_too(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(grammar: Grammar, sampling: SamplingParams) -> Constraint:
        raise RuntimeError("bug")

    monkeypatch.setattr(harness.compiler, "start", broken)
    harness.handler.on_command("g", generate())
    harness.rest()
    (end,) = harness.ends()
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.INTERNAL_ERROR


def test_a_request_that_is_aborted_while_it_waits_ends_as_aborted(harness: Harness) -> None:
    harness.handler.on_command("g", generate())
    harness.handler.on_command("g", Abort(request_id="r", attempt=1))
    harness.loop.run_once(block=False)
    harness.rest()
    (end,) = harness.ends()
    assert isinstance(end, Finished)
    assert end.finish_reason == "abort"


def test_a_request_whose_gateway_goes_while_it_waits_is_dropped(harness: Harness) -> None:
    harness.handler.on_command("g", generate())
    harness.handler.on_gateway_lost("g")
    harness.loop.run_once(block=False)
    harness.rest()
    assert harness.engine.num_unfinished == 0
    assert not harness.outputs()
    assert harness.handler.num_unfinished() == 0


def test_a_lease_that_grows_while_a_request_waits_is_not_lost(harness: Harness) -> None:
    harness.handler.on_command("g", generate(lease=1))
    harness.handler.on_command("g", Extend(request_id="r", choice=0, attempt=1, lease_tokens=50))
    harness.loop.run_once(block=False)
    harness.rest()
    assert [type(end) for end in harness.ends()] == [Finished]


def test_too_many_waiting_grammars_of_one_tenant_are_refused_at_once(harness: Harness) -> None:
    # Beside those that wait there may be two that are being compiled.
    for number in range(MAX_TENANT_WAITING + 3):
        harness.handler.on_command("g", generate(str(number), tenant="flood"))
    harness.handler.on_command("g", generate("calm", tenant="calm"))
    refusals = harness.sent[:]
    assert 1 <= len(refusals) <= 3
    assert all(
        isinstance(refusal, Failure)
        and refusal.code is ErrorCode.OVERLOADED
        and refusal.request_id != "calm"
        for refusal in refusals
    )


def other_grammar(number: int) -> Grammar:
    return Grammar(kind="regex", source=f"[A-Z]{{{number + 1}}}")


def test_an_abort_takes_a_request_out_before_its_grammar_is_compiled(harness: Harness) -> None:
    harness.fill_the_threads()
    harness.handler.on_command("g", generate("waiting", other_grammar(1)))
    harness.handler.on_command("g", generate("waiting", other_grammar(2), choice=1))
    harness.handler.on_command("g", generate("other", other_grammar(3)))
    harness.handler.on_command("g", Abort(request_id="waiting", attempt=1))
    harness.loop.run_once(block=False)
    ends = {(end.request_id, end.choice): end for end in harness.ends()}
    assert set(ends) == {("waiting", 0), ("waiting", 1)}
    for end in ends.values():
        assert isinstance(end, Finished)
        assert (end.finish_reason, end.usage.prompt_tokens) == ("abort", 3)
    harness.rest()
    assert len([end for end in harness.ends() if end.request_id == "waiting"]) == 2
    assert other_grammar(3) in harness.compiler.compiled
    assert not {other_grammar(1), other_grammar(2)} & set(harness.compiler.compiled)


def test_an_abort_of_one_choice_or_of_an_older_attempt_leaves_the_others(harness: Harness) -> None:
    harness.fill_the_threads()
    harness.handler.on_command("g", generate("r", other_grammar(1)))
    harness.handler.on_command("g", generate("r", other_grammar(2), choice=1, attempt=2))
    harness.handler.on_command("g", Abort(request_id="r", attempt=1))
    harness.handler.on_command("h", Abort(request_id="r", attempt=2))
    harness.handler.on_command("g", Abort(request_id="r", attempt=9, choice=7))
    harness.rest()
    reasons = {
        end.choice: end.finish_reason
        for end in harness.ends()
        if isinstance(end, Finished) and end.request_id == "r"
    }
    assert reasons == {0: "abort", 1: "stop"}


def test_an_abort_while_the_grammar_is_compiled_ends_the_request_at_once_and_once(
    harness: Harness,
) -> None:
    harness.handler.on_command("g", generate())
    assert harness.compiler.has_begun.acquire(timeout=60)
    harness.handler.on_command("g", Abort(request_id="r", attempt=1))
    harness.loop.run_once(block=False)
    (end,) = harness.ends()
    assert isinstance(end, Finished)
    assert end.finish_reason == "abort"
    assert harness.handler.num_unfinished() == 0
    harness.rest()
    harness.close()
    harness.loop.run_once(block=False)
    assert len(harness.ends()) == 1


def test_the_grammars_of_a_lost_gateway_are_not_compiled(harness: Harness) -> None:
    harness.fill_the_threads()
    harness.handler.on_command("lost", generate("theirs", other_grammar(1)))
    harness.handler.on_command("g", generate("ours", other_grammar(2)))
    harness.handler.on_gateway_lost("lost")
    harness.rest()
    assert "ours" in {end.request_id for end in harness.ends()}
    assert "theirs" not in {end.request_id for end in harness.ends()}
    assert other_grammar(1) not in harness.compiler.compiled
    assert harness.handler.num_unfinished() == 0


def test_a_request_whose_time_is_up_fails_without_its_grammar_being_compiled(
    harness: Harness,
) -> None:
    harness.fill_the_threads()
    harness.handler.on_command("g", generate("late", other_grammar(1), deadline_s=0.0))
    harness.rest()
    (late,) = [end for end in harness.ends() if end.request_id == "late"]
    assert isinstance(late, Failure)
    assert late.code is ErrorCode.DEADLINE_EXCEEDED
    assert other_grammar(1) not in harness.compiler.compiled


def test_many_grammars_of_one_tenant_delay_anothers_first_by_at_most_one(harness: Harness) -> None:
    harness.fill_the_threads()
    for number in range(20):
        harness.handler.on_command(
            "g", generate(str(number), other_grammar(number), tenant="flood")
        )
    harness.handler.on_command("g", generate("calm", other_grammar(50), tenant="calm"))
    harness.rest()
    order = [grammar for grammar in harness.compiler.begun if grammar != TICKET]
    # Two threads: one of them may have begun a second one of the others in between.
    assert order.index(other_grammar(50)) <= 2
    assert len(harness.ends()) == 23


def test_slow_grammars_of_one_tenant_leave_a_thread_to_others(harness: Harness) -> None:
    for number in range(3):
        harness.handler.on_command(
            "g", generate(str(number), other_grammar(number), tenant="flood")
        )
    assert harness.compiler.has_begun.acquire(timeout=60)
    harness.handler.on_command("g", generate("calm", other_grammar(50), tenant="calm"))
    assert harness.compiler.has_begun.acquire(timeout=60)
    assert harness.compiler.begun == [other_grammar(0), other_grammar(50)]
    harness.rest()
    assert len(harness.ends()) == 4


class PanicException(BaseException):
    """No Exception, like the panic of a native library."""


def test_a_panic_while_compiling_is_a_failure_and_the_threads_live_on(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(grammar: Grammar) -> CompiledGrammar:
        raise PanicException("a bug in the library")

    with monkeypatch.context() as patch:
        patch.setattr(harness.compiler, "_compile", panic)
        for number in range(4):
            # The same grammar: who comes second waits for the first, and must hear of it.
            harness.handler.on_command("g", generate(f"bad {number}"))
        harness.rest()
    assert [type(end) for end in harness.ends()] == [Failure] * 4
    assert {end.code for end in harness.ends() if isinstance(end, Failure)} == {
        ErrorCode.INTERNAL_ERROR
    }
    harness.handler.on_command("g", generate("good"))
    harness.rest()
    assert isinstance(harness.ends()[-1], Finished)


def test_a_suspects_grammar_is_compiled_by_the_step_loop_once_it_is_alone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may kill is the process; whoever ran beside it would die with it."""
    compiled: list[tuple[str, int]] = []
    compile_here = CompiledGrammar._compile

    def watched(grammar: CompiledGrammar) -> Any:
        compiled.append((threading.current_thread().name, harness.engine.num_unfinished))
        return compile_here(grammar)

    monkeypatch.setattr(CompiledGrammar, "_compile", watched)
    harness.compiler.go.set()
    harness.handler.on_command("g", generate("beside", grammar=None))
    harness.loop.run_once()
    harness.handler.on_command("g", generate("suspect", is_alone=True))
    while harness.handler.inbox.empty():
        time.sleep(0.001)
    harness.rest()
    assert not compiled
    ends = {end.request_id: end for end in harness.ends()}
    assert isinstance(ends["beside"], Finished)
    assert isinstance(ends["suspect"], Failure)
    assert ends["suspect"].code is ErrorCode.CREDIT_EXCEEDED
    harness.handler.on_command("g", generate("suspect", is_alone=True, attempt=2))
    harness.rest()
    assert isinstance(harness.ends()[-1], Finished)
    assert set(compiled) == {(threading.current_thread().name, 0)}
