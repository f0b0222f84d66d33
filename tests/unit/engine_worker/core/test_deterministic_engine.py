"""`--deterministic` through the whole engine: an answer's bits depend on its request alone."""

from typing import Any

import numpy as np
import pytest

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.cache_group import CacheGroup
from protocol.wire.messages import Abort, Generate, SamplingParams
from tests.fakes.tiny_engine import (
    PROMPT,
    Answer,
    engine_on,
    generate,
    run_all,
)

WATCHED = SamplingParams(
    temperature=1.3,
    top_p=0.97,
    min_p=0.01,
    presence_penalty=0.4,
    repetition_penalty=1.1,
    logit_bias=((70, 1.5),),
    bad_words=("ab",),
    seed=2**63 + 5,
    max_tokens=14,
    min_tokens=14,
    logprobs=3,
    prompt_logprobs=1,
)
NUM_KINDS = 32

NEIGHBOUR_SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 2.0, "seed": 7},
    {"temperature": 1.0, "top_k": 3, "frequency_penalty": 1.0},
    {"temperature": 0.7, "allowed_token_ids": tuple(range(64, 90))},
    {"temperature": 1.0, "logprobs": 20, "prompt_logprobs": 5},
    {"temperature": 1.0, "logit_bias": ((65, 90.0),), "min_p": 0.5},
    {"temperature": 0.0, "bad_words": ("a", "the"), "min_tokens": 3},
)


def watched_command(**changes: Any) -> Generate:
    return generate("watched", WATCHED, **changes)


@pytest.fixture(scope="module")
def runner(runner_of_engines: JaxModelRunner) -> JaxModelRunner:
    return runner_of_engines


@pytest.fixture(scope="module")
def alone(runner: JaxModelRunner) -> Answer:
    engine = engine_on(runner)
    engine.add("g", watched_command())
    answer = run_all(engine)["watched"]
    assert len(answer.token_ids) == len(answer.logprobs) == 14
    assert len(answer.prompt_logprobs) == len(PROMPT) - 1
    return answer


def assert_same(answer: Answer, alone: Answer) -> None:
    """Tokens, text and every bit of the log probabilities."""
    assert answer.token_ids == alone.token_ids
    assert answer.text == alone.text
    assert answer.logprobs == alone.logprobs
    assert answer.prompt_logprobs == alone.prompt_logprobs


def neighbours(kind: int) -> list[tuple[int, Generate]]:
    """Requests of one kind of company, each with the step before which it comes."""
    generator = np.random.default_rng(kind)
    company = []
    for index in range(1 + kind % 7):
        # Every third begins as the watched prompt does, and shares its blocks.
        beginning = PROMPT[: 8 * int(generator.integers(1, 3))] if index % 3 == 0 else ()
        prompt = (*beginning, *generator.integers(32, 127, generator.integers(1, 30)).tolist())
        sampling = SamplingParams(
            max_tokens=int(generator.integers(1, 12)),
            **NEIGHBOUR_SAMPLINGS[(kind + index) % len(NEIGHBOUR_SAMPLINGS)],
        )
        command = generate(f"n{index}", sampling, prompt_token_ids=prompt)
        company.append((int(generator.integers(0, 8)), command))
    return company


@pytest.mark.parametrize("kind", range(NUM_KINDS))
def test_no_company_changes_a_bit(runner: JaxModelRunner, alone: Answer, kind: int) -> None:
    engine = engine_on(runner)
    company = neighbours(kind)
    arrival = kind % 5
    answer = Answer()
    for step in range(12):
        for before, command in company:
            if before == step:
                engine.add("g", command)
        if step == arrival:
            engine.add("g", watched_command(priority=kind % 2))
        if step == 6 and kind % 4 == 0:
            engine.abort("g", Abort(request_id="n0", attempt=0))
        for told in engine.step().values():
            for delta in told.deltas:
                if delta.request_id == "watched":
                    answer.add(delta)
    answer.join(run_all(engine)["watched"])
    assert_same(answer, alone)


@pytest.mark.parametrize("num_steps", [1, 4, 9])
def test_a_preemption_changes_no_bit(
    runner: JaxModelRunner, alone: Answer, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = tuple(CacheGroup(8, group.reach) for group in runner.cache_groups)
    monkeypatch.setattr(JaxModelRunner, "cache_groups", property(lambda runner: groups))
    admitted: list[tuple[int, ...]] = []
    assign_slot = runner.assign_slot

    def assign(slot: int, prompt: tuple[int, ...], output: tuple[int, ...]) -> None:
        admitted.append(tuple(prompt))
        assign_slot(slot, prompt, output)

    monkeypatch.setattr(runner, "assign_slot", assign)
    engine = engine_on(runner)
    answer = Answer()
    engine.add("g", watched_command(priority=5))
    for _ in range(num_steps):
        for told in engine.step().values():
            for delta in told.deltas:
                answer.add(delta)
    sampling = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    for name in range(2):
        engine.add("g", generate(f"n{name}", sampling, prompt_token_ids=(name, *PROMPT)))
    answer.join(run_all(engine)["watched"])
    assert admitted.count(PROMPT) > 1, "it was never preempted"
    assert_same(answer, alone)


@pytest.mark.parametrize("num_kept", [1, 6, 13])
def test_a_resume_on_another_engine_changes_no_bit(
    runner: JaxModelRunner, alone: Answer, num_kept: int
) -> None:
    engine = engine_on(runner)
    for _, command in neighbours(num_kept):
        engine.add("g", command)
    engine.step()
    kept = tuple(alone.token_ids[:num_kept])
    engine.add("g", watched_command(attempt=1, output_token_ids=kept))
    answer = run_all(engine)["watched"]
    assert answer.token_ids == alone.token_ids[num_kept:]
    assert answer.logprobs == alone.logprobs[num_kept:]
    assert answer.prompt_logprobs == alone.prompt_logprobs
