"""The runner on the native backend, held to XLA and to the dense reference."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.backends.base import BlockKind, PackedDecoder, StepTokens
from engine_worker.compute.backends.choice import BackendName, choose_backend
from engine_worker.compute.backends.cpu_native.backend import token_rows
from engine_worker.compute.models.decoder import DecoderWeights, declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.models.spec import MlpSpec, MoeSpec
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch
from engine_worker.demo import demo_model_path
from engine_worker.embedding.embedder import Embedder
from engine_worker.embedding.models import BLOCK_SIZE as EMBEDDING_BLOCK_SIZE
from engine_worker.embedding.models import DecoderModel
from engine_worker.embedding.pooling import PoolingSpec
from engine_worker.loading.weights import load_for_backend
from engine_worker.text.tokenizer import Tokenizer
from tests.fakes.packed_decoder import needs_native, packed
from tests.fakes.runner_requests import GREEDY, RunnerRequest, begin, generate, step
from tests.fakes.tiny_decoder import (
    VOCAB_SIZE,
    GreedyReference,
    tiny_hybrid_spec,
    tiny_spec,
    tiny_weights,
)

pytestmark = needs_native

BLOCK_SIZE = 8
MAX_MODEL_LEN = 80
TYPES = ("float32", "bfloat16", "int8", "int4")


@cache
def model_weights() -> DecoderWeights:
    return tiny_weights(spec=tiny_spec([None, 20, None]))


def types(*everyday: str) -> list[Any]:
    """All types for `pytest.mark.parametrize`; those of `make test` are named."""
    long = pytest.mark.long
    return [one if one in everyday else pytest.param(one, marks=long) for one in TYPES]


def make_runner(
    decoder: PackedDecoder, *, deterministic: bool = False, num_rows: int = 4
) -> JaxModelRunner:
    return JaxModelRunner.create(
        decoder,
        num_blocks=60,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
        max_num_seqs=num_rows,
        max_num_batched_tokens=32,
        deterministic=deterministic,
    )


@pytest.fixture(scope="module", params=[*types("bfloat16"), "bfloat16 beside int8"])
def runner(request: pytest.FixtureRequest) -> JaxModelRunner:
    """In each type of weights, and with keys and values in int8."""
    weight_type, _, beside = request.param.partition(" beside ")
    return make_runner(
        packed(model_weights(), "cpu_native", weight_type, kv_dtype=beside or "auto")
    )


@pytest.fixture(scope="module")
def reference() -> GreedyReference:
    return GreedyReference(model_weights(), MAX_MODEL_LEN)


def prompt_of(length: int) -> list[int]:
    return [int(x) for x in np.random.default_rng(length).integers(0, VOCAB_SIZE, length)]


def blocks(slot: int) -> list[int]:
    return [10 * slot + int(x) for x in np.random.default_rng(slot).permutation(10)]


def forced_agreement(runner: JaxModelRunner, token_ids: Sequence[int], num_prompt: int) -> float:
    """How many of the tokens after a prompt are chosen when those before them are given."""
    runner.reset()
    request = RunnerRequest(0, token_ids[:num_prompt], blocks(0))
    begin(runner, request)
    num_equal = 0
    for expected in token_ids[num_prompt:]:
        step(runner, [request])
        num_equal += request.output[-1] == expected
        request.output[-1] = expected
    return num_equal / (len(token_ids) - num_prompt)


def test_every_block_of_the_decoder_is_computed_natively() -> None:
    backend = packed(model_weights(), "cpu_native", "bfloat16").backend
    assert {place.backend for place in backend.placements.values()} == {"cpu_native"}
    assert set(backend.placements) == set(BlockKind) - {BlockKind.RECURRENT}
    assert backend.min_rows == 1


def test_float32_generates_what_the_dense_reference_does(reference: GreedyReference) -> None:
    runner = make_runner(packed(model_weights(), "cpu_native", "float32"))
    for length, max_tokens in ((9, None), (37, 7), (42, 1)):
        request = RunnerRequest(1, prompt_of(length), blocks(1))
        output = generate(runner, request, 30, max_tokens)
        assert output == reference.continue_greedily(request.prompt, 30)


@pytest.mark.long
@pytest.mark.parametrize("weight_type", ["bfloat16", "int8"])
def test_other_types_agree_with_float32_step_by_step_as_often_as_xla_does(
    reference: GreedyReference, weight_type: str
) -> None:
    shares: dict[str, list[float]] = {"xla": [], "cpu_native": []}
    for name, found in shares.items():
        runner = make_runner(packed(model_weights(), name, weight_type))
        for length in (5, 12, 20):
            prompt = prompt_of(length)
            token_ids = [*prompt, *reference.continue_greedily(prompt, 55)]
            found.append(forced_agreement(runner, token_ids, length))
    # Random weights have many near ties: of 165 steps three may fall the other way.
    assert np.mean(shares["cpu_native"]) >= np.mean(shares["xla"]) - 3 / 165


@pytest.mark.long
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_bfloat16_agrees_with_float32_in_98_of_100_steps_of_the_bundled_model(
    kv_dtype: str,
) -> None:
    folder = demo_model_path()
    spec = load_spec(folder)
    exact, rounded = (
        make_runner(
            load_for_backend(
                folder,
                choose_backend(
                    name, declare(spec, dtype), dtype, block_size=BLOCK_SIZE, kv_dtype=beside
                ).backend,
                None,
                lambda done, text: None,
            )
        )
        for name, dtype, beside in (
            (BackendName.XLA, "float32", "auto"),
            (BackendName.CPU_NATIVE, "bfloat16", kv_dtype),
        )
    )
    tokenizer = Tokenizer.load(folder)
    shares = []
    for text in ("What is 12 + 30?", "The capital of France is", "Three colours are"):
        prompt = tokenizer.encode(text, add_special_tokens=True)
        request = RunnerRequest(0, prompt, blocks(0))
        exact.reset()
        output = generate(exact, request, 64)
        shares.append(forced_agreement(rounded, [*prompt, *output], len(prompt)))
    assert np.mean(shares) >= 0.98


def test_an_output_is_the_same_in_company_in_other_chunks_and_after_a_recompute(
    runner: JaxModelRunner,
) -> None:
    runner.reset()
    sampling = RowSampling(temperature=1.0, seed=11, top_p=0.95)
    request = RunnerRequest(0, prompt_of(21), blocks(0), sampling)
    alone = list(generate(runner, request, 24))

    chunked = RunnerRequest(2, prompt_of(21), blocks(2), sampling)
    others = [RunnerRequest(slot, prompt_of(10 + slot), blocks(slot)) for slot in (0, 1)]
    for each in (chunked, *others):
        begin(runner, each)
    while len(chunked.output) < 10:
        step(runner, [*others, chunked], max_tokens=5)
    begin(runner, chunked)  # as after a preemption
    while len(chunked.output) < 24:
        step(runner, [*others, chunked], max_tokens=5)
    assert chunked.output == alone


def test_cached_keys_of_another_row_give_the_same_bits_as_ones_own(runner: JaxModelRunner) -> None:
    runner.reset()
    prompt, shared = prompt_of(21), blocks(0)
    request = RunnerRequest(0, prompt, shared)
    begin(runner, request)
    expected = list(generate(runner, request, 8))
    hit = RunnerRequest(1, prompt, [*shared[:2], *blocks(1)[2:]])
    begin(runner, hit)
    hit.num_computed = 2 * BLOCK_SIZE
    while len(hit.output) < 8:
        step(runner, [hit])
    assert hit.output == expected


def test_programs_update_their_state_in_place(runner: JaxModelRunner) -> None:
    runner.reset()
    before = runner.state
    generate(runner, RunnerRequest(0, prompt_of(9), blocks(0)), 3)
    assert all(array.is_deleted() for array in jax.tree.leaves(before))
    state_bytes = sum(array.nbytes for array in jax.tree.leaves(runner.state))
    for program in runner.programs.values():
        memory = program.memory_analysis()
        assert memory.alias_size_in_bytes == state_bytes
        cache_bytes = sum(array.nbytes for array in jax.tree.leaves(runner.state.cache))
        assert memory.temp_size_in_bytes < cache_bytes // 2


def test_pages_stay_where_they_are_step_after_step(runner: JaxModelRunner) -> None:
    """The kernels write where they read: a copy of the cache for them would cost a step's time."""
    runner.reset()
    request = RunnerRequest(0, prompt_of(9), blocks(0))
    generate(runner, request, 3)
    pages = [array.unsafe_buffer_pointer() for array in jax.tree.leaves(runner.state.cache)]
    step(runner, [request])
    after = [array.unsafe_buffer_pointer() for array in jax.tree.leaves(runner.state.cache)]
    assert after == pages


