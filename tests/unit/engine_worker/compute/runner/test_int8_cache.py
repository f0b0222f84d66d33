"""Keys and values in int8, on both backends: what they cost, and what they must not change."""

from contextlib import nullcontext
from dataclasses import replace

import jax
import numpy as np
import pytest
from msgspec import structs

from engine_worker.compute.backends.choice import (
    BackendName,
    choose_backend,
    kv_label,
)
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.recurrent.specs import ShortConvSpec
from engine_worker.compute.models.spec import DecoderSpec, LatentSpec, LayerSpec, MlpSpec
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling, StepBatch
from engine_worker.core.engine import Engine
from engine_worker.loading.quality import measure_quality
from protocol.errors import ConfigurationError
from protocol.wire.messages import Generate, SamplingParams
from tests.fakes.packed_decoder import needs_native, packed
from tests.fakes.quick_compile import compile_as_engines
from tests.fakes.runner_requests import RunnerRequest, begin, generate, step
from tests.fakes.tiny_decoder import VOCAB_SIZE, tiny_attention, tiny_hybrid_spec, tiny_weights
from tests.fakes.tiny_engine import engine_on, tiny_engine_weights

BACKENDS = ["xla", pytest.param("cpu_native", marks=needs_native)]
BLOCK_SIZE = 8
TEXT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 160).tolist()


@pytest.fixture(scope="module", params=BACKENDS)
def runner(request: pytest.FixtureRequest) -> JaxModelRunner:
    """Of the deterministic mode, whose two layers are one that sees all and one behind a window."""
    # What XLA optimises may change bits; the kernels compute theirs as they were compiled.
    is_xla = request.param == "xla"
    with compile_as_engines() if is_xla else nullcontext():
        runner = JaxModelRunner.create(
            packed(tiny_engine_weights(), request.param, "float32", kv_dtype="int8"),
            num_blocks=90,
            max_model_len=80,
            block_size=BLOCK_SIZE,
            max_num_seqs=8,
            max_num_batched_tokens=32,
            deterministic=True,
        )
        runner._programs._score_layouts.clear()  # nothing scores here
        runner.warm_up(lambda fraction, text: None)
        runner.finish_warm_up()
    return runner


def blocks(slot: int) -> list[int]:
    return [10 * slot + int(x) for x in np.random.default_rng(slot).permutation(10)]


def test_a_prompts_bits_are_those_of_any_cut_beside_anyone_and_after_a_preemption(
    runner: JaxModelRunner,
) -> None:
    """A number is rounded once, when it is stored, and by its own token alone."""
    prompt, sampling = TEXT[:37], RowSampling(temperature=1.0, seed=7)
    runner.reset()
    alone = RunnerRequest(0, prompt, blocks(0), sampling)
    generate(runner, alone, 12)
    stored = [np.asarray(pool)[blocks(0)[:4]] for pool in jax.tree.leaves(runner.state.cache)]
    assert {array.dtype for array in stored} == {np.dtype(np.int8)}

    again = RunnerRequest(0, prompt, blocks(0), sampling)
    others = [RunnerRequest(slot, TEXT[slot : 20 + slot], blocks(slot)) for slot in (1, 2)]
    for each in (again, *others):
        begin(runner, each)
    while len(again.output) < 5:
        step(runner, [*others, again], max_tokens=5)
    begin(runner, again)
    while len(again.output) < 12:
        step(runner, [others[0], again], max_tokens=3)
    assert again.output == alone.output
    for pool, expected in zip(jax.tree.leaves(runner.state.cache), stored, strict=True):
        np.testing.assert_array_equal(np.asarray(pool)[blocks(0)[:4]], expected)


def answer(
    engine: Engine, prompt: list[int], output: list[int] | None = None
) -> tuple[list[int], int]:
    """What follows a prompt, or a part of its answer, and how many of its tokens were cached."""
    engine.add(
        "g",
        Generate(
            request_id="r",
            choice=0,
            attempt=engine.num_steps + 1,
            prompt_token_ids=tuple(prompt),
            output_token_ids=tuple(output or ()),
            sampling=SamplingParams(temperature=1.0, seed=5, max_tokens=20, ignore_eos=True),
            lease_tokens=100,
            deadline_s=1e6,
            want_token_ids=True,
        ),
    )
    token_ids, num_cached = list[int](), 0
    while engine.has_work():
        for told in engine.step().values():
            token_ids += [token for delta in told.deltas for token in delta.token_ids]
            for end in told.ends:
                assert end.usage is not None
                num_cached = end.usage.cached_tokens
    return token_ids, num_cached


def test_an_answer_goes_on_on_a_cached_prompt_and_at_another_engine_with_the_same_tokens(
    runner: JaxModelRunner,
) -> None:
    engine = engine_on(runner)
    whole, num_cached = answer(engine, TEXT[:37])
    assert (len(whole), num_cached) == (20, 0)
    assert answer(engine, TEXT[:37]) == (whole, 32)
    other = engine_on(runner)
    assert answer(other, TEXT[:37], whole[:9])[0] == whole[9:]


