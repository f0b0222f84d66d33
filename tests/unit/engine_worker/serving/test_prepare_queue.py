"""Who is tokenised next, who never is, and that everybody who waits gets one answer."""

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_worker.errors import InvalidRequestError
from engine_worker.serving.prepare_queue import (
    COSTLY_SIZE,
    MAX_PLACES,
    MAX_TENANT_PLACES,
    NUM_THREADS,
    PrepareCommand,
    PrepareQueue,
)
from protocol.errors import ErrorCode
from protocol.runtime import logs
from protocol.wire.messages import Detokenize, Detokenized, Failure, Message, Prepare, Prepared


class PanicException(BaseException):
    """No Exception, like the panic of a native library."""


class Lab:
    """A queue whose threads run when the test says so."""

    def __init__(self) -> None:
        self.now = 10.0
        self.sent: list[tuple[str, Message]] = []
        self.begun: list[str] = []
        self.during: dict[str, Callable[[], object]] = {}
        self.threads: list[Callable[[], None]] = []
        self.costly_threads: list[Callable[[], None]] = []
        self.found_unwanted: list[str] = []
        self.queue = PrepareQueue(
            self.answer,
            self.send,
            execute=self.threads.append,
            execute_costly=self.costly_threads.append,
            clock=lambda: self.now,
        )

    def answer(
        self, command: PrepareCommand, is_wanted: Callable[[], bool]
    ) -> Prepared | Detokenized:
        self.begun.append(command.request_id)
        self.during.get(command.request_id, lambda: None)()
        if not is_wanted():
            self.found_unwanted.append(command.request_id)
        if isinstance(command, Detokenize):
            return Detokenized(request_id=command.request_id, text="")
        return Prepared(request_id=command.request_id, prompt_token_ids=(1,))

    def send(self, gateway_id: str, message: Message) -> None:
        self.sent.append((gateway_id, message))

    def submit(self, request_id: str, tenant: str = "t", gateway_id: str = "g", **x: Any) -> None:
        self.queue.submit(gateway_id, prepare(request_id, tenant=tenant, **x))

    def run_a_thread(self) -> None:
        """What one of the threads would do, until it finds nothing to do."""
        self.threads.pop(0)()

    def run_the_costly_thread(self) -> None:
        self.costly_threads.pop(0)()

    def run(self) -> None:
        while self.threads or self.costly_threads:
            (self.threads or self.costly_threads).pop(0)()

    def answered(self) -> list[str]:
        return [message.request_id for _, message in self.sent]  # type: ignore[attr-defined]

    def failures(self) -> list[ErrorCode]:
        return [message.code for _, message in self.sent if isinstance(message, Failure)]


@pytest.fixture
def lab() -> Lab:
    return Lab()


def prepare(request_id: str, **fields: Any) -> Prepare:
    options = {"kind": "completion", "prompt": "abc", "deadline_s": 5.0, **fields}
    return Prepare(request_id=request_id, **options)


COSTLY = "x" * (COSTLY_SIZE + 1)


def test_two_hundred_prompts_of_one_tenant_delay_anothers_first_by_at_most_one(lab: Lab) -> None:
    for number in range(200):
        lab.submit(f"flood {number}", "flood")
    lab.submit("calm", "calm")
    lab.run_a_thread()
    assert lab.begun.index("calm") <= 1
    assert len(lab.begun) == 201
    assert [name for name in lab.begun if name != "calm"] == [f"flood {n}" for n in range(200)]


def test_no_more_threads_are_asked_for_than_there_are(lab: Lab) -> None:
    for number in range(10):
        lab.submit(str(number))
    assert len(lab.threads) == NUM_THREADS
    lab.run()
    lab.submit("later")
    assert len(lab.threads) == 1