def test_nan_is_reported_for_its_own_row_only(runner: JaxModelRunner) -> None:
    runner.reset()
    requests = [RunnerRequest(slot, prompt_of(9), blocks(slot)) for slot in (0, 1)]
    for request in requests:
        begin(runner, request)
    step(runner, requests)
    poison(runner, requests[0].block_ids[:1])
    result = runner.run(StepBatch(tuple(request.next_work(1) for request in requests)))
    assert result.has_nan.tolist() == [True, False]


def test_nan_that_a_block_held_before_reaches_no_later_user(runner: JaxModelRunner) -> None:
    runner.reset()
    expected = list(generate(runner, RunnerRequest(0, prompt_of(42), blocks(2)), 6))
    runner.reset()
    poison(runner, list(range(runner.num_blocks + 1)))
    assert generate(runner, RunnerRequest(0, prompt_of(42), blocks(2)), 6) == expected


def poison(runner: JaxModelRunner, block_ids: Sequence[int]) -> None:
    """NaN in all keys and values of some blocks, or in their scales."""
    dtype = jax.tree.leaves(runner.state.cache)[0].dtype
    nan = jnp.array({"uint16": 0x7FC0, "int8": -1}.get(str(dtype), jnp.nan), dtype)
    cache = jax.tree.map(lambda pool: pool.at[jnp.asarray(block_ids)].set(nan), runner.state.cache)
    runner._state = runner.state._replace(cache=cache)


