import threading
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from engine_worker.core.credits import CreditPolicy
from engine_worker.core.engine import Engine
from engine_worker.serving.handler import EngineHandler
from engine_worker.serving.idle_release import IDLE_S
from engine_worker.serving.step_loop import StepLoop
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.preparation import PromptPreparer
from protocol.errors import ErrorCode
from protocol.version import OLDEST_VERSION, PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import (
    Abort,
    CacheCleared,
    Cancel,
    Classify,
    ClearCache,
    Credits,
    Detokenize,
    Detokenized,
    Embed,
    Failure,
    Finished,
    Generate,
    Message,
    OrphanUsage,
    OrphanUsageNoted,
    Prepare,
    Prepared,
    SamplingParams,
    StepOutput,
)
from protocol.wire.worker import WorkerHandler
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()


class FakeOutlet:
    def __init__(self, *gateway_ids: str) -> None:
        self.gateways = list(gateway_ids)
        self.versions: dict[str, ProtocolVersion] = {}
        self.sent: list[tuple[str, Message]] = []
        self.has_sent = threading.Condition()

    def send(self, gateway_id: str, message: Message) -> None:
        with self.has_sent:
            self.sent.append((gateway_id, message))
            self.has_sent.notify_all()

    def gateway_version(self, gateway_id: str) -> ProtocolVersion:
        return self.versions.get(gateway_id, PROTOCOL_VERSION)

    def gateway_ids(self) -> tuple[str, ...]:
        return tuple(self.gateways)

    def wait_for(self, num_messages: int) -> list[tuple[str, Message]]:
        with self.has_sent:
            assert self.has_sent.wait_for(lambda: len(self.sent) >= num_messages, timeout=60)
            return list(self.sent)

    def ends(self) -> list[Finished | Failure]:
        return [
            end
            for _, message in self.sent
            if isinstance(message, StepOutput)
            for end in message.ends
        ]


class Harness:
    """A handler and its step loop around a fake runner, without threads of their own."""

    def __init__(self, *gateway_ids: str, **runner_options: Any) -> None:
        self.outlet = FakeOutlet(*(gateway_ids or ("g",)))
        self.now = 10.0
        runner = DeterministicFakeRunner(hashed_token(250), **runner_options)
        self.engine = Engine(
            runner, TOKENIZER, vocab_size=258, max_model_len=100, clock=lambda: self.now
        )
        self.handler = EngineHandler(clock=lambda: self.now)
        self.handler.connect(self.outlet)
        self.loop = StepLoop(self.engine, self.handler, self.outlet, clock=lambda: self.now)

    def serve(self, policy: CreditPolicy | None = None) -> None:
        preparer = PromptPreparer(
            TOKENIZER,
            ChatTemplate(TOKENIZER, "m"),
            vocab_size=258,
            max_model_len=100,
            block_size=4,
        )
        policy = policy or CreditPolicy(8, 1000, 100)
        self.handler.serve(preparer, policy, self.engine.grammars, self.engine.acceptor)

    def rest(self) -> None:
        """Step until all is done."""
        for _ in range(500):
            self.loop.run_once(block=False)
            if not self.engine.has_work() and self.handler.inbox.empty():
                return
        raise AssertionError("no rest")


def implements_the_port(handler: EngineHandler) -> WorkerHandler[Any]:
    return handler


def generate(request_id: str = "r", **changes: Any) -> Generate:
    options: dict[str, Any] = {
        "choice": 0,
        "attempt": 1,
        "prompt_token_ids": (1, 2, 3),
        "sampling": SamplingParams(max_tokens=4, temperature=0.0),
        "lease_tokens": 100,
        "deadline_s": 60.0,
        **changes,
    }
    return Generate(request_id=request_id, **options)


def prepare(**changes: Any) -> Prepare:
    options = {"kind": "completion", "prompt": "abc", "deadline_s": 1.0, **changes}
    return Prepare(request_id="p", **options)


