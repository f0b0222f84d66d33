"""Recurrent layers: the kernels at every level held to float64 and to XLA."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.compute.backends.base import StepTokens
from engine_worker.compute.backends.cpu_native import calls
from engine_worker.compute.backends.cpu_native.calls import RecurrentHeads
from engine_worker.compute.backends.cpu_native.library import Library
from engine_worker.compute.backends.cpu_native.recurrent import recur, recurrent_kernel
from engine_worker.compute.backends.kv_layout import LayerStates, StateRings
from engine_worker.compute.backends.xla.pages import xla_kv_layout
from engine_worker.compute.backends.xla.states import recur_in_step
from engine_worker.compute.models.decoder import declare, random_weights
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec, MambaSpec, ShortConvSpec
from engine_worker.compute.models.recurrent.state import Advance, Inputs
from engine_worker.compute.models.spec import LayerSpec, MlpSpec
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.packed_decoder import packed
from tests.fakes.tiny_decoder import tiny_attention, tiny_hybrid_spec, tiny_spec, tiny_weights

Array = npt.NDArray[Any]
KINDS = ("convolution", "delta net", "state space")
TOLERANCE = 3e-6
"""Of the relative distance to float64."""
EPS = 1e-6


def silu(x: Array) -> Array:
    activated: Array = x / (1 + np.exp(-x))
    return activated


@dataclass
class Problem:
    """Rows that follow one another, begin, or are padding, over states that are all random.

    Row 1 goes on from row 0, and row 2 from row 1; row 3 begins its sequence, row 5 is padding.
    With `CHUNKS` tokens go on from one another, with and without states that are kept.
    """

    kind: str
    num_groups: int = 2
    num_heads: int = 4
    group_dim: int = 8
    head_dim: int = 6
    num_taps: int = 4
    has_bias: bool = True
    seed: int = 0
    before: Array = field(default_factory=lambda: np.array([3, 7, 1, -1, 0, 99, 2, 10], np.int32))
    after: Array = field(default_factory=lambda: np.array([7, 1, 9, 4, 8, -1, 5, 10], np.int32))

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)

        def draw(*shape: int) -> Array:
            return random.normal(size=shape).astype(np.float32)

        heads, num_rows = self.num_heads, len(self.before)
        self.channels = heads * self.head_dim + 2 * self.num_groups * self.group_dim
        self.mixed = draw(num_rows, self.channels)
        self.taps = draw(self.channels, self.num_taps)
        self.bias = draw(self.channels) if self.has_bias else None
        self.states: tuple[Array, ...] = (draw(11, self.num_taps - 1, self.channels),)
        self.heads: RecurrentHeads | None = None
        if self.kind == "convolution":
            return
        sizes = (self.group_dim, self.head_dim)
        is_delta = self.kind == "delta net"
        self.states += (draw(11, heads, *(sizes if is_delta else sizes[::-1])),)
        forgets = -np.exp(draw(num_rows, heads) - 1)
        writes = random.uniform(0, 2, (num_rows, heads)).astype(np.float32)
        self.heads = RecurrentHeads(
            self.num_groups,
            jnp.asarray(writes),
            jnp.asarray(forgets),
            None if is_delta else jnp.asarray(draw(heads)),
            EPS if is_delta else 0.0,
        )

    def found(self, rows: slice = slice(None)) -> tuple[Array, ...]:
        """The kernels' result for some rows, and all states after them."""
        heads = self.heads
        if heads is not None:
            heads = replace(heads, writes=heads.writes[rows], forgets=heads.forgets[rows])
        y, states = calls.recurrent(
            jnp.asarray(self.mixed[rows]),
            jnp.asarray(self.before[rows]),
            jnp.asarray(self.after[rows]),
            (jnp.asarray(self.taps), None if self.bias is None else jnp.asarray(self.bias)),
            tuple(map(jnp.asarray, self.states)),
            heads,
        )
        return np.asarray(y), *map(np.asarray, states)

    def oracle(self) -> tuple[Array, ...]:
        """The same in float64, as it is defined."""
        states = [state.astype(np.float64) for state in self.states]
        results: list[Array] = []
        new: list[Array] = []
        for row, (before, after) in enumerate(zip(self.before, self.after, strict=True)):
            own = [0 * pool[0] if before < 0 else pool[before % len(pool)] for pool in states]
            own = new if before == calls.GOES_ON else own
            seen = np.concatenate([own[0], self.mixed[row : row + 1].astype(np.float64)])
            y = (seen * self.taps.T).sum(axis=0)
            y += 0 if self.bias is None else self.bias
            new = [seen[1:]]
            if self.heads is not None:
                y, memory = self._heads_in_float64(row, silu(y), own[1])
                new.append(memory)
            results.append(0 * y if after == -1 else y)
            for pool, state in zip(states, new, strict=True):
                if after >= 0:
                    pool[after] = state
        return np.array(results), *states

    def _heads_in_float64(self, row: int, y: Array, memory: Array) -> tuple[Array, Array]:
        assert self.heads is not None
        width, size, groups = self.num_heads * self.head_dim, self.group_dim, self.num_groups
        write, forgets = (
            np.asarray(x, np.float64)[row] for x in (self.heads.writes, self.heads.forgets)
        )
        memory = memory * np.exp(forgets)[:, None, None]
        of_group = np.arange(self.num_heads) // (self.num_heads // groups)
        if self.heads.passed is None:
            q, k, v = np.split(y, [groups * size, 2 * groups * size])
            q, k = (x.reshape(groups, size)[of_group] for x in (q, k))
            q, k = (x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + EPS) for x in (q, k))
            wrong = v.reshape(self.num_heads, -1) - np.einsum("hkv,hk->hv", memory, k)
            memory = memory + np.einsum("hk,hv->hkv", k, wrong * write[:, None])
            return np.einsum("hkv,hk->hv", memory, q) * size**-0.5, memory
        values, writes, reads = np.split(y, [width, width + groups * size])
        values = values.reshape(self.num_heads, -1)
        writes, reads = (x.reshape(groups, size)[of_group] for x in (writes, reads))
        memory = memory + np.einsum("hp,hn->hpn", values * write[:, None], writes)
        passed = values * np.asarray(self.heads.passed, np.float64)[:, None]
        return np.einsum("hpn,hn->hp", memory, reads) + passed, memory


