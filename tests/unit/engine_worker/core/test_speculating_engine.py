"""The whole engine with drafts on a real decoder says what it says without."""

import random

import pytest

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.metrics import EngineMetrics
from protocol.wire.messages import SamplingParams
from tests.fakes.tiny_engine import PROMPT, engine_on, generate, run_all

NUM_TOKENS = 40
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
# So cold that it repeats, so warm that the noise decides now and then.
SAMPLED = SamplingParams(temperature=0.25, seed=11, max_tokens=NUM_TOKENS, ignore_eos=True)
LIVELY = SamplingParams(temperature=1.0, top_p=0.9, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True)
PENALIZED = SamplingParams(temperature=0.5, presence_penalty=0.5, seed=2, max_tokens=NUM_TOKENS)


def answers(
    runner: JaxModelRunner, mode: SpeculationMode, samplings: list[SamplingParams], seed: int
) -> tuple[list[list[int]], dict[str, float]]:
    """Token ids of requests that run together, and how many were drafted, how many of them
    right."""
    metrics = EngineMetrics()
    engine = engine_on(runner, speculation=mode, metrics=metrics)
    rng = random.Random(seed)
    for index, sampling in enumerate(samplings):
        prompt = (*PROMPT[:6], *(rng.randrange(32, 127) for _ in range(4 + index)))
        engine.add("g", generate(str(index), sampling, prompt_token_ids=prompt * 2))
    found = run_all(engine)
    counted = {
        sample.labels[0][1]: sample.value
        for sample in metrics.registry.message().samples
        if sample.name == "penstock_engine_draft_tokens"
    }
    load = engine.load()
    assert load.num_free_blocks == load.num_blocks
    return [found[str(index)].token_ids for index in range(len(samplings))], counted


@pytest.mark.parametrize(
    "samplings",
    [
        pytest.param([GREEDY], marks=pytest.mark.long),
        [SAMPLED],
        [GREEDY, LIVELY, PENALIZED],
    ],
    ids=["greedy", "sampled", "mixed"],
)
def test_drafts_change_no_token(
    bucket_runner: JaxModelRunner, samplings: list[SamplingParams]
) -> None:
    num_accepted = num_drafted = 0.0
    for seed in (1, 2):
        plain, _ = answers(bucket_runner, SpeculationMode.OFF, samplings, seed)
        drafted, counted = answers(bucket_runner, SpeculationMode.ALWAYS, samplings, seed)
        assert drafted == plain
        num_drafted += counted.get("drafted", 0.0)
        num_accepted += counted.get("accepted", 0.0)
    assert 0 < num_accepted < num_drafted


def test_the_deterministic_mode_drafts_within_its_one_program(
    deterministic_runner: JaxModelRunner,
) -> None:
    samplings = [GREEDY, SAMPLED]
    plain, _ = answers(deterministic_runner, SpeculationMode.OFF, samplings, 1)
    drafted, counted = answers(deterministic_runner, SpeculationMode.ALWAYS, samplings, 1)
    assert drafted == plain
    assert counted["accepted"] > 0