def test_token_ids_are_turned_into_text_beside_the_step_loop() -> None:
    harness = Harness()
    command = Detokenize(request_id="d", token_ids=(104, 105), deadline_s=1e6)
    harness.handler.on_command("g", command)
    harness.serve()
    harness.handler.on_command("g", command)
    sent = [message for _, message in harness.outlet.wait_for(2)]
    assert isinstance(sent[0], Failure)
    assert sent[0].code is ErrorCode.WORKER_UNAVAILABLE
    assert sent[1] == Detokenized(request_id="d", text="hi")


def test_one_step_output_per_step_and_gateway_holds_all_its_requests() -> None:
    harness = Harness("a", "b")
    harness.serve()
    harness.handler.on_command("a", generate("1"))
    harness.handler.on_command("a", generate("2"))
    harness.handler.on_command("b", generate("3"))
    harness.loop.run_once()
    outputs = [
        (gateway_id, message)
        for gateway_id, message in harness.outlet.sent
        if isinstance(message, StepOutput)
    ]
    assert [gateway_id for gateway_id, _ in outputs] == ["a", "b"]
    assert [delta.request_id for delta in outputs[0][1].deltas] == ["1", "2"]
    assert outputs[0][1].load.num_running == 3
    assert outputs[0][1].credits == Credits(max_requests=4, max_tokens=500)


def test_every_request_ends_and_the_counts_return_to_zero() -> None:
    harness = Harness()
    harness.serve()
    for index in range(6):
        harness.handler.on_command("g", generate(str(index)))
    assert harness.handler.num_unfinished() == 6
    harness.rest()
    assert len(harness.outlet.ends()) == 6
    assert harness.handler.num_unfinished() == 0
    assert harness.handler.load().num_running == 0


def test_before_the_model_is_loaded_work_is_refused_as_unavailable() -> None:
    harness = Harness()
    harness.handler.on_command("g", generate())
    harness.handler.on_command("g", prepare())
    codes = [message.code for _, message in harness.outlet.sent if isinstance(message, Failure)]
    assert codes == [ErrorCode.WORKER_UNAVAILABLE] * 2
    assert harness.handler.credits("g") is None


def test_a_drain_refuses_new_work_and_finishes_what_runs() -> None:
    harness = Harness()
    harness.serve()
    harness.handler.on_command("g", generate("old"))
    harness.loop.run_once()
    harness.handler.on_drain(5.0)
    harness.handler.on_command("g", generate("new"))
    _, refused = harness.outlet.sent[-1]
    assert isinstance(refused, Failure)
    assert (refused.request_id, refused.choice, refused.attempt) == ("new", 0, 1)
    assert refused.code is ErrorCode.WORKER_UNAVAILABLE
    harness.rest()
    (end,) = harness.outlet.ends()
    assert isinstance(end, Finished)
    assert harness.handler.num_unfinished() == 0


def test_work_beyond_the_credit_is_refused_before_any_output() -> None:
    harness = Harness()
    harness.serve(CreditPolicy(max_requests=2, max_tokens=100, max_model_len=10))
    for index in range(3):
        harness.handler.on_command("g", generate(str(index)))
    harness.rest()
    refused = [end for end in harness.outlet.ends() if isinstance(end, Failure)]
    assert [(end.request_id, end.code) for end in refused] == [("2", ErrorCode.CREDIT_EXCEEDED)]


def test_a_running_request_that_comes_again_beyond_the_credit_still_ends_once() -> None:
    harness = Harness()
    harness.serve(CreditPolicy(max_requests=1, max_tokens=100, max_model_len=10))
    harness.handler.on_command("g", generate())
    harness.handler.on_command("g", generate())
    harness.rest()
    (end,) = harness.outlet.ends()
    assert isinstance(end, Finished)


def test_a_request_that_waits_for_its_lease_under_an_endless_deadline_stops_nothing() -> None:
    harness = Harness()
    harness.serve()
    harness.handler.on_command("g", generate("paused", lease_tokens=0, deadline_s=1e300))
    harness.loop.run_once()
    waker = threading.Timer(0.05, harness.handler.on_command, ("g", generate("next")))
    waker.start()
    harness.loop.run_once()
    waker.join()
    harness.rest()
    assert [end.request_id for end in harness.outlet.ends()] == ["next"]