@pytest.mark.parametrize("num_right", [0, 2])
def test_draft_tokens_change_nothing_whether_they_are_right_or_not(
    runner: JaxModelRunner, num_right: int
) -> None:
    prompt = TEXT[:12]
    runner.reset()
    expected = list(generate(runner, RunnerRequest(0, prompt, blocks(0)), 6))
    runner.reset()
    request = RunnerRequest(0, prompt, blocks(0))
    generate(runner, request, 1)
    drafted = expected[1 : 1 + num_right] + [63 - expected[1 + num_right]] * (2 - num_right)
    work = request.next_work(1)
    batch = StepBatch((structs.replace(work, draft_token_ids=tuple(drafted)),))
    result = runner.run(batch)
    tokens = [int(result.token_ids[0]), *result.more_token_ids.get(0, ())]
    assert tokens == expected[1 : 2 + num_right]
    request.output += tokens
    request.num_computed += num_right
    while len(request.output) < 6:
        step(runner, [request])
    assert request.output == expected


@needs_native
def test_little_of_what_a_model_says_changes_and_less_than_by_weights_in_int8() -> None:
    weights = tiny_weights()
    exact, theirs, ours, coarse = (
        packed(weights, backend, weight_type, 32, kv_dtype)
        for backend, weight_type, kv_dtype in (
            ("xla", "float32", "auto"),
            ("xla", "float32", "int8"),
            ("cpu_native", "float32", "int8"),
            ("cpu_native", "int8", "auto"),
        )
    )
    by_cache, between, by_weights = (
        measure_quality(one, other, TEXT, lambda done: None, window=80)
        for one, other in ((theirs, exact), (ours, theirs), (coarse, exact))
    )
    assert 0 < by_cache.kl_divergence < by_weights.kl_divergence
    assert by_cache.top_1_agreement > 0.95
    # The kernels compute what XLA does with the same pages, but for queries and weights of the
    # softmax, which they round to bfloat16.
    assert between.kl_divergence < by_cache.kl_divergence


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_so_it_is_beside_recurrent_layers(backend: str) -> None:
    weights = tiny_weights(spec=tiny_hybrid_spec())
    exact = packed(weights, "xla", "float32", 32)
    cost = []
    for weight_type, kv_dtype in (("float32", "int8"), ("int8", "float32")):
        decoder = packed(weights, backend, weight_type, 32, kv_dtype)
        cost.append(measure_quality(decoder, exact, TEXT, lambda done: None, window=80))
    assert 0 < cost[0].kl_divergence < cost[1].kl_divergence
    assert cost[0].top_1_agreement > 0.95


def one_layer(**changes: object) -> DecoderSpec:
    layer = LayerSpec(replace(tiny_attention(), **changes), MlpSpec(48))  # type: ignore[arg-type]
    return replace(tiny_hybrid_spec(), architecture="OneForCausalLM", layers=(layer,))


def test_a_decoder_without_keys_and_values_is_refused_naming_the_way_out() -> None:
    def choose(spec: DecoderSpec, kv_dtype: str) -> None:
        graph = declare(spec, "float32")
        choose_backend(BackendName.AUTO, graph, "float32", block_size=BLOCK_SIZE, kv_dtype=kv_dtype)

    latent = one_layer(num_kv_heads=1, latent=LatentSpec(24, 20, 16, 12))
    with pytest.raises(ConfigurationError, match=r"latent attention of OneFor.* choose kv-dtype"):
        choose(latent, "int8")
    choose(latent, "bfloat16")
    recurrent = LayerSpec(ShortConvSpec(channels=32, kernel_size=3, bias=True), MlpSpec(48))
    spec = replace(one_layer(), layers=(recurrent,))
    choose(spec, "auto")
    for kv_dtype in ("int8", "bfloat16"):
        with pytest.raises(ConfigurationError, match=r"no keys and values.* choose kv-dtype auto"):
            choose(spec, kv_dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_of_recurrent_layers_stay_as_they_are_and_that_is_said(backend: str) -> None:
    weights = tiny_weights(spec=tiny_hybrid_spec())
    made = packed(weights, backend, "float32", BLOCK_SIZE, "int8").backend
    layout = made.kv_layout(num_blocks=1, block_size=BLOCK_SIZE)
    types = {str(array.dtype) for array in jax.tree.leaves(layout.abstract())}
    assert types == {"int8", "float32"}
    assert kv_label(made) == (
        "int8, one scale a token and key head; states of recurrent layers in float32"
    )
    plain = packed(tiny_weights(), backend, "float32").backend
    assert kv_label(plain) == "float32"