def assert_oracles(problem: Problem) -> None:
    for found, expected in zip(problem.found(), problem.oracle(), strict=True):
        assert found.shape == expected.shape
        distance = np.linalg.norm(found - expected)
        assert distance <= TOLERANCE * np.linalg.norm(expected), (
            problem.kind,
            problem.group_dim,
            problem.head_dim,
        )


CHUNKS: dict[str, Any] = {
    "before": np.array([3, -2, -2, -2, -1, -2, 99, 2, -2, 10], np.int32),
    "after": np.array([-2, 7, -2, 1, -2, 4, -1, -2, 5, 10], np.int32),
}
"""Of 4, 2 and 2 tokens, a token by itself, and padding."""


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    num_groups = draw(st.integers(1, 3))
    chunks: dict[str, Any] = {name: values.copy() for name, values in CHUNKS.items()}
    return Problem(
        draw(st.sampled_from(KINDS)),
        num_groups,
        num_groups * draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 7, 16, 33, 128])),
        draw(st.sampled_from([1, 6, 17, 64, 128, 150])),
        draw(st.sampled_from([1, 2, 4, 16])),
        has_bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
        **draw(st.sampled_from([{}, chunks])),
    )


@settings(max_examples=16 * EFFORT, deadline=None)
@given(problem=problems())
def check_problems(problem: Problem) -> None:
    assert_oracles(problem)


def test_results_and_states_are_the_oracles(level: str) -> None:
    check_problems()
    for kind in KINDS:
        for chunks in ({}, CHUNKS):
            assert_oracles(Problem(kind, group_dim=128, head_dim=128, **chunks))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(40, 150), (128, 128)])