@pytest.mark.parametrize(
    "costly",
    [
        {"prompt": COSTLY},
        {"prompt": "é" * (COSTLY_SIZE // 2 + 1)},
        {"prompt": "\ud800" * (COSTLY_SIZE // 3 + 1)},
        {"prompt": None, "messages_json": COSTLY},
        {"prompt": "short", "suffix": COSTLY},
        {"prompt": None, "messages_json": "[]", "chat_template": "{{ 'of any length' }}"},
        {"prompt": "x" * (COSTLY_SIZE // 2 + 1), "tools_json": "x" * (COSTLY_SIZE // 2 + 1)},
        {"prompt": None, "prompt_token_ids": (1,) * (COSTLY_SIZE + 1)},
    ],
)
def test_while_a_costly_prompt_is_tokenised_another_waits_and_small_ones_have_all_threads(
    lab: Lab, costly: dict[str, Any]
) -> None:
    begun_meanwhile: list[str] = []

    def others() -> None:
        assert not lab.costly_threads
        assert len(lab.threads) == NUM_THREADS
        lab.run_a_thread()
        begun_meanwhile.extend(lab.begun)

    lab.submit("costly 1", **costly)
    lab.submit("costly 2", "other", **costly)
    lab.submit("small 1")
    lab.submit("small 2", "third")
    lab.during["costly 1"] = others
    lab.run_the_costly_thread()
    assert begun_meanwhile == ["costly 1", "small 2", "small 1"]
    assert lab.begun == [*begun_meanwhile, "costly 2"]
    lab.run()
    assert lab.queue.num_unfinished == 0


def test_many_token_ids_to_spell_out_are_costly_too(lab: Lab) -> None:
    command = Detokenize(
        request_id="ids", token_ids=(1,) * (COSTLY_SIZE + 1), deadline_s=5.0, tenant="t"
    )
    lab.queue.submit("g", command)
    lab.submit("costly", "other", prompt=COSTLY)
    assert not lab.threads
    lab.run_the_costly_thread()
    assert lab.answered() == ["ids", "costly"]


def test_a_prompt_of_just_the_size_is_not_costly(lab: Lab) -> None:
    lab.submit("just", prompt="x" * COSTLY_SIZE)
    assert not lab.costly_threads
    lab.run_a_thread()
    assert lab.answered() == ["just"]


def test_a_costly_prompt_that_comes_later_gets_its_thread_again(lab: Lab) -> None:
    for number in range(2):
        lab.submit(str(number), prompt=COSTLY)
        lab.run_the_costly_thread()
    assert lab.answered() == ["0", "1"]


def test_whoever_works_is_told_when_nobody_waits_any_more(lab: Lab) -> None:
    lab.submit("kept", prompt=COSTLY)
    lab.submit("left", prompt=COSTLY)
    lab.during["left"] = lambda: lab.queue.cancel("g", "left")
    lab.run_the_costly_thread()
    assert lab.found_unwanted == ["left"]
    assert lab.answered() == ["kept"]


def test_a_tenant_that_has_too_much_waiting_is_refused_and_others_are_not(lab: Lab) -> None:
    for number in range(MAX_TENANT_PLACES):
        lab.submit(str(number), "flood")
    lab.submit("one too many", "flood")
    lab.submit("calm", "calm")
    ((gateway_id, refused),) = lab.sent
    assert gateway_id == "g"
    assert isinstance(refused, Failure)
    assert (refused.request_id, refused.code) == ("one too many", ErrorCode.OVERLOADED)
    assert refused.retry_after_s
    assert lab.queue.num_unfinished == MAX_TENANT_PLACES + 1
    lab.run()
    assert "calm" in lab.answered()


def test_too_many_prompts_of_all_tenants_together_are_refused(lab: Lab) -> None:
    for number in range(MAX_PLACES):
        lab.submit(str(number), tenant=str(number % 100))
    lab.submit("one too many", "new")
    assert (lab.answered(), lab.failures()) == (["one too many"], [ErrorCode.OVERLOADED])


def test_large_prompts_take_more_places_so_that_what_waits_is_bounded_in_bytes(lab: Lab) -> None:
    ten_mb = "x" * 10_000_000
    for number in range(20):
        lab.submit(str(number), "flood", prompt=ten_mb)
    num_taken = lab.queue.num_unfinished
    assert 1 <= num_taken <= 7
    lab.submit("small", "calm")
    assert lab.queue.num_unfinished == num_taken + 1


def test_a_prompt_beyond_any_share_is_taken_when_its_tenant_has_nothing_else(lab: Lab) -> None:
    lab.submit("huge", prompt="x" * (2 * MAX_TENANT_PLACES * COSTLY_SIZE))
    lab.run()
    assert lab.answered() == ["huge"]
    assert not lab.failures()


def test_what_is_cancelled_before_it_began_is_never_tokenised(lab: Lab) -> None:
    for gateway_id in ("g", "h"):
        lab.submit("same", gateway_id=gateway_id)
    lab.submit("other")
    lab.queue.cancel("g", "same")
    lab.queue.cancel("g", "same")
    lab.queue.cancel("g", "unknown")
    assert lab.queue.num_unfinished == 2
    lab.run()
    assert [(to, message.request_id) for to, message in lab.sent] == [  # type: ignore[attr-defined]
        ("h", "same"),
        ("g", "other"),
    ]
    assert lab.queue.num_unfinished == 0


def test_the_answer_to_what_is_cancelled_while_it_runs_is_not_sent(lab: Lab) -> None:
    lab.submit("late")
    lab.submit("other")
    lab.during["late"] = lambda: lab.queue.cancel("g", "late")
    lab.run()
    assert lab.begun == ["late", "other"]
    assert lab.answered() == ["other"]
    assert lab.queue.num_unfinished == 0


def test_what_was_cancelled_frees_its_places(lab: Lab) -> None:
    for number in range(MAX_TENANT_PLACES):
        lab.submit(str(number))
    for number in range(MAX_TENANT_PLACES):
        lab.queue.cancel("g", str(number))
    lab.submit("new")
    assert not lab.failures()
    lab.run()
    assert lab.answered() == ["new"]


def test_what_a_lost_gateway_wanted_is_dropped_waiting_or_running(lab: Lab) -> None:
    lab.submit("running", gateway_id="lost")
    lab.submit("waiting", gateway_id="lost")
    lab.submit("other")
    lab.during["running"] = lambda: lab.queue.forget_gateway("lost")
    lab.run()
    assert lab.begun == ["running", "other"]
    assert lab.answered() == ["other"]
    assert lab.queue.num_unfinished == 0


def test_what_waited_beyond_its_deadline_fails_without_being_tokenised(lab: Lab) -> None:
    lab.submit("late", deadline_s=1.0)
    lab.submit("in time", deadline_s=3.0)
    lab.now += 2.0
    lab.run()
    assert lab.begun == ["in time"]
    assert lab.failures() == [ErrorCode.DEADLINE_EXCEEDED]
    assert lab.queue.num_unfinished == 0


@pytest.mark.parametrize("error", [RuntimeError("a bug"), PanicException("a panic")])
def test_whatever_a_prompt_raises_costs_only_its_own_request(
    lab: Lab, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error

    lab.during["bad"] = fail
    lab.submit("bad")
    lab.submit("good")
    lab.run()
    assert lab.answered() == ["bad", "good"]
    assert lab.failures() == [ErrorCode.INTERNAL_ERROR]
    assert lab.queue.num_unfinished == 0
    assert "could not be prepared" in caplog.text


def test_a_refusal_names_the_field(lab: Lab) -> None:
    def refuse() -> None:
        raise InvalidRequestError("No.", param="prompt")

    lab.during["bad"] = refuse
    lab.submit("bad")
    lab.run()
    ((_, refused),) = lab.sent
    assert isinstance(refused, Failure)
    assert (refused.code, refused.param) == (ErrorCode.INVALID_REQUEST, "prompt")


def test_an_exit_leaves_the_queue_able_to_work(lab: Lab) -> None:
    def leave() -> None:
        raise SystemExit

    lab.during["bad"] = leave
    lab.submit("bad", prompt=COSTLY)
    with pytest.raises(SystemExit):
        lab.run()
    lab.submit("next", prompt=COSTLY)
    lab.run()
    assert lab.answered() == ["next"]


def test_what_is_logged_of_a_prompt_carries_its_id_and_its_clients(lab: Lab) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter("engine"))
    logger = logging.getLogger("penstock.engine")
    logger.addHandler(handler)
    try:
        lab.during["bad"] = lambda: 1 // 0
        lab.submit("bad", trace_id="mine-1")
        lab.run()
    finally:
        logger.removeHandler(handler)
    line = json.loads(stream.getvalue())
    assert (line["request_id"], line["trace_id"]) == ("bad", "mine-1")


def test_a_closed_queue_takes_and_answers_nothing(lab: Lab) -> None:
    lab.submit("before")
    lab.queue.close()
    lab.submit("after")
    lab.run()
    assert (lab.begun, lab.sent, lab.queue.num_unfinished) == ([], [], 0)


EVENTS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from("ab"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("cancel"), st.sampled_from("ab"), st.integers(0, 3), st.just(False)),
    st.tuples(st.just("lost"), st.sampled_from("ab"), st.just(0), st.just(False)),
    st.tuples(st.just("run"), st.just(""), st.just(0), st.just(False)),
)


@given(st.lists(EVENTS, max_size=30))
def test_whatever_comes_the_count_is_of_what_is_neither_answered_nor_dropped(
    events: list[tuple[str, str, int, bool]],
) -> None:
    lab = Lab()
    expected: list[tuple[str, str]] = []
    for kind, gateway_id, number, is_costly in events:
        if kind == "submit":
            prompt = COSTLY if is_costly else "small"
            lab.submit(str(number), gateway_id=gateway_id, prompt=prompt)
            expected.append((gateway_id, str(number)))
        elif kind == "cancel":
            lab.queue.cancel(gateway_id, str(number))
            expected = [one for one in expected if one != (gateway_id, str(number))]
        elif kind == "lost":
            lab.queue.forget_gateway(gateway_id)
            expected = [one for one in expected if one[0] != gateway_id]
        else:
            lab.sent.clear()
            lab.run()
            answered = [(to, message.request_id) for to, message in lab.sent]  # type: ignore[attr-defined]
            assert sorted(answered) == sorted(expected)
            expected = []
        assert lab.queue.num_unfinished == len(expected)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(NUM_THREADS + 1) as pool:
        yield pool


def test_in_real_threads_everything_is_answered_and_costly_ones_one_at_a_time(
    threads: ThreadPoolExecutor,
) -> None:
    lock, done = threading.Lock(), threading.Semaphore(0)
    num_costly, most_costly = 0, 0
    answered: list[str] = []

    def answer(command: PrepareCommand, is_wanted: Callable[[], bool]) -> Prepared:
        nonlocal num_costly, most_costly
        assert isinstance(command, Prepare)
        is_costly = command.prompt is COSTLY
        with lock:
            num_costly += is_costly
            most_costly = max(most_costly, num_costly)
        with lock:
            num_costly -= is_costly
        return Prepared(request_id=command.request_id, prompt_token_ids=(1,))

    def send(gateway_id: str, message: Message) -> None:
        assert isinstance(message, Prepared)
        answered.append(message.request_id)
        done.release()

    queue = PrepareQueue(answer, send, execute=threads.submit, execute_costly=threads.submit)
    for number in range(200):
        prompt = COSTLY if number % 3 == 0 else "small"
        queue.submit("g", prepare(str(number), tenant=str(number % 5), prompt=prompt))
    for _ in range(200):
        assert done.acquire(timeout=60)
    assert sorted(map(int, answered)) == list(range(200))
    assert most_costly == 1
