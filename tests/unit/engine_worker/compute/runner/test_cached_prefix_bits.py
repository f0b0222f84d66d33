"""The prefix cache in the deterministic mode: what follows a cached prompt has the same bits."""

import numpy as np
import numpy.typing as npt

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.engine import Engine
from engine_worker.core.scheduling.block_hashes import block_hashes
from protocol.wire.messages import Generate, SamplingParams
from tests.fakes.tiny_decoder import VOCAB_SIZE
from tests.fakes.tiny_engine import engine_on

BLOCK_SIZE = 8
PROMPT = tuple(np.random.default_rng(1).integers(0, VOCAB_SIZE, 37).tolist())
SAMPLING = SamplingParams(temperature=1.0, seed=5, max_tokens=20, ignore_eos=True)


def complete(engine: Engine, *prompts: tuple[int, ...]) -> list[tuple[list[int], int]]:
    """The output tokens of prompts that run together, and how much of each was cached."""
    for index, prompt in enumerate(prompts):
        engine.add(
            "g",
            Generate(
                request_id=str(index),
                choice=0,
                attempt=engine.num_steps + 1,
                prompt_token_ids=prompt,
                sampling=SAMPLING,
                lease_tokens=100,
                deadline_s=1e6,
                want_token_ids=True,
            ),
        )
    token_ids: list[list[int]] = [[] for _ in prompts]
    num_cached = [0] * len(prompts)
    while engine.has_work():
        for delta in (output := engine.step()["g"]).deltas:
            token_ids[int(delta.request_id)].extend(delta.token_ids)
        for end in output.ends:
            assert end.usage is not None
            num_cached[int(end.request_id)] = end.usage.cached_tokens
    return list(zip(token_ids, num_cached, strict=True))


def content_bits(
    engine: Engine, runner: JaxModelRunner, token_ids: tuple[int, ...]
) -> list[npt.NDArray[np.uint32]]:
    """Keys and values of the full blocks of a text, layer by layer, as the cache holds them."""
    blocks = [engine._pools[0].find(content) for content in block_hashes(token_ids, BLOCK_SIZE, "")]
    assert None not in blocks
    index = np.asarray(blocks)
    return [
        np.asarray(pool)[index].view(np.uint32)
        for pages in runner.state.cache
        for pool in pages or ()
    ]


def test_an_answer_on_a_cached_prompt_has_the_bits_of_one_without(
    runner_of_engines: JaxModelRunner,
) -> None:
    runner, engine = runner_of_engines, engine_on(runner_of_engines)
    ((cold, num_cached),) = complete(engine, PROMPT)
    assert num_cached == 0
    text = (*PROMPT, *cold[:-1])
    expected = content_bits(engine, runner, text)

    # The same beginning, computed as part of something else and beside others.
    engine._pools[0].forget_all()
    complete(engine, (*PROMPT[:33], 3, 1, 2), (9, 8, 7))
    ((warm, num_cached), *_) = complete(engine, PROMPT, (1, 2, 3) * 9)
    assert num_cached == 32
    assert warm == cold
    actual = content_bits(engine, runner, text)
    assert all((a == b).all() for a, b in zip(actual, expected, strict=True))