def test_a_lost_gateway_frees_what_it_held() -> None:
    harness = Harness("a", "b")
    harness.serve()
    harness.handler.on_command("a", generate("1"))
    harness.handler.on_command("b", generate("2"))
    harness.loop.run_once()
    harness.handler.on_gateway_lost("a")
    harness.rest()
    assert [end.request_id for end in harness.outlet.ends()] == ["2"]
    assert harness.engine.load().num_free_blocks == harness.engine.load().num_blocks


def test_a_deadline_counts_from_when_the_command_came() -> None:
    harness = Harness()
    harness.serve()
    harness.handler.on_command("g", generate(deadline_s=2.0))
    harness.now += 3.0
    harness.rest()
    (end,) = harness.outlet.ends()
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.DEADLINE_EXCEEDED


def test_a_prompt_is_prepared_beside_the_step_loop() -> None:
    harness = Harness()
    harness.serve()
    harness.handler.on_command("g", prepare())
    ((gateway_id, answer),) = harness.outlet.wait_for(1)
    assert gateway_id == "g"
    assert isinstance(answer, Prepared)
    assert answer.prompt_token_ids == (97, 98, 99)
    harness.handler.close()


def test_a_wrong_prompt_fails_with_its_field() -> None:
    harness = Harness()
    harness.serve()
    harness.handler.on_command("g", prepare(prompt=""))
    harness.handler.on_command("g", prepare(deadline_s=0.0))
    failures = [message for _, message in harness.outlet.wait_for(2)]
    assert {
        (failure.code, failure.param) for failure in failures if isinstance(failure, Failure)
    } == {(ErrorCode.INVALID_REQUEST, "prompt"), (ErrorCode.DEADLINE_EXCEEDED, None)}
    harness.handler.close()


def test_what_is_cancelled_is_dropped_and_never_reaches_the_step_loop(monkeypatch: Any) -> None:
    harness = Harness()
    harness.serve()
    go, has_begun = threading.Event(), threading.Semaphore(0)

    def wait_first(preparer: PromptPreparer, command: Prepare, is_wanted: Any) -> Prepared:
        has_begun.release()
        assert go.wait(60)
        return Prepared(request_id=command.request_id, prompt_token_ids=(1,))

    monkeypatch.setattr(PromptPreparer, "prepare", wait_first)
    for name in ("begun 1", "begun 2", "waiting 1", "waiting 2"):
        harness.handler.on_command("g", structs.replace(prepare(), request_id=name))
    for _ in range(2):
        assert has_begun.acquire(timeout=60)
    assert harness.handler.num_unfinished() == 4
    harness.handler.on_command("g", Cancel(request_id="waiting 1"))
    harness.handler.on_command("g", Cancel(request_id="begun 1"))
    harness.handler.on_command("h", Cancel(request_id="begun 2"))
    assert harness.handler.num_unfinished() == 2
    assert harness.handler.inbox.empty()
    go.set()
    answers = [message for _, message in harness.outlet.wait_for(2)]
    harness.handler.close()
    assert {one.request_id for one in answers} == {"begun 2", "waiting 2"}  # type: ignore[attr-defined]


def test_prompts_of_a_lost_gateway_are_dropped(monkeypatch: Any) -> None:
    harness = Harness("lost", "g")
    harness.serve()
    go, has_begun = threading.Event(), threading.Event()

    def wait_first(preparer: PromptPreparer, command: Prepare, is_wanted: Any) -> Prepared:
        has_begun.set()
        assert go.wait(60)
        return Prepared(request_id=command.request_id, prompt_token_ids=(1,))

    monkeypatch.setattr(PromptPreparer, "prepare", wait_first)
    harness.handler.on_command("lost", prepare())
    harness.handler.on_command("lost", prepare())
    assert has_begun.wait(60)
    harness.handler.on_command("g", prepare())
    harness.handler.on_gateway_lost("lost")
    go.set()
    assert [gateway_id for gateway_id, _ in harness.outlet.wait_for(1)] == ["g"]
    harness.rest()
    harness.handler.close()
    assert harness.handler.num_unfinished() == 0


