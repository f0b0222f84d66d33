"""The whole engine with drafts on a real decoder says what it says without.

What repeats in the text of random weights depends on the last bits of a machine, so drafts are not
looked up here: they are the tokens of the answer without drafts, with a wrong one at known places.
"""

import random
from collections.abc import Sequence

import pytest

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.ngram_drafts import ChoiceDrafts
from engine_worker.core.decoding import speculation
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.metrics import EngineMetrics
from protocol.wire.messages import SamplingParams
from tests.fakes.tiny_engine import PROMPT, engine_on, generate, run_all

NUM_TOKENS = 40
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.25, seed=11, max_tokens=NUM_TOKENS, ignore_eos=True)
LIVELY = SamplingParams(temperature=1.0, top_p=0.9, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True)
PENALIZED = SamplingParams(temperature=0.5, presence_penalty=0.5, seed=2, max_tokens=NUM_TOKENS)
WRONG_AT = 3
"""Draft tokens at positions that this divides are wrong."""


def prompts_of(num: int, seed: int) -> list[tuple[int, ...]]:
    """Of different lengths."""
    rng = random.Random(seed)
    prompts = [
        (*PROMPT[:6], *(rng.randrange(32, 127) for _ in range(4 + index))) for index in range(num)
    ]
    return [prompt * 2 for prompt in prompts]


def answers(
    runner: JaxModelRunner,
    mode: SpeculationMode,
    samplings: list[SamplingParams],
    prompts: list[tuple[int, ...]],
) -> tuple[list[list[int]], dict[str, float]]:
    """Token ids of requests that run together, and how many were drafted, how many of them
    right."""
    metrics = EngineMetrics()
    engine = engine_on(runner, speculation=mode, metrics=metrics)
    for index, (sampling, prompt) in enumerate(zip(samplings, prompts, strict=True)):
        engine.add("g", generate(str(index), sampling, prompt_token_ids=prompt))
    found = run_all(engine)
    counted = {
        sample.labels[0][1]: sample.value
        for sample in metrics.registry.message().samples
        if sample.name == "penstock_engine_draft_tokens"
    }
    load = engine.load()
    assert load.num_free_blocks == load.num_blocks
    return [found[str(index)].token_ids for index in range(len(samplings))], counted


def check(
    monkeypatch: pytest.MonkeyPatch,
    runner: JaxModelRunner,
    samplings: list[SamplingParams],
    seed: int,
) -> None:
    """Drafts, of which some are right and some are not, change no token."""
    prompts = prompts_of(len(samplings), seed)
    plain, _ = answers(runner, SpeculationMode.OFF, samplings, prompts)
    texts = [[*prompt, *output] for prompt, output in zip(prompts, plain, strict=True)]

    class KnownDrafts(ChoiceDrafts):
        def __init__(self, num_skipped: int = 0) -> None:
            super().__init__(num_skipped)
            self._seen: list[int] = []

        def read(self, token_ids: Sequence[int], num_prompt_tokens: int) -> None:
            super().read(token_ids, num_prompt_tokens)
            self._seen += token_ids

        def draft(self, num_tokens: int) -> tuple[int, ...]:
            first = len(self._seen)
            text = next((one for one in texts if one[:first] == self._seen), [])
            return tuple(
                text[at] if at % WRONG_AT else (text[at] + 1) % 200
                for at in range(first, min(first + num_tokens, len(text)))
            )

    with monkeypatch.context() as patch:
        patch.setattr(speculation, "ChoiceDrafts", KnownDrafts)
        drafted, counted = answers(runner, SpeculationMode.ALWAYS, samplings, prompts)
    assert drafted == plain
    assert 0 < counted["accepted"] < counted["drafted"]


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
    monkeypatch: pytest.MonkeyPatch,
    bucket_runner: JaxModelRunner,
    samplings: list[SamplingParams],
) -> None:
    check(monkeypatch, bucket_runner, samplings, 1)


def test_the_deterministic_mode_drafts_within_its_one_program(
    monkeypatch: pytest.MonkeyPatch, deterministic_runner: JaxModelRunner
) -> None:
    check(monkeypatch, deterministic_runner, [GREEDY, SAMPLED], 1)
