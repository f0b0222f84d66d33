"""Tokens that a grammar forces: within the lease, under the right mask, and in the counts."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.core.engine import Engine
from engine_worker.core.engine_output import GatewayOutput
from engine_worker.grammar.compiler import GrammarCompiler
from engine_worker.grammar.constraint import Constraint
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    Delta,
    Extend,
    Failure,
    Finished,
    Generate,
    Grammar,
    SamplingParams,
)
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
VOCAB_SIZE = TOKENIZER.num_tokens
# The beginning is forced at once, "-over-" after a token that was drawn.
SAYING = Grammar(kind="regex", source="hello [a-z]-over-[a-z]{3}")
COMPILER = GrammarCompiler(TOKENIZER, VOCAB_SIZE)
PENALIZED = SamplingParams(temperature=0.0, frequency_penalty=0.5)


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    COMPILER.close()


def make_engine(**options: Any) -> Engine:
    runner = DeterministicFakeRunner(hashed_token(250), **{"num_blocks": 100, **options})
    return Engine(runner, TOKENIZER, vocab_size=VOCAB_SIZE, max_model_len=100, grammars=COMPILER)


def generate(request_id: str, lease_tokens: int, **changes: Any) -> Generate:
    options: dict[str, Any] = {
        "choice": 0,
        "attempt": 1,
        "prompt_token_ids": (104, 105),
        "deadline_s": 60.0,
        "want_token_ids": True,
        "sampling": PENALIZED,
        "grammar": SAYING,
        **changes,
    }
    return Generate(request_id=request_id, lease_tokens=lease_tokens, **options)


def extend(request_id: str, lease_tokens: int) -> Extend:
    return Extend(request_id=request_id, choice=0, attempt=1, lease_tokens=lease_tokens)


class Told:
    """All that was told about each request."""

    def __init__(self) -> None:
        self.token_ids: dict[str, list[int]] = {}
        self.text: dict[str, str] = {}
        self.ends: dict[str, Finished | Failure] = {}

    def add(self, output: GatewayOutput) -> None:
        for delta in output.deltas:
            self._add_delta(delta)
        for end in output.ends:
            assert end.request_id not in self.ends
            self.ends[end.request_id] = end

    def _add_delta(self, delta: Delta) -> None:
        self.token_ids.setdefault(delta.request_id, []).extend(delta.token_ids)
        self.text[delta.request_id] = self.text.get(delta.request_id, "") + delta.text


def rest(engine: Engine, told: Told) -> None:
    for _ in range(500):
        if not engine.has_work():
            return
        told.add(engine.step().get("g", GatewayOutput()))
    raise AssertionError("the engine doesn't come to rest")


def whole(sampling: SamplingParams = PENALIZED) -> tuple[list[int], str]:
    """What the request answers when its lease is no matter."""
    engine, told = make_engine(), Told()
    engine.add("g", generate("r", 100, sampling=sampling))
    rest(engine, told)
    return told.token_ids["r"], told.text["r"]


def reason(end: Finished | Failure) -> str:
    assert isinstance(end, Finished), end
    return end.finish_reason


@pytest.mark.parametrize("lease_tokens", [1, 3, 4])
def test_forced_tokens_that_use_up_the_lease_pause_a_request_that_waits_for_a_slot(
    lease_tokens: int,
) -> None:
    """It stood among those that may run, and ran beyond its lease under the wrong mask."""
    token_ids, text = whole()
    engine, told = make_engine(), Told()
    engine.add("g", generate("r", lease_tokens))
    assert not engine._scheduler.has_work()
    rest(engine, told)
    assert told.token_ids["r"] == token_ids[:lease_tokens]
    assert engine.load().num_running == 0
    engine.extend("g", extend("r", 100))
    rest(engine, told)
    assert (told.token_ids["r"], told.text["r"]) == (token_ids, text)
    assert reason(told.ends["r"]) == "stop"


@pytest.mark.parametrize("num_resumed", [1, 2, 6, 9])
def test_a_resumed_request_close_to_the_end_of_its_lease_pauses_within_forced_tokens(
    num_resumed: int,
) -> None:
    token_ids, text = whole()
    engine, told = make_engine(), Told()
    lease_tokens = num_resumed + 1
    resumed = generate("r", lease_tokens, output_token_ids=tuple(token_ids[:num_resumed]))
    engine.add("g", resumed)
    rest(engine, told)
    assert told.token_ids["r"] == token_ids[num_resumed:lease_tokens]
    engine.extend("g", extend("r", 100))
    rest(engine, told)
    assert [*token_ids[:num_resumed], *told.token_ids["r"]] == token_ids
    assert told.text["r"] == text
    assert reason(told.ends["r"]) == "stop"


def test_forced_tokens_that_came_with_a_longer_lease_are_in_the_counts() -> None:
    """The runner checks it whenever it samples; `-over-` came with the lease and was missing."""
    token_ids, _ = whole()
    engine, told = make_engine(), Told()
    engine.add("g", generate("r", 9))
    rest(engine, told)
    assert told.token_ids["r"] == token_ids[:9]
    runner = engine._runner
    assert isinstance(runner, DeterministicFakeRunner)
    engine.extend("g", extend("r", 100))
    assert runner.assigned[-1][1:] == ((104, 105), tuple(token_ids[:12]))
    rest(engine, told)
    assert told.token_ids["r"] == token_ids


def test_a_sentence_that_is_forced_to_its_end_needs_no_step() -> None:
    engine, told = make_engine(), Told()
    engine.add("g", generate("r", 100, grammar=Grammar(kind="regex", source="hello")))
    assert not engine._scheduler.has_work()
    rest(engine, told)
    assert (told.text["r"], reason(told.ends["r"])) == ("hello", "stop")
    assert engine.num_steps == 0


class Panic(BaseException):
    """As a native library's, which is no `Exception`."""