def test_the_loop_sleeps_in_its_inbox_and_wakes_for_work_and_for_the_end() -> None:
    harness = Harness()
    harness.serve()
    thread = threading.Thread(target=harness.loop.run, daemon=True)
    thread.start()
    harness.handler.on_command("g", generate(want_token_ids=True))
    harness.outlet.wait_for(4)
    assert harness.engine.num_steps == 4
    harness.handler.close()
    thread.join(timeout=60)
    assert not thread.is_alive()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("generate"), st.sampled_from("ab"), st.integers(0, 2)),
            st.tuples(st.just("abort"), st.sampled_from("ab"), st.integers(-1, 2)),
            st.tuples(st.just("lost"), st.sampled_from("ab"), st.just(0)),
            st.tuples(st.just("step"), st.just(""), st.just(0)),
        ),
        max_size=25,
    )
)
def test_whatever_comes_the_counts_return_to_zero(events: list[tuple[str, str, int]]) -> None:
    harness = Harness("a", "b", num_blocks=8)
    harness.serve(CreditPolicy(max_requests=4, max_tokens=1000, max_model_len=32))
    for number, (kind, gateway_id, choice) in enumerate(events):
        if kind == "generate":
            command = generate(choice=choice, attempt=number + 1, lease_tokens=100)
            harness.handler.on_command(gateway_id, command)
        elif kind == "abort":
            abort = Abort(request_id="r", choice=choice, attempt=number)
            harness.handler.on_command(gateway_id, abort)
        elif kind == "lost":
            harness.handler.on_gateway_lost(gateway_id)
        else:
            harness.loop.run_once(block=False)
    harness.rest()
    assert harness.handler.num_unfinished() == 0
    assert harness.engine.load().num_free_blocks == 8


def test_what_was_done_for_a_lost_gateway_is_reported_to_another_until_it_is_noted() -> None:
    harness = Harness("old", "g", "h")
    harness.outlet.versions["old"] = OLDEST_VERSION
    harness.serve()
    harness.handler.on_command("g", generate(lease_id="lease", want_token_ids=True))
    for _ in range(2):
        harness.loop.run_once()
    harness.outlet.gateways.remove("g")
    harness.handler.on_gateway_lost("g")
    harness.loop.run_once(block=False)
    ((gateway_id, report),) = [
        (to, message) for to, message in harness.outlet.sent if isinstance(message, OrphanUsage)
    ]
    assert gateway_id == "h"
    assert isinstance(report, OrphanUsage)
    (usage,) = report.streams
    assert (usage.lease_id, usage.stream) == ("lease", "r/0")
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 2)
    # No answer: once more, after a while.
    harness.now += 10
    harness.loop.run_once()
    assert harness.outlet.sent[-1] == ("h", report)
    harness.handler.on_command("h", OrphanUsageNoted(report_id=report.report_id, engine_id="e"))
    harness.loop.run_once()
    num_sent = len(harness.outlet.sent)
    harness.now += 10
    harness.loop.run_once(block=False)
    assert len(harness.outlet.sent) == num_sent


def test_without_a_gateway_that_takes_it_a_report_waits() -> None:
    harness = Harness("g")
    harness.serve()
    harness.handler.on_command("g", generate(lease_id="lease"))
    harness.loop.run_once()
    harness.outlet.gateways.clear()
    harness.handler.on_gateway_lost("g")
    harness.loop.run_once(block=False)
    assert not any(isinstance(message, OrphanUsage) for _, message in harness.outlet.sent)
    harness.outlet.gateways.append("next")
    harness.now += 2
    harness.loop.run_once()
    assert any(isinstance(message, OrphanUsage) for _, message in harness.outlet.sent)