def test_a_chunk_has_the_bits_of_its_tokens_one_by_one(
    level: str, kind: str, sizes: tuple[int, int]
) -> None:
    problem = Problem(kind, group_dim=sizes[0], head_dim=sizes[1], **CHUNKS)
    together = problem.found()
    before, after = CHUNKS["before"].copy(), CHUNKS["after"].copy()
    # Each state that was kept nowhere gets a place that nobody reads, of two in turn.
    for row in np.flatnonzero(after == calls.GOES_ON):
        after[row] = (0, 6, 8, 9)[row % 4]
    for row in np.flatnonzero(before == calls.GOES_ON):
        before[row] = after[row - 1]
    problem.before, problem.after = before, after
    found = problem.found()
    assert np.array_equal(found[0], together[0])
    kept = [state for state in CHUNKS["after"] if state >= 0]
    for one, other in zip(found[1:], together[1:], strict=True):
        assert np.array_equal(one[kept], other[kept])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokens_bits_do_not_depend_on_the_rows_beside_it(level: str, kind: str) -> None:
    problem = Problem(kind, group_dim=40, head_dim=150)
    together = problem.found()
    for row in (0, 3, 4, 6, 7):
        alone = problem.found(slice(row, row + 1))
        assert np.array_equal(alone[0][0], together[0][row])
        for one, other in zip(alone[1:], together[1:], strict=True):
            assert np.array_equal(one[problem.after[row]], other[problem.after[row]])
    # Rows of one sequence, in calls of their own.
    first, *states = problem.found(slice(0, 2))
    problem.states = tuple(states)
    assert np.array_equal(first, together[0][:2])
    assert np.array_equal(problem.found(slice(2, 3))[0][0], together[0][2])


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_no_row_names_are_neither_read_nor_written(kernels: Library, kind: str) -> None:
    problem = Problem(kind)
    usual = problem.found()
    others = np.setdiff1d(np.arange(11), [*problem.before, *problem.after])
    fresh = [4, 5, 8, 9]  # Only written to, one of them by a row that begins with zeros.
    for state in problem.states:
        state[[*others, *fresh]] = np.nan
    found = problem.found()
    assert np.array_equal(found[0], usual[0])
    assert not found[0][5].any()
    for state, before in zip(found[1:], usual[1:], strict=True):
        named = np.setdiff1d(np.arange(11), others)
        assert np.array_equal(state[named], before[named])
        assert np.isnan(state[others]).all()


def refused(problem: Problem, match: str) -> None:
    # Of a call by itself jax raises either.
    errors = (jax.errors.JaxRuntimeError, ValueError)
    with pytest.raises(errors, match=f"native kernels, recurrent: {match}"):
        problem.found()


