"""Prompts that share a program get what each gets alone, on every backend and kind of layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from msgspec import structs

from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.models.decoder import DecoderWeights
from engine_worker.compute.models.spec import DecoderSpec, MlpSpec, MoeSpec
from engine_worker.compute.runner import buckets, prompt_calls
from engine_worker.compute.runner.buckets import Bucket
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.runner.packing import PackedLayout
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch, StepResult
from tests.fakes.packed_decoder import packed, why_not_native
from tests.fakes.runner_requests import GREEDY, RunnerRequest, begin, generate, step
from tests.fakes.tiny_decoder import VOCAB_SIZE, tiny_hybrid_spec, tiny_spec, tiny_weights

BLOCK_SIZE = 8
GROUP = Bucket(8, 8, 8)
LENGTHS = (5, 8, 2, 7, 8, 3, 6, 4)
"""Of eight prompts that fit the group."""


def windowed_spec() -> DecoderSpec:
    """Two cache groups: layers that see all tokens, and one that sees ten of them."""
    return tiny_spec([None, 10, None])


def expert_spec() -> DecoderSpec:
    layer = replace(tiny_spec().layers[0], mlp=MoeSpec(6, 2, MlpSpec(24), shared=MlpSpec(16)))
    return replace(tiny_spec(), layers=(layer, layer))


SPECS: Mapping[str, Any] = {
    "windows": windowed_spec,
    "recurrent": tiny_hybrid_spec,
    "experts": expert_spec,
}
CASES = (
    ("xla", "float32", "auto", "recurrent"),
    ("cpu_native", "int8", "int8", "windows"),
    pytest.param(("xla", "float32", "auto", "windows"), marks=pytest.mark.long),
    pytest.param(("cpu_native", "bfloat16", "auto", "windows"), marks=pytest.mark.long),
    pytest.param(("cpu_native", "float32", "auto", "recurrent"), marks=pytest.mark.long),
    pytest.param(("cpu_native", "bfloat16", "auto", "experts"), marks=pytest.mark.long),
)


@pytest.fixture(autouse=True)
def group_whatever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cheaper is the other file's."""
    monkeypatch.setattr(prompt_calls, "CALL_TOKENS", 1000)


@cache
def weights_of(name: str) -> DecoderWeights:
    return tiny_weights(spec=SPECS[name]())


def make_runner(decoder: PackedDecoder) -> JaxModelRunner:
    with pytest.MonkeyPatch.context() as patch:
        # Few programs: decodes of one row and of all, chunks of 8 and of 64 tokens, eight of 8.
        patch.setattr(buckets, "DECODE_ROWS", (1,))
        patch.setattr(buckets, "PREFILL_TOKENS", (8, 64))
        return JaxModelRunner.create(
            decoder,
            num_blocks=60,
            max_model_len=48,
            block_size=BLOCK_SIZE,
            max_num_seqs=9,
            max_num_batched_tokens=64,
        )


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def shared(request: pytest.FixtureRequest) -> Iterator[JaxModelRunner]:
    backend, weight_type, kv_dtype, name = request.param
    if backend == "cpu_native" and (reason := why_not_native()):
        pytest.skip(reason)
    runner = make_runner(packed(weights_of(name), backend, weight_type, BLOCK_SIZE, kv_dtype))
    assert runner._buckets.groups == (GROUP,)
    assert runner.backend.skips_padding == (backend == "cpu_native")
    yield runner
    runner.close()


@pytest.fixture
def runner(shared: JaxModelRunner) -> JaxModelRunner:
    """With no numbers in its cache, in the padding block neither."""
    shared.reset()
    poison(shared)
    return shared


def poison(runner: JaxModelRunner, block_ids: Sequence[int] | None = None) -> None:
    """NaN, in keys, values and states or in their scales, of some blocks or of all."""
    places = slice(None) if block_ids is None else jnp.asarray(block_ids)

    def poisoned(pool: jax.Array) -> jax.Array:
        nan = {"uint16": 0x7FC0, "int8": -1}.get(str(pool.dtype), jnp.nan)
        return pool.at[places].set(jnp.asarray(nan, pool.dtype))

    runner._state = runner.state._replace(cache=jax.tree.map(poisoned, runner.state.cache))


