"""How many bytes of experts a decode reads: of those that its tokens chose, and of no others."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from msgspec import structs

from engine_worker.compute.models.moe import ExpertChoice, num_read
from engine_worker.compute.models.spec import LayerSpec, MlpSpec, MoeSpec
from engine_worker.compute.runner.drafts import join_drafts
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import StepBatch, StepResult
from engine_worker.core.metrics import EngineMetrics
from tests.fakes.packed_decoder import needs_native, packed
from tests.fakes.runner_requests import RunnerRequest, begin
from tests.fakes.tiny_decoder import tiny_attention, tiny_spec, tiny_weights

HIDDEN = tiny_spec().hidden_size
NUM_CHOSEN, INNER = 2, 32
EXPERTS = MoeSpec(6, NUM_CHOSEN, MlpSpec(INNER), shared=MlpSpec(16))


def test_an_expert_counts_once_and_padding_chooses_none() -> None:
    choice = ExpertChoice(jnp.array([[0, 2], [2, 5], [6, 6]]), jnp.ones((3, 2)))
    assert int(num_read(choice, 6)) == 3


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("cpu_native", marks=needs_native),
        pytest.param("xla", marks=pytest.mark.long),
    ],
)
def runner(request: pytest.FixtureRequest) -> JaxModelRunner:
    layers = tuple(LayerSpec(tiny_attention(), mlp) for mlp in (MlpSpec(16), EXPERTS))
    weights = tiny_weights(jnp.float32, replace(tiny_spec(), layers=layers))
    return JaxModelRunner.create(
        packed(weights, request.param, "float32"),
        num_blocks=4,
        max_model_len=16,
        block_size=8,
        max_num_seqs=2,
    )


def bytes_read(runner: JaxModelRunner, token_ids: Sequence[int], num_turns: int) -> int:
    """By one step that decodes behind each of some tokens, which stand at the beginning."""
    runner.reset()
    requests = [
        RunnerRequest(slot, [token_id], (2 * slot, 2 * slot + 1))
        for slot, token_id in enumerate(token_ids)
    ]
    for request in requests:
        begin(runner, request)
    works = (structs.replace(one.next_work(1), max_new_tokens=num_turns) for one in requests)
    return runner.run(StepBatch(tuple(works))).expert_bytes


def test_a_decode_reads_the_experts_that_its_tokens_chose(runner: JaxModelRunner) -> None:
    """In one of two layers, and not the other four experts, nor those of a row of padding."""
    of_token = NUM_CHOSEN * (3 * INNER * HIDDEN * 4)
    assert bytes_read(runner, [5], 1) == of_token
    assert bytes_read(runner, [5], 4) == 4 * of_token
    # The same experts twice, which are read once for both.
    assert bytes_read(runner, [5, 5], 1) == of_token
    assert of_token < bytes_read(runner, [5, 9], 1) <= 2 * of_token


def test_steps_with_drafts_keep_the_count_and_the_engine_shows_it() -> None:
    request = RunnerRequest(0, [5, 6, 7], range(6))
    drafting = structs.replace(request.next_work(1), draft_token_ids=(1,))
    tokens = np.array([1, 2], np.int32)
    result = StepResult(tokens, tokens < 0, expert_bytes=7)
    assert join_drafts((drafting,), result).expert_bytes == 7
    metrics = EngineMetrics()
    for num_bytes in (7, 0, 5):
        metrics.on_experts(num_bytes)
    (found,) = [
        one for one in metrics.registry.message().samples if one.name.endswith("expert_bytes")
    ]
    assert found.value == 12
