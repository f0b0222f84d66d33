"""Steps that were begun before they were asked for give the tokens of those that were not."""

import random
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import pytest
from msgspec import structs

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.runner.programs import ProgramOutput
from engine_worker.compute.runner.run_ahead import RunAhead, following
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch
from engine_worker.core.choice.cache_group import NO_BLOCK
from engine_worker.core.choice.score_pack import ScoredTexts, packs_of
from engine_worker.core.choice.token_mask import MaskWords, allow_all, allow_only
from engine_worker.core.engine import Engine
from protocol.wire.messages import Finished, SamplingParams
from tests.fakes.runner_requests import RunnerRequest, begin, generate, step
from tests.fakes.tiny_engine import (
    MAX_MODEL_LEN,
    PROMPT,
    engine_on,
    run_all,
    tiny_engine_weights,
)
from tests.fakes.tiny_engine import generate as command

SAMPLINGS = (RowSampling(), RowSampling(temperature=0.9, top_p=0.8, seed=7), RowSampling())
NUM_TOKENS = 10


@pytest.fixture(scope="module")
def runner() -> JaxModelRunner:
    return JaxModelRunner.create(
        tiny_engine_weights(),
        num_blocks=60,
        max_model_len=MAX_MODEL_LEN,
        block_size=8,
        max_num_seqs=4,
        max_num_batched_tokens=8,
        run_ahead=True,
    )


def fresh_requests() -> list[RunnerRequest]:
    return [
        RunnerRequest(slot, (5 + slot, 6, 7 - slot), range(slot * 10, slot * 10 + 10), sampling)
        for slot, sampling in enumerate(SAMPLINGS)
    ]


def outputs_alone(runner: JaxModelRunner) -> list[list[int]]:
    return [generate(runner, request, NUM_TOKENS) for request in fresh_requests()]


def begun(runner: JaxModelRunner) -> list[RunnerRequest]:
    requests = fresh_requests()
    for request in requests:
        begin(runner, request)
        step(runner, [request])
    return requests


def decode(runner: JaxModelRunner, requests: Sequence[RunnerRequest]) -> None:
    """A step of decodes that are likely to go on."""
    rows = tuple(request.next_work(1) for request in requests)
    result = runner.run(StepBatch(rows, tuple(range(len(rows)))))
    for request, token_id in zip(requests, result.token_ids, strict=True):
        request.output.append(int(token_id))


def test_steps_begun_ahead_are_taken_and_give_the_same_tokens(runner: JaxModelRunner) -> None:
    alone = outputs_alone(runner)
    requests = begun(runner)
    num_taken, num_dropped = runner.ahead.num_taken, runner.ahead.num_dropped
    for _ in range(NUM_TOKENS - 1):
        decode(runner, requests)
    assert [request.output for request in requests] == alone
    assert runner.ahead.num_taken - num_taken == len(requests) * (NUM_TOKENS - 2)
    assert runner.ahead.num_dropped == num_dropped


def test_rows_that_leave_come_back_or_are_new_get_the_same_tokens(runner: JaxModelRunner) -> None:
    alone = outputs_alone(runner)
    first, second, third = requests = begun(runner)
    decode(runner, requests)
    # One left: what was begun for it is dropped, and written again when it comes back.
    num_taken, num_dropped = runner.ahead.num_taken, runner.ahead.num_dropped
    decode(runner, [first, second])
    assert (runner.ahead.num_taken, runner.ahead.num_dropped) == (num_taken + 2, num_dropped + 1)
    decode(runner, [second, third])
    assert (runner.ahead.num_taken, runner.ahead.num_dropped) == (num_taken + 3, num_dropped + 2)
    # One starts over from its tokens, in other blocks, while a step of it was under way.
    third.block_ids = range(30, 40)
    begin(runner, third)
    step(runner, [third])
    while requests:
        decode(runner, requests)
        requests = [request for request in requests if len(request.output) < NUM_TOKENS]
    assert [request.output for request in (first, second, third)] == alone


def test_blocks_of_a_dropped_step_belong_to_whoever_gets_them_next(runner: JaxModelRunner) -> None:
    alone = outputs_alone(runner)
    first, second, _ = begun(runner)
    decode(runner, [first, second])
    # The second ended; its blocks go to another request at once.
    newcomer = fresh_requests()[2]
    newcomer.slot, newcomer.block_ids = 1, second.block_ids
    begin(runner, newcomer)
    while len(newcomer.output) < NUM_TOKENS:
        step(runner, [first, newcomer])
    assert newcomer.output == alone[2]
    assert first.output[:NUM_TOKENS] == alone[0]


