"""Steps that compute several tokens: who may, how many, and that nothing else changes by it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch, StepResult
from engine_worker.core.decoding.lookahead import TRY_AGAIN, Lookahead
from engine_worker.core.engine import Engine
from engine_worker.core.engine_output import GatewayOutput
from protocol.wire.messages import Abort, Finished, Generate, SamplingParams
from tests.fakes.fake_runner import DeterministicFakeRunner, NextToken, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
VOCAB_SIZE = TOKENIZER.num_tokens
PROMPT = (104, 105)
GREEDY = RowSampling(seed=0, choice=0, temperature=0.0)
LETTERS = hashed_token(26)


def letters(token_ids: Any) -> int:
    """A model that never ends its output: small letters, by everything before them."""
    return 97 + LETTERS(token_ids)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class TimedRunner(DeterministicFakeRunner):
    """Each turn of a step takes as long as it is told, and so does what is between steps."""

    def __init__(
        self,
        next_token: NextToken,
        clock: Clock,
        turn_s: float,
        between_s: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(next_token, **options)
        self._clock = clock
        self._turn_s = turn_s
        self._between_s = between_s

    def run(self, batch: StepBatch) -> StepResult:
        result = super().run(batch)
        num_turns = 1 + max(map(len, result.more_token_ids.values()), default=0)
        self._clock.now += num_turns * self._turn_s + self._between_s
        return result

    def lookaheads(self) -> list[int]:
        return [max(row.max_new_tokens for row in batch.rows) for batch in self.batches]


def make_engine(
    next_token: NextToken = letters, turn_s: float = 0.01, **options: Any
) -> tuple[Engine, TimedRunner]:
    clock = Clock()
    options = {"max_new_tokens": 32, **options}
    runner = TimedRunner(next_token, clock, turn_s, **options)
    engine = Engine(runner, TOKENIZER, vocab_size=VOCAB_SIZE, max_model_len=200, clock=clock)
    return engine, runner


def generate(request_id: str = "r", *, max_tokens: int = 40, **changes: Any) -> Generate:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, **changes.pop("sampling", {}))
    options: dict[str, Any] = {
        "choice": 0,
        "attempt": 1,
        "prompt_token_ids": PROMPT,
        "lease_tokens": 1000,
        "deadline_s": 60.0,
        "is_streaming": False,
        "want_token_ids": True,
        **changes,
    }
    return Generate(request_id=request_id, sampling=sampling, **options)


def run(engine: Engine) -> GatewayOutput:
    told = GatewayOutput()
    for _ in range(500):
        if not engine.has_work():
            return told
        output = engine.step().get("g", GatewayOutput())
        told.deltas.extend(output.deltas)
        told.ends.extend(output.ends)
    raise AssertionError("the engine doesn't come to rest")


def outcome(told: GatewayOutput) -> dict[str, Any]:
    """Texts, token ids, their ends and the ends, by request, however the deltas were cut."""
    by_request: dict[str, Any] = {}
    for delta in told.deltas:
        text, token_ids, ends = by_request.get(delta.request_id, ("", (), ()))
        by_request[delta.request_id] = (
            text + delta.text,
            token_ids + delta.token_ids,
            ends + delta.token_ends,
        )
    ends = {end.request_id: end for end in told.ends}
    return {"outputs": by_request, "ends": ends}


def outcome_of(commands: list[Generate], **options: Any) -> tuple[dict[str, Any], TimedRunner]:
    engine, runner = make_engine(**options)
    for command in commands:
        engine.add("g", command)
    return outcome(run(engine)), runner


def test_outputs_that_nobody_streams_are_the_same_in_fewer_steps() -> None:
    commands = [
        generate("a"),
        generate("b", max_tokens=17),
        generate("c", max_tokens=29, sampling={"stop": ("q",)}),
        generate("d", sampling={"stop_token_ids": (100,)}),
    ]
    single, slow = outcome_of(commands, max_new_tokens=1)
    ahead, fast = outcome_of(commands)
    assert ahead == single
    assert len(fast.batches) < len(slow.batches) / 2


def test_each_request_has_one_delta_a_step_however_many_tokens_it_got() -> None:
    engine, runner = make_engine()
    engine.add("g", generate())
    while engine.has_work():
        deltas = engine.step().get("g", GatewayOutput()).deltas
        assert len(deltas) <= 1
        if deltas:
            assert deltas[0].text == bytes(deltas[0].token_ids).decode()
    assert max(runner.lookaheads()) > 4


def test_a_step_takes_a_tenth_of_a_second_by_what_earlier_ones_took() -> None:
    _, runner = outcome_of([generate()], turn_s=0.021)
    # The first token comes with the prompt, the second shows how long one takes.
    assert runner.lookaheads()[:4] == [1, 1, 4, 4]
    _, slow = outcome_of([generate()], turn_s=0.2)
    assert set(slow.lookaheads()) == {1}


def test_who_reads_an_output_as_it_comes_gets_it_at_least_fifty_times_a_second() -> None:
    commands = [generate("a"), generate("b", is_streaming=True)]
    single, _ = outcome_of(commands, max_new_tokens=1)
    ahead, runner = outcome_of(commands, turn_s=0.003)
    assert ahead == single
    assert max(runner.lookaheads()) == 6
    _, slow = outcome_of(commands, turn_s=0.015)
    assert set(slow.lookaheads()) == {1}


def timed(lookahead: Lookahead, choices: Sequence[Any], works: Sequence[RowWork], s: float) -> int:
    """Plan a step and take so long for it; the most tokens of a row."""
    planned = lookahead.num_new_tokens(choices, works)
    num = max(planned or [1])
    lookahead.measure(num, num * s)
    return num


def test_streams_of_slow_steps_go_on_for_days_and_leave_the_others_their_limit() -> None:
    row = RowWork(0, (5,), 3, (0,), sample=True, sampling=GREEDY)
    lookahead = Lookahead(32)
    streamed, read_at_once = (
        SimpleNamespace(
            is_streaming=is_streaming,
            allowed_tokens=None,
            ending_token_ids=(),
        )
        for is_streaming in (True, False)
    )
    assert [timed(lookahead, [read_at_once], [row], 0.04) for _ in range(3)] == [1, 2, 2]
    # A further token took less with every step, soon none, and after hours the engine ended.
    assert {timed(lookahead, [streamed], [row], 0.04) for _ in range(5_000)} == {1}
    assert timed(lookahead, [read_at_once], [row], 0.04) == 2
    quicker = [timed(lookahead, [streamed], [row], 0.015) for _ in range(3 * TRY_AGAIN)]
    assert 1 <= quicker.count(2) <= 3
    assert set(quicker) == {1, 2}


@pytest.mark.parametrize(
    "sampling", [{"logprobs": 1}, {"logit_bias": ((5, 1.0),)}, {"min_tokens": 30}, {"seed": 3}]
)
def test_a_row_that_the_host_must_see_costs_the_others_nothing(sampling: dict[str, Any]) -> None:
    commands = [generate("a"), generate("b"), generate("c", sampling=sampling)]
    single, slow = outcome_of(commands, max_new_tokens=1, between_s=0.01)
    ahead, fast = outcome_of(commands, turn_s=0.001, between_s=0.01)
    assert ahead == single
    mixed = [batch for batch in fast.batches if len({r.max_new_tokens for r in batch.rows}) > 1]
    is_seen = sampling != {"seed": 3}
    assert bool(mixed) == is_seen
    for batch in mixed:
        # Five of the others' tokens take as long as the work between steps.
        assert [row.max_new_tokens for row in batch.rows] in ([2, 2, 1], [6, 6, 1])
    steps_of_all = [batch for batch in fast.batches if len(batch.rows) == 3]
    assert len(steps_of_all) < len(slow.batches) / 3


def test_a_row_that_the_host_must_see_waits_for_no_others_where_tokens_take_the_time() -> None:
    commands = [generate("a"), generate("b", sampling={"logprobs": 1})]
    _, runner = outcome_of(commands, turn_s=0.02, between_s=0.001)
    # Once it is tried what a second token takes.
    assert [most for most in runner.lookaheads() if most > 1] == [2]


def test_a_request_whose_next_tokens_depend_on_the_host_does_not_look_ahead() -> None:
    _, runner = outcome_of([generate(sampling={"min_tokens": 5})])
    assert set(runner.lookaheads()) == {1}


def test_no_row_goes_beyond_its_lease_or_its_length() -> None:
    engine, _ = make_engine()
    engine.add("g", generate("a", lease_tokens=7))
    engine.add("g", generate("b", max_tokens=12))
    told = run(engine)
    got = {request_id: len(ids) for request_id, (_, ids, _) in outcome(told)["outputs"].items()}
    assert got == {"a": 7, "b": 12}
    assert [end.request_id for end in told.ends] == ["b"]


def test_nobody_is_preempted_for_tokens_ahead_and_all_blocks_come_back() -> None:
    engine, runner = make_engine(num_blocks=14, block_size=4)
    for name in ("a", "b"):
        engine.add("g", generate(name, max_tokens=22))
    run(engine)
    assert engine.num_preemptions == 0
    assert max(runner.lookaheads()) > 1
    load = engine.load()
    assert load.num_free_blocks == load.num_blocks


def test_what_was_computed_beyond_a_stop_is_neither_told_nor_counted() -> None:
    engine, _ = make_engine()
    engine.add("g", generate(sampling={"stop": ("q",)}))
    told = run(engine)
    (end,) = told.ends
    assert isinstance(end, Finished)
    (_, token_ids, _) = outcome(told)["outputs"]["r"]
    assert end.usage.completion_tokens == len(token_ids)
    assert token_ids[-1] == ord("q")


def test_an_abort_between_steps_ends_a_request_that_looks_ahead() -> None:
    engine, _ = make_engine()
    engine.add("g", generate())
    for _ in range(3):
        engine.step()
    engine.abort("g", Abort(request_id="r", choice=0, attempt=1))
    (end,) = run(engine).ends
    assert isinstance(end, Finished)
    assert end.finish_reason == "abort"


def test_a_next_step_is_foreseen_for_the_rows_that_go_on_and_have_room() -> None:
    def foreseen(*commands: Generate, runs_ahead: bool = True, **options: Any) -> list[int]:
        _, runner = outcome_of([*commands], runs_ahead=runs_ahead, max_new_tokens=1, **options)
        return [len(batch.next_rows) for batch in runner.batches]

    assert foreseen(generate(max_tokens=5)) == [1, 1, 1, 1, 0]
    two = foreseen(generate("a", max_tokens=5), generate("b", max_tokens=3))
    assert two == [2, 2, 1, 1, 0]
    for sampling in ({"presence_penalty": 0.5}, {"logprobs": 1}, {"min_tokens": 4}):
        assert foreseen(generate(max_tokens=5, sampling=sampling)) == [1, 1, 1, 1, 0]
    # Three blocks of four tokens for both: nobody is preempted for what is only foreseen.
    assert foreseen(generate("a", max_tokens=4), generate("b", max_tokens=5), num_blocks=3)
    assert not any(foreseen(generate(max_tokens=5), runs_ahead=False))
