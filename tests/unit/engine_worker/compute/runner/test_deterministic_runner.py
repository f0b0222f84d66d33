"""The deterministic mode: a request's bits depend on nothing but the request."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from engine_worker.compute.runner.buckets import DETERMINISTIC_ROWS, Bucket
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling
from tests.fakes.runner_requests import RunnerRequest, begin, generate, step
from tests.fakes.tiny_decoder import VOCAB_SIZE, GreedyReference
from tests.fakes.tiny_engine import MAX_MODEL_LEN, tiny_engine_weights

PROMPT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 37).tolist()
SAMPLING = RowSampling(temperature=1.0, seed=77, top_p=0.97, presence_penalty=0.3)

Bits = list[npt.NDArray[np.uint32]]


@pytest.fixture
def runner(runner_of_engines: JaxModelRunner) -> JaxModelRunner:
    runner_of_engines.reset()
    return runner_of_engines


def blocks(slot: int) -> list[int]:
    return [10 * slot + int(x) for x in np.random.default_rng(slot).permutation(10)]


def cache_bits(runner: JaxModelRunner, request: RunnerRequest) -> Bits:
    """Keys and values of every computed token, by position, per layer."""
    bits = []
    for pages in runner.state.cache:
        for pool in pages or ():
            held = np.asarray(pool)[np.asarray(request.block_ids)].transpose(0, 2, 1, 3)
            tokens = held.reshape(-1, *held.shape[2:])[: request.num_computed]
            bits.append(tokens.copy().view(np.uint32))
    return bits


def assert_same_bits(actual: Bits, expected: Bits) -> None:
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def alone(runner_of_engines: JaxModelRunner) -> tuple[list[int], Bits]:
    """Output and cache of the request when it runs alone, its prompt in one piece."""
    runner_of_engines.reset()
    request = RunnerRequest(0, PROMPT, blocks(0), SAMPLING)
    output = generate(runner_of_engines, request, 20)
    return list(output), cache_bits(runner_of_engines, request)


def test_it_computes_what_the_dense_reference_computes(runner: JaxModelRunner) -> None:
    request = RunnerRequest(0, PROMPT, blocks(0))
    reference = GreedyReference(tiny_engine_weights(), MAX_MODEL_LEN)
    assert generate(runner, request, 8) == reference.continue_greedily(PROMPT, 8)


@pytest.mark.parametrize("max_tokens", [1, 5, 16, 30])
def test_the_cut_of_the_prompt_changes_no_bit(
    runner: JaxModelRunner, alone: tuple[list[int], Bits], max_tokens: int
) -> None:
    request = RunnerRequest(0, PROMPT, blocks(0), SAMPLING)
    assert generate(runner, request, 20, max_tokens) == alone[0]
    assert_same_bits(cache_bits(runner, request), alone[1])


@pytest.mark.parametrize("place", [0, 3, 7])
def test_neighbours_and_the_place_in_the_tile_change_no_bit(
    runner: JaxModelRunner, alone: tuple[list[int], Bits], place: int
) -> None:
    generator = np.random.default_rng(place)
    requests = [
        RunnerRequest(slot, generator.integers(0, VOCAB_SIZE, 3 + 5 * slot).tolist(), blocks(slot))
        for slot in range(8)
    ]
    requests[place] = watched = RunnerRequest(place, PROMPT, blocks(place), SAMPLING)
    for request in requests:
        begin(runner, request)
    turn = 0
    while len(watched.output) < 20:
        # The company changes from step to step, and with it the watched row's place.
        company: Sequence[RunnerRequest] = [
            request for request in requests if request is watched or (request.slot + turn) % 3
        ]
        step(runner, [r for r in company if len(r.token_ids) < MAX_MODEL_LEN], max_tokens=11)
        turn += 1
    assert watched.output == alone[0]
    assert_same_bits(cache_bits(runner, watched), alone[1])


@pytest.mark.parametrize("num_kept", [1, 9, 19])
def test_recomputing_a_preempted_request_changes_no_bit(
    runner: JaxModelRunner, alone: tuple[list[int], Bits], num_kept: int
) -> None:
    request = RunnerRequest(5, PROMPT, blocks(5), SAMPLING, output=list(alone[0][:num_kept]))
    assert generate(runner, request, 20) == alone[0]
    assert_same_bits(cache_bits(runner, request), alone[1])


def test_eight_streams_share_each_call_of_the_program(
    runner: JaxModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Throughput in calls, which all cost the same: eight streams make no more than one does."""
    assert DETERMINISTIC_ROWS >= 8
    requests = [RunnerRequest(slot, [1 + slot], blocks(slot)) for slot in range(8)]
    for request in requests:
        begin(runner, request)
    (bucket,) = (key for key in runner.programs if isinstance(key, Bucket))
    program, num_calls = runner.programs[bucket], 0

    def counted(*args: object) -> object:
        nonlocal num_calls
        num_calls += 1
        return program(*args)

    programs = {**runner._programs.store.programs, bucket: counted}
    monkeypatch.setattr(runner._programs.store, "_programs", programs)
    for _ in range(5):
        step(runner, requests)
    assert num_calls == 5
