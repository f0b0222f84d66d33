"""Experts of the native kernels at every level and in every type, held to float64 and to XLA."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.compute.backends.cpu_native import calls, packing
from engine_worker.compute.backends.cpu_native.calls import MlpConfig
from engine_worker.compute.backends.cpu_native.library import Library
from engine_worker.compute.models.integer_blocks import BlockFormat
from engine_worker.compute.models.spec import Activation
from tests.fakes.block_oracle import TOLERANCE, ExpertsProblem, distance
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.native_levels import at_levels

K4 = BlockFormat(4, 32, 64, has_scales=True, has_minima=True)
Q8 = BlockFormat(8, 32, 32)
FP4 = BlockFormat(4, 32, 32, "float8_e8m0fnu", codes="fp4")


def config_of(weight_type: str = "bfloat16", **changes: Any) -> MlpConfig:
    return MlpConfig(changes.pop("inner", 48), 0.0, weight_type, norm="none", **changes)


def choice(
    num_tokens: int, num_experts: int, num_chosen: int, seed: int = 0, share_none: float = 0.0
) -> np.ndarray[Any, Any]:
    """[T, K] distinct experts of each token; a share of the tokens has none."""
    random = np.random.default_rng(seed)
    rows = [random.permutation(num_experts)[:num_chosen] for _ in range(num_tokens)]
    chosen = np.stack(rows).astype(np.int32)
    chosen[random.random(num_tokens) < share_none] = num_experts
    return chosen


@st.composite
def problems(draw: st.DrawFn) -> ExpertsProblem:
    """Any experts: more than rows, or fewer; biases, clamps; tokens without an expert."""
    num_experts = draw(st.sampled_from([1, 2, 5, 40]))
    num_chosen = min(num_experts, draw(st.integers(1, 4)))
    is_gated = draw(st.booleans())
    config = MlpConfig(
        draw(st.sampled_from([1, 15, 16, 50, 64])),
        0.0,
        draw(st.sampled_from(packing.WEIGHT_TYPES)),
        draw(st.sampled_from(packing.GROUP_SIZES)),
        draw(st.sampled_from(Activation)),
        is_gated,
        norm="none",
        has_gate_up_bias=draw(st.booleans()),
        has_down_bias=draw(st.booleans()),
        clamp=draw(st.sampled_from([0.0, 0.4])) if is_gated else 0.0,
        up_offset=draw(st.sampled_from([0.0, 1.0])) if is_gated else 0.0,
    )
    num_tokens, seed = draw(st.sampled_from([1, 2, 9, 33, 90])), draw(st.integers(0, 99))
    chosen = choice(num_tokens, num_experts, num_chosen, seed, draw(st.sampled_from([0.0, 0.4])))
    return ExpertsProblem(config, num_experts, chosen, draw(st.sampled_from([1, 17, 64])), seed)


@settings(max_examples=10 * EFFORT)
@given(problem=problems())
def check_experts(problem: ExpertsProblem) -> None:
    limit = TOLERANCE[problem.config.weight_type]
    assert distance(problem.found(), problem.oracle()) < limit, problem.config


def test_experts_are_the_oracles(level: str) -> None:
    check_experts()


@at_levels("weight_type", packing.WEIGHT_TYPES)
def test_one_expert_that_all_tokens_chose_and_experts_that_none_did(
    level: str, weight_type: str
) -> None:
    """As many rows as several tiles have, and one row alone."""
    for num_tokens in (1, 2, 47):
        chosen = np.full((num_tokens, 1), 3)
        problem = ExpertsProblem(config_of(weight_type, inner=80), 7, chosen, 96)
        assert distance(problem.found(), problem.oracle()) < TOLERANCE[weight_type]


@pytest.mark.parametrize(("gate_up", "down"), [(K4, Q8), (FP4, FP4)])
def test_experts_as_a_checkpoint_keeps_them(
    level: str, gate_up: BlockFormat, down: BlockFormat
) -> None:
    config = config_of(inner=64, gate_up_blocks=gate_up, down_blocks=down)
    problem = ExpertsProblem(config, 6, choice(11, 6, 2), 128)
    assert distance(problem.found(), problem.oracle()) < TOLERANCE["int8"]


@at_levels("weight_type", packing.WEIGHT_TYPES)
def test_a_tokens_bits_do_not_depend_on_the_others_and_what_they_chose(
    level: str, weight_type: str
) -> None:
    config = config_of(weight_type, inner=50, has_gate_up_bias=True, has_down_bias=True)
    problem = ExpertsProblem(config, 9, choice(60, 9, 3), 70)
    together = problem.found()
    for rows in (slice(0, 1), slice(7, 9), slice(20, 53)):
        assert np.array_equal(problem.found(rows), together[rows])


def test_an_expert_that_no_token_chose_is_never_read(level: str) -> None:
    """What would come of reading one is NaN; a token without an expert gets zeros."""
    problem = ExpertsProblem(config_of("float32"), 12, choice(4, 12, 2), 24)
    problem.chosen[3] = 12
    problem.x[3] = np.nan
    expected = problem.oracle()
    others = np.setdiff1d(np.arange(12), problem.chosen)
    assert len(others)
    for matrices in (problem.gate_up, problem.down):
        matrices[others] = 0xFF
    found = problem.found()
    assert distance(found[:3], expected[:3]) < TOLERANCE["float32"]
    assert not found[3].any()


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("weight_type", packing.WEIGHT_TYPES)
def test_a_number_that_is_none_stays_none_in_its_token(
    kernels: Library, weight_type: str, activation: Activation
) -> None:
    """A clamp, and an activation that cuts off what is below zero, let it through."""
    config = config_of(weight_type, activation=activation, clamp=0.5)
    problem = ExpertsProblem(config, 4, choice(5, 4, 2), 32)
    usual = problem.found()
    problem.x[2, 7] = np.nan
    found = problem.found()
    assert np.isnan(found[2]).all()
    assert np.array_equal(np.delete(found, 2, 0), np.delete(usual, 2, 0))


def refused(problem: ExpertsProblem, match: str, **changes: Any) -> None:
    """Runs the experts with some of their parts replaced."""
    chosen = changes.pop("chosen", problem.chosen)
    weights = changes.pop("weights", problem.weights)
    mlp = replace(problem.mlp(), **changes)
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"native kernels, experts: {match}"):
        calls.experts(
            jnp.asarray(problem.x), jnp.asarray(chosen), jnp.asarray(weights), mlp
        ).block_until_ready()


def test_calls_that_do_not_fit_are_refused(
    kernels: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(has_gate_up_bias=True, has_down_bias=True)
    problem = ExpertsProblem(config, 6, choice(3, 6, 2), 64)
    mlp = problem.mlp()
    for wrong in (-1, 7, 2**31 - 1):
        chosen = problem.chosen.copy()
        chosen[1, 1] = wrong
        refused(problem, f"token 1 chose expert {wrong} of 6", chosen=chosen)
    refused(problem, "experts is", chosen=problem.chosen[:2])
    refused(problem, "weights is", weights=problem.weights[:, :1])
    refused(problem, "weights is", weights=problem.weights.astype(np.int32))
    refused(problem, "gate_up is", gate_up=mlp.gate_up[:, :-1])
    refused(problem, "gate_up is", gate_up=mlp.gate_up[0])
    refused(problem, "down is", down=mlp.down[:5])
    refused(problem, "down is", down=mlp.down[..., :-128])
    refused(problem, "vectors is too short", vectors=mlp.vectors[:-1])
    refused(problem, "vectors is longer", vectors=jnp.zeros(10_000))
    refused(problem, "there are no experts", gate_up=mlp.gate_up[:0], down=mlp.down[:0])
    refused(problem, "gate_up is", config=replace(config, weight_type="int8"))
    refused(problem, "experts have neither", config=replace(config, norm="rms"))
    refused(problem, "experts have neither", config=replace(config, multiplier=2.0))
    refused(problem, "experts have neither", config=replace(config, has_post_norm=True))
    refused(problem, "clamp is negative", config=replace(config, clamp=-1.0))
    refused(problem, "clamp is no finite number", config=replace(config, clamp=float("inf")))
    no_gate = replace(config, is_gated=False, up_offset=1.0)
    refused(problem, "clamp, up_offset or gate_multiplier of an MLP without a gate", config=no_gate)
    monkeypatch.setattr(calls, "_CONFIG_VERSION", 2)
    refused(problem, "the call was built for another version")


def test_nothing_comes_of_no_tokens(kernels: Library) -> None:
    problem = ExpertsProblem(config_of(), 3, choice(2, 3, 1), 32)
    assert problem.found(slice(0, 0)).shape == (0, 32)
