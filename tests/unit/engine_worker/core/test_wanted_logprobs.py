"""Log probabilities of tokens that a request names, likely or not."""

import math

import pytest

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from protocol.wire.messages import Failure, SamplingParams
from tests.fakes.tiny_engine import engine_on, generate, run_all

NUM_TOKENS = 6


def test_they_are_those_of_the_whole_distribution(bucket_runner: JaxModelRunner) -> None:
    engine = engine_on(bucket_runner)
    vocab_size = engine.acceptor._limits.vocab_size
    plain = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=20)
    engine.add("g", generate("plain", plain))
    told = run_all(engine)["plain"].logprobs
    named = (told[0].top[3].token_id, 5, 7, told[0].top[0].token_id)
    wanting = SamplingParams(
        temperature=0.0,
        max_tokens=NUM_TOKENS,
        ignore_eos=True,
        logprobs=0,
        logprob_token_ids=named,
    )
    every: dict[int, float] = {}
    for start in range(0, vocab_size, 128):
        ids = tuple(range(start, min(start + 128, vocab_size)))
        each = SamplingParams(
            temperature=0.0, max_tokens=1, ignore_eos=True, logprobs=0, logprob_token_ids=ids
        )
        engine.add("g", generate(f"from {start}", each))
    engine.add("g", generate("wanting", wanting))
    engine.add("g", generate("beside", plain))
    found = run_all(engine)
    for start in range(0, vocab_size, 128):
        (position,) = found[f"from {start}"].logprobs
        every |= {one.token_id: one.logprob for one in position.wanted}
    assert len(every) == vocab_size
    assert sum(map(math.exp, every.values())) == pytest.approx(1.0, abs=1e-4)
    answer = found["wanting"].logprobs
    assert [one.chosen.token_id for one in answer] == [one.chosen.token_id for one in told]
    for position, whole in zip(answer, told, strict=True):
        assert tuple(one.token_id for one in position.wanted) == named
        assert position.top == ()
        likely = {one.token_id: one.logprob for one in whole.top}
        for one in position.wanted:
            assert one.rank == 0
            if one.token_id in likely:
                assert one.logprob == pytest.approx(likely[one.token_id], abs=1e-4)
    first = {one.token_id: one.logprob for one in answer[0].wanted}
    assert first == pytest.approx({token_id: every[token_id] for token_id in named}, abs=1e-4)
    assert all(one.wanted == () for one in found["beside"].logprobs)


@pytest.mark.parametrize(
    "wrong",
    [
        {"logprob_token_ids": (1,)},
        {"logprobs": 1, "logprob_token_ids": (-1,)},
        {"logprobs": 1, "logprob_token_ids": (10**6,)},
        {"logprobs": 1, "logprob_token_ids": (1,) * 129},
    ],
)
def test_wrong_ids_are_refused_by_name(
    bucket_runner: JaxModelRunner, wrong: dict[str, object]
) -> None:
    engine = engine_on(bucket_runner)
    engine.add("g", generate("r", SamplingParams(**wrong)))  # type: ignore[arg-type]
    end = run_all(engine)["r"].end
    assert isinstance(end, Failure)
    assert end.param == "logprob_token_ids"