def test_a_suspect_runs_alone_and_others_are_asked_to_try_again() -> None:
    harness = Harness("g", "h")
    harness.serve()
    harness.handler.on_command("g", generate("first"))
    harness.handler.on_command("g", generate("suspect", is_alone=True))
    harness.loop.run_once()
    (refused,) = harness.outlet.ends()
    assert isinstance(refused, Failure)
    assert (refused.request_id, refused.code) == ("suspect", ErrorCode.CREDIT_EXCEEDED)
    harness.rest()
    harness.handler.on_command("g", generate("suspect", attempt=2, is_alone=True))
    harness.handler.on_command("h", generate("other"))
    harness.loop.run_once()
    assert [end.request_id for end in harness.outlet.ends()] == ["suspect", "first", "other"]
    harness.rest()
    assert harness.outlet.ends()[-1].request_id == "suspect"
    harness.handler.on_command("h", generate("other", attempt=2))
    harness.rest()
    assert isinstance(harness.outlet.ends()[-1], Finished)


def test_an_engine_with_commands_that_wait_for_a_step_does_not_look_idle() -> None:
    harness = Harness()
    harness.serve()
    assert harness.handler.load().num_running == 0
    harness.handler.on_command("g", generate())
    assert harness.handler.load().num_running == 1
    harness.rest()
    assert harness.handler.load().num_running == 0


class NoEmbeddings:
    """An embedding queue without work."""

    num_unfinished = 0
    num_batches = 0
    takes = Embed

    def cancel(self, gateway_id: str, request_id: str) -> None: ...

    def forget_gateway(self, gateway_id: str) -> None: ...

    def close(self) -> None: ...


def test_an_engine_that_only_embeds_is_idle_whatever_else_is_said_to_it() -> None:
    handler = EngineHandler()
    handler.connect(FakeOutlet("a"))
    handler.on_gateway_lost("while loading")
    embeddings: Any = NoEmbeddings()
    handler.serve_texts(embeddings, CreditPolicy(8, 1000, 100))
    handler.on_gateway_lost("a")
    handler.on_command("b", Abort(request_id="r", attempt=1))
    assert (handler.num_unfinished(), handler.load().num_running) == (0, 0)
    handler.close()


def test_what_is_cached_is_forgotten_when_a_gateway_asks() -> None:
    harness = Harness()
    harness.serve()
    harness.handler.on_command("g", generate(prompt_token_ids=tuple(range(1, 60))))
    harness.rest()
    num_cached = len(harness.engine.cached_blocks())
    assert num_cached > 0
    for request_id in ("first", "second"):
        harness.handler.on_command("g", ClearCache(request_id=request_id))
        harness.rest()
    assert harness.engine.cached_blocks() == ()
    cleared = [message for _, message in harness.outlet.sent if isinstance(message, CacheCleared)]
    assert cleared == [
        CacheCleared(request_id="first", num_blocks=num_cached),
        CacheCleared(request_id="second", num_blocks=0),
    ]
    assert harness.handler.num_unfinished() == 0


def test_texts_are_taken_by_an_engine_of_their_kind_alone() -> None:
    handler, outlet = EngineHandler(), FakeOutlet("g")
    handler.connect(outlet)
    classify = Classify(request_id="c", deadline_s=1.0, texts=("a",))
    handler.on_command("g", classify)
    embeddings: Any = NoEmbeddings()
    handler.serve_texts(embeddings, CreditPolicy(8, 1000, 100))
    handler.on_command("g", classify)
    handler.on_command("g", generate())
    reasons = [message.message for _, message in outlet.sent if isinstance(message, Failure)]
    assert reasons == [
        "The engine is still loading.",
        "This engine classifies no texts: its model has no classifier.",
        "This engine only makes embeddings.",
    ]
    handler.close()


def test_an_engine_that_has_rested_gives_memory_back_once_after_each_burst() -> None:
    harness = Harness()
    runner = harness.engine._runner
    assert isinstance(runner, DeterministicFakeRunner)
    harness.serve()
    for burst in (1, 2):
        harness.handler.on_command("g", generate(str(burst)))
        harness.rest()
        for _ in range(3):
            harness.loop.run_once(block=False)
            harness.now += IDLE_S / 4
        assert len(runner.released) == burst - 1
        for _ in range(3):
            harness.now += IDLE_S / 2
            harness.loop.run_once(block=False)
        assert len(runner.released) == burst