def test_a_mask_that_cannot_be_made_fails_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It failed the step: every request in it, and all others started over."""
    engine, told = make_engine(), Told()
    engine.add("g", generate("good", 100, grammar=None, sampling=SamplingParams(max_tokens=20)))
    engine.add("g", generate("bad", 100))

    def broken(_: Constraint) -> None:
        raise Panic("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(Constraint, "mask", broken)
        rest(engine, told)
    assert reason(told.ends["good"]) == "length"
    bad = told.ends["bad"]
    assert isinstance(bad, Failure)
    assert bad.code is ErrorCode.INTERNAL_ERROR
    runner = engine._runner
    assert isinstance(runner, DeterministicFakeRunner)
    assert runner.num_resets == 0


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 4), st.integers(0, 20)),
        st.tuples(st.just("extend"), st.integers(0, 4), st.integers(0, 20)),
        st.tuples(st.just("abort"), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 5), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(moves=MOVES)
def test_whatever_happens_in_whatever_order_no_lease_is_overrun_and_the_text_is_right(
    moves: Sequence[tuple[str, int, int]],
) -> None:
    token_ids, _ = whole()
    engine, told = make_engine(max_num_seqs=2, num_blocks=12), Told()
    leases: dict[str, int] = {}
    for kind, number, lease_tokens in moves:
        name = str(number)
        if kind == "step":
            for _ in range(number):
                told.add(engine.step().get("g", GatewayOutput()))
        elif kind == "abort":
            engine.abort("g", Abort(request_id=name, choice=0, attempt=1))
        elif kind == "add" and name not in leases:
            leases[name] = lease_tokens
            engine.add("g", generate(name, lease_tokens))
        elif kind == "extend" and name in leases:
            leases[name] = max(leases[name], lease_tokens)
            engine.extend("g", extend(name, lease_tokens))
        for seen, generated in told.token_ids.items():
            assert len(generated) <= leases[seen]
            assert generated == token_ids[: len(generated)]
    for name in leases:
        engine.extend("g", extend(name, 100))
    rest(engine, told)
    assert set(told.ends) >= set(leases)
    for name in leases:
        assert reason(told.ends[name]) in ("stop", "abort")
    assert engine.num_unfinished == 0