def prompt_of(length: int, seed: int) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(0, VOCAB_SIZE, length)]


def requests_of(*lengths: int, sampling: RowSampling = GREEDY) -> list[RunnerRequest]:
    """Each with a slot and six blocks of its own."""
    places = [int(x) for x in np.random.default_rng(7).permutation(60)]
    return [
        RunnerRequest(slot, prompt_of(length, slot), places[6 * slot : 6 * slot + 6], sampling)
        for slot, length in enumerate(lengths)
    ]


@dataclass
class Calls:
    """The step programs that a runner called."""

    buckets: list[Bucket]


@pytest.fixture
def calls(runner: JaxModelRunner, monkeypatch: pytest.MonkeyPatch) -> Calls:
    noted, compute = Calls([]), runner._programs.step

    def step(state: Any, bucket: Bucket, rows: Any, apart: Any = ()) -> Any:
        noted.buckets.append(bucket)
        return compute(state, bucket, rows, apart)

    monkeypatch.setattr(runner._programs, "step", step)
    return noted


def last_hidden(runner: JaxModelRunner, *slots: int) -> np.ndarray[Any, Any]:
    return np.asarray(runner.state.hidden)[list(slots)]


def test_eight_short_prompts_are_one_call_and_each_gets_what_it_gets_alone(
    runner: JaxModelRunner, calls: Calls
) -> None:
    sampling = RowSampling(temperature=1.0, seed=11, top_p=0.95)
    alone, hidden = [], []
    for request in requests_of(*LENGTHS, sampling=sampling):
        begin(runner, request)
        step(runner, [request])
        hidden.append(last_hidden(runner, request.slot)[0])
        while len(request.output) < 12:
            step(runner, [request])
        alone.append(request.output)
    assert sum(bucket.is_prefill for bucket in calls.buckets) == 8
    calls.buckets.clear()

    together = requests_of(*LENGTHS, sampling=sampling)
    for request in together:
        begin(runner, request)
    step(runner, together)
    assert calls.buckets == [GROUP]
    # XLA adds in another order in another shape.
    np.testing.assert_allclose(last_hidden(runner, *range(8)), hidden, atol=1e-4)
    for _ in range(11):
        step(runner, together)
    assert [request.output for request in together] == alone


def test_a_chunk_of_a_long_prompt_runs_beside_short_prompts_and_decodes(
    runner: JaxModelRunner, calls: Calls
) -> None:
    lengths = (30, 6, 5, 9)
    alone = [list(generate(runner, request, 6)) for request in requests_of(*lengths)]
    calls.buckets.clear()
    long, short, other, decoding = requests_of(*lengths)
    begin(runner, decoding)
    step(runner, [decoding])
    for request in (long, short):
        begin(runner, request)
    step(runner, [decoding, long, short], max_tokens=7)
    begin(runner, other)
    step(runner, [decoding, short, long, other], max_tokens=7)
    prefills = [bucket for bucket in calls.buckets if bucket.is_prefill]
    assert prefills == [Bucket(prefills[0].num_rows, 64), GROUP, GROUP]
    while len(long.output) < 6:
        step(runner, [decoding, short, other, long], max_tokens=7)
    for request, expected in zip((long, short, other, decoding), alone, strict=True):
        assert request.output[:6] == expected


def test_a_prompt_that_goes_on_from_cached_blocks_of_another_is_among_them(
    runner: JaxModelRunner,
) -> None:
    first, other = requests_of(2 * BLOCK_SIZE + 5, 4)
    expected = list(generate(runner, first, 6))
    (third,) = requests_of(*[1] * 3)[2:]
    hit = RunnerRequest(2, first.prompt, [*first.block_ids[:2], *third.block_ids[2:]])
    for request in (hit, other):
        begin(runner, request)
    hit.num_computed = 2 * BLOCK_SIZE
    while len(hit.output) < 6:
        step(runner, [hit, other])
    assert hit.output == expected


def row_of(request: RunnerRequest, **more: object) -> RowWork:
    row = request.next_work(BLOCK_SIZE)
    return structs.replace(row, **more)


