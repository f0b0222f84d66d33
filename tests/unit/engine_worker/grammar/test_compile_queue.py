import threading
from collections.abc import Iterator

import pytest

from engine_worker.core.credits import CreditPolicy
from engine_worker.core.engine import Engine
from engine_worker.grammar import compile_queue as compile_queue_module
from engine_worker.grammar.compiler import GrammarCompiler
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

    def start(self, grammar: Grammar, sampling: SamplingParams) -> Constraint:
        assert self.go.wait(10)
        return super().start(grammar, sampling)


class House:
    """A handler and its step loop, with a compiler that waits to be told."""

    def __init__(self) -> None:
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
        self.handler.serve(preparer, CreditPolicy(8, 1000, 100), self.compiler)

    def send(self, gateway_id: str, message: Message) -> None:
        self.sent.append(message)

    def gateway_ids(self) -> tuple[str, ...]:
        return ("g",)

    def gateway_version(self, gateway_id: str) -> ProtocolVersion:
        return PROTOCOL_VERSION

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
def house() -> Iterator[House]:
    house = House()
    yield house
    house.compiler.go.set()
    house.handler.close()
    # What was being compiled may still come, and closes its process then.
    for thread in threading.enumerate():
        if thread.name.startswith("grammar"):
            thread.join(10)


def generate(request_id: str = "r", grammar: Grammar | None = TICKET, lease: int = 100) -> Generate:
    return Generate(
        request_id=request_id,
        choice=0,
        attempt=1,
        prompt_token_ids=(1, 2, 3),
        sampling=SamplingParams(temperature=0.0, max_tokens=20),
        lease_tokens=lease,
        deadline_s=60.0,
        grammar=grammar,
    )


def test_other_requests_run_while_a_grammar_is_compiled(house: House) -> None:
    house.handler.on_command("g", generate("constrained"))
    house.handler.on_command("g", generate("free", grammar=None))
    house.loop.run_once(block=False)
    while house.engine.has_work():
        house.loop.run_once(block=False)
    assert [end.request_id for end in house.ends()] == ["free"]
    assert house.handler.num_unfinished() == 1
    house.rest()
    assert [end.request_id for end in house.ends()] == ["free", "constrained"]
    text = "".join(delta.text for delta in house.deltas() if delta.request_id == "constrained")
    assert len(text) == 4
    assert text.isupper()
    assert house.handler.num_unfinished() == 0


def test_a_hopeless_grammar_is_a_failure_with_its_reason(house: House) -> None:
    house.handler.on_command("g", generate(grammar=Grammar(kind="regex", source="(a")))
    house.rest()
    (end,) = house.ends()
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.UNSUPPORTED_GRAMMAR
    assert "unclosed group" in end.message
    assert not house.deltas()


def test_a_bug_while_compiling_is_a_failure_too(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(grammar: Grammar, sampling: SamplingParams) -> Constraint:
        raise RuntimeError("bug")

    monkeypatch.setattr(house.compiler, "start", broken)
    house.handler.on_command("g", generate())
    house.rest()
    (end,) = house.ends()
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.INTERNAL_ERROR


def test_a_request_that_is_aborted_while_it_waits_ends_as_aborted(house: House) -> None:
    house.handler.on_command("g", generate())
    house.handler.on_command("g", Abort(request_id="r", attempt=1))
    house.loop.run_once(block=False)
    house.rest()
    (end,) = house.ends()
    assert isinstance(end, Finished)
    assert end.finish_reason == "abort"


def test_a_request_whose_gateway_goes_while_it_waits_is_dropped(house: House) -> None:
    house.handler.on_command("g", generate())
    house.handler.on_gateway_lost("g")
    house.loop.run_once(block=False)
    house.rest()
    assert house.engine.num_unfinished == 0
    assert not house.outputs()
    assert house.handler.num_unfinished() == 0


def test_a_lease_that_grows_while_a_request_waits_is_not_lost(house: House) -> None:
    house.handler.on_command("g", generate(lease=1))
    house.handler.on_command("g", Extend(request_id="r", choice=0, attempt=1, lease_tokens=50))
    house.loop.run_once(block=False)
    house.rest()
    assert [type(end) for end in house.ends()] == [Finished]


def test_too_many_waiting_grammars_are_refused_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_queue_module, "MAX_WAITING", 1)
    house.handler.on_command("g", generate("first"))
    house.handler.on_command("g", generate("second"))
    (refusal,) = house.sent
    assert isinstance(refusal, Failure)
    assert (refusal.request_id, refusal.code) == ("second", ErrorCode.OVERLOADED)