# That a row's bits depend on nobody else is shown of the kernels one by one (cpu_native/), and of
# the deterministic mode by tests/e2e/test_when_something_dies.py, whose engines compute on them.
@pytest.mark.long
@pytest.mark.usefixtures("bits_of_engines_here")
def test_the_deterministic_mode_holds_on_the_kernels_in_float32(
    reference: GreedyReference,
) -> None:
    runner = make_runner(packed(model_weights(), "cpu_native", "float32"), deterministic=True)
    request = RunnerRequest(0, prompt_of(37), blocks(0))
    assert generate(runner, request, 12) == reference.continue_greedily(request.prompt, 12)
    assert_same_bits_in_company(runner, request)


@pytest.mark.long
@pytest.mark.usefixtures("bits_of_engines_here")
def test_the_deterministic_mode_holds_with_experts_in_bfloat16() -> None:
    """Their norms and routing are XLA's, row by row."""
    layer = replace(tiny_spec().layers[0], mlp=MoeSpec(6, 2, MlpSpec(24), shared=MlpSpec(16)))
    weights = tiny_weights(spec=replace(tiny_spec(), layers=(layer, layer)))
    decoder = packed(weights, "cpu_native", "bfloat16")
    assert {place.backend for place in decoder.backend.placements.values()} == {"cpu_native"}
    assert decoder.backend.min_rows == 1
    runner = make_runner(decoder, deterministic=True)
    request = RunnerRequest(0, prompt_of(37), blocks(0))
    generate(runner, request, 12)
    assert_same_bits_in_company(runner, request)


@pytest.mark.long
@pytest.mark.usefixtures("bits_of_engines_here")
def test_the_deterministic_mode_holds_with_recurrent_layers() -> None:
    """A prompt is rows of one token there, each of which finds the state of the one before it."""
    weights = tiny_weights(spec=tiny_hybrid_spec())
    runner = make_runner(packed(weights, "cpu_native", "float32"), deterministic=True)
    request = RunnerRequest(0, prompt_of(37), blocks(0))
    expected = GreedyReference(weights, MAX_MODEL_LEN).continue_greedily(request.prompt, 12)
    assert generate(runner, request, 12) == expected
    assert_same_bits_in_company(runner, request)


def assert_same_bits_in_company(runner: JaxModelRunner, request: RunnerRequest) -> None:
    """Output and cache of an answer of 12 tokens in slot 0, made anew beside another one."""
    bits = [np.asarray(array)[blocks(0)[:4]] for array in jax.tree.leaves(runner.state.cache)]
    runner.reset()
    again = RunnerRequest(0, prompt_of(37), blocks(0))
    neighbour = RunnerRequest(1, prompt_of(30), blocks(1), RowSampling(temperature=2.0, seed=3))
    for each in (again, neighbour):
        begin(runner, each)
    while len(again.output) < 12:
        step(runner, [neighbour, again], max_tokens=3)
    assert again.output == request.output
    for array, expected in zip(jax.tree.leaves(runner.state.cache), bits, strict=True):
        np.testing.assert_array_equal(np.asarray(array)[blocks(0)[:4]], expected)