def run(runner: JaxModelRunner, *rows: RowWork) -> StepResult:
    return runner.run(StepBatch(rows))


def test_rows_for_the_full_sampler_are_sampled_from_their_own_last_token(
    runner: JaxModelRunner, calls: Calls
) -> None:
    plain, told, biased = requests_of(5, 7, 3)
    for request in (plain, told, biased):
        begin(runner, request)
    likely = [int(run(runner, row_of(one)).token_ids[0]) for one in requests_of(5, 7)]
    runner.reset()
    calls.buckets.clear()
    result = run(
        runner,
        row_of(plain),
        row_of(told, sampling=RowSampling(num_logprobs=2)),
        row_of(biased, sampling=RowSampling(logit_bias=((9, 1e4),))),
    )
    assert calls.buckets == [GROUP]
    assert result.token_ids.tolist() == [*likely, 9]
    assert set(result.logprobs) == {1}
    assert result.logprobs[1].token_id == likely[1]


def test_a_prompt_whose_tokens_are_scored_stays_alone(runner: JaxModelRunner, calls: Calls) -> None:
    scored, other, third = requests_of(6, 6, 4)
    for request in (scored, other, third):
        begin(runner, request)
    result = run(
        runner,
        row_of(
            scored,
            scored_token_ids=scored.prompt[1:],
            sampling=RowSampling(num_prompt_logprobs=0),
        ),
        row_of(other),
        row_of(third),
    )
    assert calls.buckets == [GROUP, Bucket(calls.buckets[-1].num_rows, 8)]
    assert [one.token_id for one in result.prompt_logprobs[0]] == scored.prompt[1:]
    assert (result.token_ids >= 0).all()


def test_penalties_count_the_tokens_of_each_row(runner: JaxModelRunner) -> None:
    unseen = RowSampling(repetition_penalty=1e6)
    requests = requests_of(5, 7, 6, sampling=unseen)
    for request in requests:
        begin(runner, request)
    for _ in range(4):
        step(runner, requests)
    for request in requests:
        assert len(set(request.output)) == 4
        assert not set(request.output) & set(request.prompt)


def test_a_row_without_numbers_is_the_only_one(runner: JaxModelRunner) -> None:
    """A later chunk reads a poisoned block; its neighbours in the program don't."""
    bad, good = requests_of(BLOCK_SIZE + 4, 6)
    begin(runner, bad)
    step(runner, [bad], max_tokens=BLOCK_SIZE)
    poison(runner, bad.block_ids[:1])
    begin(runner, good)
    result = run(runner, row_of(bad), row_of(good))
    assert result.has_nan.tolist() == [True, False]
    assert result.token_ids[1] >= 0


def test_packed_rows_lie_one_below_the_other_and_padding_rows_have_nothing() -> None:
    layout = PackedLayout(Bucket(4, 4, 4), table_width=3, num_slots=4, padding_blocks=(99, 77))
    rows = [
        RowWork(2, (5, 6, 7), 8, (1, 2), False, GREEDY, window_block_ids=(11, 12)),
        RowWork(0, (9,), 0, (3,), True, GREEDY, window_block_ids=(13,)),
        RowWork(1, (4, 3), 0, (4,), True, GREEDY, window_block_ids=(14,)),
    ]
    packed_rows = jnp.asarray(layout.pack(rows, apart=(2,)))
    inputs = jax.tree.map(np.asarray, layout.unpack(packed_rows))
    assert inputs.token_ids.tolist() == [[5, 6, 7, 0], [9, 0, 0, 0], [4, 3, 0, 0], [0] * 4]
    assert inputs.is_token.sum(axis=1).tolist() == [3, 1, 2, 0]
    assert inputs.positions[:, 0].tolist() == [8, 0, 0, 0]
    assert inputs.num_stored.tolist() == [11, 1, 2, 0]
    assert inputs.slots.tolist() == [2, 0, 1, 4]
    assert inputs.sampling.sampled.tolist() == [False, True, False, False]
    assert inputs.block_tables[0].tolist() == [[1, 2, 99], [3, 99, 99], [4, 99, 99], [99] * 3]
    assert inputs.block_tables[1][0].tolist() == [11, 12, 77]