def test_a_token_that_the_host_changed_is_not_taken_for_the_one_sampled(
    runner: JaxModelRunner,
) -> None:
    (first, *_) = begun(runner)
    decode(runner, [first])
    sampled = first.output[-1]
    first.output[-1] = (sampled + 1) % 60
    num_taken = runner.ahead.num_taken
    decode(runner, [first])
    assert runner.ahead.num_taken == num_taken
    expected = RunnerRequest(3, first.token_ids[:-1], first.block_ids)
    assert first.output[-1] == generate(runner, expected, 1)[0]


def test_a_reset_forgets_what_was_begun(runner: JaxModelRunner) -> None:
    requests = begun(runner)
    decode(runner, requests)
    runner.reset()
    num_taken = runner.ahead.num_taken
    for request in requests:
        begin(runner, request)
        step(runner, [request])
    decode(runner, requests)
    assert runner.ahead.num_taken == num_taken


def score(runner: JaxModelRunner, slot: int, num_stored: int, scratch: int) -> None:
    """A label after what a request has stored, in a block that was lent for it."""
    question = ScoredTexts((9,), ((3,),), 0)
    (pack,) = packs_of([question], runner.score_limits)
    blocks = fresh_requests()[slot].block_ids
    num_groups = len(runner.cache_groups)
    found = runner.score(pack, num_stored, slot, [blocks] * num_groups, [[[scratch]]] * num_groups)
    assert (found < 0).all()