def test_calls_that_do_not_fit_are_refused(
    kernels: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in KINDS:
        for row, before, after in ((0, 11, 0), (0, -2, 0), (6, -2, 0), (7, 0, 11), (1, -3, -3)):
            problem = Problem(kind)
            problem.before[row], problem.after[row] = before, after
            refused(problem, f"row {row} goes from state {before} to {after} of 11")
        for name, match in (
            ("mixed", "before is"),
            ("taps", "taps is"),
            ("bias", "bias has not one number a channel"),
            ("before", "before is"),
            ("after", "after is"),
        ):
            problem = Problem(kind)
            setattr(problem, name, getattr(problem, name)[:-1])
            refused(problem, match)
        refused(Problem(kind, num_taps=17), "a convolution has 1 to 16 taps")
        problem = Problem(kind)
        problem.states = (problem.states[0][:, 1:], *problem.states[1:])
        refused(problem, "tails is")
    for kind in KINDS[1:]:
        problem = Problem(kind)
        heads = problem.heads
        assert heads is not None
        problem.states = (problem.states[0], problem.states[1][1:])
        refused(problem, "memories is")
        for changes, match in (
            ({"num_groups": 0}, "groups is 0"),
            ({"num_groups": 3}, "there are no heads, or their number is no multiple"),
            ({"num_groups": 4}, "the channels are not those of heads and groups"),
            ({"writes": heads.writes[:, :3]}, "writes is"),
            ({"forgets": heads.forgets[:, :3]}, "forgets is"),
            ({"forgets": heads.forgets.astype(jnp.int32)}, "forgets is"),
            ({"eps": float("nan")}, "eps is no finite number"),
        ):
            problem = Problem(kind)
            problem.heads = replace(heads, **changes)
            refused(problem, match)
    problem = Problem("state space")
    assert problem.heads is not None
    problem.heads = replace(problem.heads, passed=jnp.zeros(3))
    refused(problem, "passed is")
    monkeypatch.setattr(calls, "_CONFIG_VERSION", 2)
    refused(Problem("convolution"), "the call was built for another version")


def test_nothing_comes_of_no_rows(kernels: Library) -> None:
    for kind in KINDS:
        problem = Problem(kind)
        y, *states = problem.found(slice(0, 0))
        assert not len(y)
        assert all(map(np.array_equal, states, problem.states))


def test_layers_are_covered_whose_convolution_the_kernels_hold() -> None:
    spec = tiny_hybrid_spec()
    assert recurrent_kernel(spec) is recur
    for size, expected in ((16, recur), (17, None)):
        layers = (replace(spec.layers[0], mixer=ShortConvSpec(32, size)), *spec.layers[1:])
        assert recurrent_kernel(replace(spec, layers=layers)) is expected


def step_of(positions: list[list[int]], slots: list[int], layout: Any) -> StepTokens:
    """Rows of as many tokens; position -1 is padding."""
    tokens = jnp.asarray(positions, jnp.int32)
    num_rows, slot = len(positions), jnp.asarray(slots, jnp.int32)
    tables = jnp.arange(num_rows * 3, dtype=jnp.int32).reshape(num_rows, 3)
    tables = tables[jnp.asarray([slots.index(one) for one in slots])]
    return StepTokens(
        jnp.zeros_like(tokens),
        jnp.maximum(tokens, 0),
        tokens >= 0,
        jnp.maximum(tokens.max(axis=1), 0) + 1,
        (tables,),
        slot,
        slot,
        layout,
    )


def chunk_of(first: int, length: int, width: int = 20) -> list[int]:
    """Positions of a row, and padding."""
    return [*range(first, first + length), *[-1] * (width - length)]


STEPS = {
    "tokens": ([[at] for at in (5, 6, 7, 8, 0, -1, 16, 9)], [2, 2, 2, 2, 0, 5, 1, 3]),
    "chunks": ([chunk_of(5, 6), chunk_of(0, 20), chunk_of(0, 0), chunk_of(16, 1)], [2, 0, 5, 1]),
}
"""Rows in the middle of a block, at its border, at the beginning; drafts; padding."""


@pytest.mark.parametrize("layer", [0, 2, 4])
@pytest.mark.parametrize("tokens", STEPS)
def test_the_blocks_of_every_mixer_get_what_xla_gives_them(
    kernels: Library, tokens: str, layer: int
) -> None:
    spec = tiny_hybrid_spec()
    weights = random_weights(declare(spec, jnp.float32), seed=2, scale=0.4)
    block = weights.graph.bind(weights.leaves).layers[layer].recurrent
    layout = xla_kv_layout(
        spec, np.dtype(np.float32), num_blocks=30, block_size=8, rings=StateRings(8, 6)
    )
    step = step_of(*STEPS[tokens], layout)
    random = np.random.default_rng(1)
    own = layout.abstract()[layer]
    assert isinstance(own, LayerStates)
    states = LayerStates(
        tuple(jnp.asarray(random.normal(size=x.shape), x.dtype) for x in own.arrays)
    )
    x = jnp.asarray(random.normal(size=(step.is_token.size, spec.hidden_size)), jnp.float32)

    def run(is_native: bool) -> tuple[jax.Array, LayerStates]:
        after = states

        def recur_with(_: int, inputs: Inputs, advance: Advance) -> jax.Array:
            nonlocal after
            if is_native:
                y, after = recur(block, states, step, inputs)
            else:
                y, after = recur_in_step(states, step, inputs, advance)
            return y

        return block(layer, x, recur_with), after

    (found, after), (expected, expected_after) = run(True), run(False)
    live = np.asarray(step.is_token).reshape(-1)
    np.testing.assert_allclose(found[live], expected[live], rtol=2e-5, atol=2e-5)
    for one, other in zip(after.arrays, expected_after.arrays, strict=True):
        np.testing.assert_allclose(
            one[: layout.padding_state], other[: layout.padding_state], rtol=2e-5, atol=2e-5
        )


def test_a_decode_step_copies_no_states(kernels: Library) -> None:
    mixers = (
        DeltaNetSpec(2, 4, key_dim=32, value_dim=32, kernel_size=4),
        MambaSpec(4, head_dim=32, num_groups=2, state_size=32, kernel_size=4),
    )
    layers = tuple(LayerSpec(mixer, MlpSpec(48)) for mixer in (*mixers, tiny_attention()))
    weights = tiny_weights(spec=replace(tiny_spec(), layers=layers))
    runner = JaxModelRunner.create(
        packed(weights, "cpu_native", "float32"),
        num_blocks=40,
        max_model_len=96,
        block_size=8,
        max_num_seqs=4,
    )
    bucket = next(bucket for bucket in runner.packed_layouts if not bucket.is_prefill)
    memory = runner._programs.compile(bucket).memory_analysis()
    states_bytes = sum(
        array.nbytes
        for layer in runner.state.cache
        if isinstance(layer, LayerStates)
        for array in layer.arrays
    )
    assert memory.alias_size_in_bytes >= states_bytes
    assert memory.temp_size_in_bytes < states_bytes // 8
    runner.close()