# tests/integration/test_model_parity.py holds a model with recurrent layers to transformers there.
@pytest.mark.long
@pytest.mark.parametrize("weight_type", TYPES)
def test_recurrent_layers_are_native_in_every_type(weight_type: str) -> None:
    weights = tiny_weights(spec=tiny_hybrid_spec())
    decoder = packed(weights, "cpu_native", weight_type)
    places = decoder.backend.placements
    assert set(places) == set(BlockKind)
    assert {place.backend for place in places.values()} == {"cpu_native"}
    assert decoder.backend.min_rows == 1
    assert decoder.backend.skips_padding
    runner = make_runner(decoder)
    token_ids = GreedyReference(weights, MAX_MODEL_LEN).continue_greedily(prompt_of(21), 20)
    # Random weights have many near ties; by chance hardly any token would agree.
    least = {"float32": 1.0, "bfloat16": 0.6, "int8": 0.6, "int4": 0.4}[weight_type]
    assert forced_agreement(runner, [*prompt_of(21), *token_ids], 21) >= least


@pytest.mark.parametrize(
    "uncovered",
    [
        "attention",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("head", "mlp", "embedding")),
    ],
)
def test_blocks_without_a_kernel_are_computed_by_xla_beside_the_others(
    reference: GreedyReference, monkeypatch: pytest.MonkeyPatch, uncovered: str
) -> None:
    from engine_worker.compute.backends.cpu_native import coverage

    covered = coverage.uncovered

    def only_some(spec: object, layer: object, block: str, *rest: object) -> str | None:
        if block == uncovered and (uncovered in {"embedding", "head"} or layer is not second):
            return "not in this test"
        return covered(spec, layer, block, *rest)  # type: ignore[arg-type]

    second = model_weights().graph.spec.layers[1]
    monkeypatch.setattr(coverage, "uncovered", only_some)
    decoder = packed(model_weights(), "cpu_native", "float32")
    place = decoder.backend.placements[BlockKind(uncovered)]
    assert "not in this test" in place.reason
    runner = make_runner(decoder)
    request = RunnerRequest(0, prompt_of(33), blocks(0), GREEDY)
    output = generate(runner, request, 12, 10)
    assert output == reference.continue_greedily(request.prompt, 12)


def test_draft_tokens_read_the_pages_of_their_row_once_and_change_nothing(
    runner: JaxModelRunner,
) -> None:
    tables = jnp.array([[1, 2], [1, 2], [1, 2], [1, 2], [3, 4], [3, 4], [9, 9]], jnp.int32)
    positions = jnp.array([[5], [6], [7], [3], [4], [5], [0]], jnp.int32)
    tokens_of = StepTokens(
        token_ids=positions,
        positions=positions,
        is_token=jnp.array([[True]] * 6 + [[False]]),
        num_stored=positions[:, 0] + 1,
        block_tables=(tables,),
        slots=tables[:, 0],
        new_slots=tables[:, 0],
        layout=runner.kv_layout,
    )
    assert token_rows(tokens_of).tolist() == [0, 0, 0, 3, 4, 4, 6]

    runner.reset()
    request = RunnerRequest(0, prompt_of(12), blocks(0))
    expected = list(generate(runner, request, 5))
    runner.reset()
    begin(runner, request)
    request.output.clear()
    step(runner, [request])
    drafted = RowWork(
        0,
        (expected[0],),
        12,
        request.block_ids,
        sample=True,
        sampling=GREEDY,
        draft_token_ids=tuple(expected[1:3]),
        window_block_ids=request.block_ids,
    )
    result = runner.run(StepBatch((drafted,)))
    tokens = [int(result.token_ids[0]), *result.more_token_ids.get(0, ())]
    assert tokens == expected[1:4]


def test_embeddings_are_those_of_xla() -> None:
    # The last one in pieces.
    rows = [prompt_of(length) for length in (1, 7, 33, 64, 600)]
    vectors = []
    for name in ("xla", "cpu_native"):
        model = DecoderModel(packed(model_weights(), name, "float32", EMBEDDING_BLOCK_SIZE))
        vectors.append(Embedder(model, PoolingSpec("mean"), 600).embed(rows))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