def test_a_begun_step_whose_block_was_lent_to_a_score_is_computed_again(
    runner: JaxModelRunner,
) -> None:
    alone = outputs_alone(runner)
    first, second, _ = begun(runner)
    while len(first.token_ids) % runner.block_size:
        decode(runner, [first])
    # The step that was begun writes the first token of a block.
    decode(runner, [first])
    num_taken, num_dropped = runner.ahead.num_taken, runner.ahead.num_dropped
    score(runner, 1, len(second.prompt), first.block_ids[first.num_computed // 8])
    decode(runner, [first])
    assert (runner.ahead.num_taken, runner.ahead.num_dropped) == (num_taken, num_dropped + 1)
    while len(first.output) < NUM_TOKENS:
        decode(runner, [first])
    assert first.output[:NUM_TOKENS] == alone[0]


def test_a_score_in_blocks_of_nobody_costs_no_begun_step(runner: JaxModelRunner) -> None:
    first, second, _ = begun(runner)
    decode(runner, [first])
    num_taken = runner.ahead.num_taken
    score(runner, 1, len(second.prompt), 55)
    decode(runner, [first])
    assert runner.ahead.num_taken == num_taken + 1


def test_a_begun_step_of_a_slot_that_is_taken_anew_is_dropped(runner: JaxModelRunner) -> None:
    first, _, _ = begun(runner)
    decode(runner, [first])
    num_taken, num_dropped = runner.ahead.num_taken, runner.ahead.num_dropped
    runner.assign_slot(3, (1, 2), ())
    assert runner.ahead.num_dropped == num_dropped
    runner.assign_slot(first.slot, first.prompt, first.output)
    decode(runner, [first])
    assert (runner.ahead.num_taken, runner.ahead.num_dropped) == (num_taken, num_dropped + 1)


def test_an_engine_says_the_same_with_steps_that_were_begun_ahead(
    runner: JaxModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers() -> list[list[int]]:
        engine = engine_on(runner)
        for index, (num_tokens, temperature) in enumerate([(30, 0.0), (11, 0.9), (4, 0.7)]):
            sampling = SamplingParams(
                temperature=temperature, seed=index, max_tokens=num_tokens, ignore_eos=True
            )
            prompt = PROMPT[: 9 + index]
            engine.add(
                "g", command(str(index), sampling, prompt_token_ids=prompt, is_streaming=True)
            )
        penalized = SamplingParams(presence_penalty=0.5, seed=2, max_tokens=8, ignore_eos=True)
        engine.add("g", command("3", penalized, is_streaming=True))
        found = run_all(engine)
        return [found[str(index)].token_ids for index in range(4)]

    num_taken = runner.ahead.num_taken
    ahead = answers()
    assert runner.ahead.num_taken - num_taken > 10
    monkeypatch.setattr(JaxModelRunner, "runs_ahead", False)
    num_taken = runner.ahead.num_taken
    assert answers() == ahead
    assert runner.ahead.num_taken == num_taken
    assert list(map(len, ahead)) == [30, 11, 4, 8]


def test_rows_without_room_for_the_next_step_are_refused(runner: JaxModelRunner) -> None:
    work = structs.replace(
        begun(runner)[0].next_work(1), start=7, block_ids=[0], window_block_ids=[0]
    )
    with pytest.raises(ValueError, match="blocks do not fit"):
        runner.run(StepBatch((work,), next_rows=(0,)))
    with pytest.raises(ValueError, match="only rows that sample one token"):
        runner.run(StepBatch((structs.replace(work, sample=False),), next_rows=(0,)))


ROW = RowWork(0, (7,), 20, [0, 1, 2], True, RowSampling(), window_block_ids=[3, 4, 5])


def taken(row: RowWork, *, is_apart: bool = False) -> bool:
    """Whether a row finds its step where `ROW`'s next one was begun, with a token 9."""
    ahead = RunAhead()
    output = ProgramOutput(jnp.array([[9]]), None)
    ahead.keep(output, [following(ROW)], {0} if is_apart else set(), [9])
    found = ahead.take([5], [row])
    assert (ahead.num_taken, ahead.num_dropped) == (int(found is not None), int(found is None))
    assert ahead.take([5], [row]) is None
    if found is not None:
        assert (found.indices, found.columns, found.apart) == ([5], [0], [5] if is_apart else [])
    return found is not None


def test_a_begun_row_is_taken_while_its_tables_grow_and_lose_what_lies_behind_a_window() -> None:
    row = structs.replace(ROW, token_ids=(9,), start=21)
    blocks, window_blocks = row.block_ids, row.window_block_ids
    assert isinstance(blocks, list)
    assert isinstance(window_blocks, list)
    blocks.append(6)
    window_blocks[0] = NO_BLOCK
    assert taken(row)
    # Other lists are those of a choice that began anew, whatever is in them.
    assert not taken(structs.replace(row, block_ids=list(blocks)))
    assert not taken(structs.replace(row, window_block_ids=list(window_blocks)))


def test_a_begun_row_is_not_taken_for_anything_else() -> None:
    row = structs.replace(ROW, token_ids=(9,), start=21)
    masked = structs.replace(row, pending_mask=lambda: allow_all(64))
    for other in (
        structs.replace(row, token_ids=(8,)),
        structs.replace(row, start=22),
        structs.replace(row, slot=1),
        structs.replace(row, sampling=RowSampling(seed=3)),
        structs.replace(row, max_new_tokens=2),
        masked,
    ):
        assert not taken(other)
    # It was begun without its sample, so whatever decides it may have come since.
    assert taken(masked, is_apart=True)
    assert taken(row, is_apart=True)


class Matcher:
    """What a grammar's masks are made with; large."""

    def mask(self) -> MaskWords:
        return allow_all(64)


def test_the_grammar_of_a_row_that_was_begun_is_not_kept() -> None:
    """That of an answer that had ended stayed in memory for as long as no step followed."""
    matcher, ahead = Matcher(), RunAhead()
    is_there = weakref.ref(matcher)
    begun = following(structs.replace(ROW, pending_mask=matcher.mask))
    ahead.keep(ProgramOutput(jnp.array([[9]]), None), [begun], {0}, [9])
    del matcher, begun
    assert is_there() is None


def decode_all(runner: JaxModelRunner, works: Sequence[RowWork], next_rows: Sequence[int]) -> Any:
    return runner.run(StepBatch(tuple(works), tuple(next_rows)))


MASKED = RowSampling(temperature=0.8, seed=11)
KINDS: tuple[tuple[RowSampling, bool], ...] = (
    (RowSampling(), False),
    (RowSampling(temperature=0.9, seed=7, num_logprobs=2), False),
    (RowSampling(temperature=1.0, seed=3, frequency_penalty=1.5), False),
    (MASKED, True),
)


def mixed_outputs(runner: JaxModelRunner, next_rows: Sequence[int]) -> list[Any]:
    """Tokens and scores of rows of every kind, one of which starts later and one leaves early."""
    runner.reset()
    requests = [
        RunnerRequest(slot, (5 + slot, 6, 7), range(slot * 10, slot * 10 + 10), sampling)
        for slot, (sampling, _) in enumerate(KINDS)
    ]
    scores: list[Any] = []
    for request in requests:
        begin(runner, request)
    for turn in range(9):
        running = [one for one in requests if one.slot != 1 or turn > 2]
        running = [one for one in running if one.slot != 0 or turn < 6]
        works = []
        for request in running:
            work = request.next_work(8)
            if KINDS[request.slot][1]:
                # Every other token, by the one before it.
                vocab_size = runner.backend.spec.vocab_size
                allowed = allow_only(range(work.token_ids[-1] % 2, 60, 2), vocab_size)
                work = structs.replace(work, pending_mask=lambda mask=allowed: mask)
            works.append(work)
        result = decode_all(runner, works, [i for i in next_rows if i < len(works)])
        scores += [round(one.logprob, 4) for one in result.logprobs.values()]
        for request, token_id in zip(running, result.token_ids, strict=True):
            request.output.append(int(token_id))
    return [[request.output for request in requests], scores]


def test_rows_that_are_sampled_apart_go_on_with_the_others(runner: JaxModelRunner) -> None:
    single = mixed_outputs(runner, ())
    num_taken = runner.ahead.num_taken
    assert mixed_outputs(runner, range(4)) == single
    # All rows but a few: a prompt's end goes on, too.
    assert runner.ahead.num_taken - num_taken >= 24
    assert mixed_outputs(runner, (1, 3)) == single


CHURNED: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 1.0, "presence_penalty": 0.7, "repetition_penalty": 1.2},
    {"temperature": 0.8, "logprobs": 2},
    {"logit_bias": ((70, 3.0), (71, -3.0))},
    {"temperature": 0.7, "min_tokens": 6},
    {"allowed_token_ids": tuple(range(60, 100))},
    {"temperature": 0.9, "bad_words": ("AB", "F")},
)


def churned(runner: JaxModelRunner, engine: Engine, seed: int) -> tuple[dict[str, list[int]], int]:
    """Outputs of requests that come, start over as another attempt, and give way for blocks."""
    drawn = random.Random(seed)
    outputs: dict[str, list[int]] = {}
    attempts: dict[str, int] = {}
    ended: set[str] = set()

    def add(name: str) -> None:
        index = int(name)
        options = {"temperature": 0.0, **CHURNED[index % len(CHURNED)]}
        sampling = SamplingParams(seed=index, max_tokens=18 + index % 7, ignore_eos=True, **options)
        tokens = tuple(outputs.setdefault(name, []))
        attempts[name] = attempts.get(name, -1) + 1
        fields: dict[str, Any] = {"output_token_ids": tokens, "attempt": attempts[name]}
        prompt = PROMPT[: 5 + index]
        engine.add("g", command(name, sampling, prompt_token_ids=prompt, **fields))

    num_added = 0
    for _ in range(500):
        if num_added < 12 and drawn.random() < 0.6:
            add(str(num_added))
            num_added += 1
        running = [name for name in outputs if name not in ended]
        if running and drawn.random() < 0.1:
            add(drawn.choice(running))
        if not engine.has_work():
            if num_added == 12:
                return outputs, engine.num_preemptions
            continue
        for told in engine.step().values():
            for delta in told.deltas:
                if delta.attempt == attempts[delta.request_id]:
                    outputs[delta.request_id] += delta.token_ids
            for end in told.ends:
                assert isinstance(end, Finished)
                if end.attempt == attempts[end.request_id]:
                    ended.add(end.request_id)
    raise AssertionError("the engine doesn't come to rest")


def test_requests_that_come_start_over_and_give_way_say_the_same(
    runner: JaxModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = tuple(replace(group, num_blocks=9) for group in runner.cache_groups)
    monkeypatch.setattr(JaxModelRunner, "cache_groups", groups)
    num_taken = runner.ahead.num_taken
    found = [churned(runner, engine_on(runner), seed) for seed in range(3)]
    assert runner.ahead.num_taken - num_taken > 200
    assert any(num_preemptions for _, num_preemptions in found)
    monkeypatch.setattr(JaxModelRunner, "runs_ahead", False)
    monkeypatch.setattr(JaxModelRunner, "max_new_tokens", 1)
    single = [churned(runner, engine_on(runner), seed) for seed in range(3)]
    assert [outputs for outputs, _ in found] == [outputs for outputs, _ in single]
    assert all(len(output) == 18 + int(name) % 7 for name, output in found[0][0].items())
