"""Without `--deterministic`: the demo model's bfloat16 logits stay close to exact ones, and a
choice differs only where two tokens are closer than the error.
"""

from functools import cache

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from engine_worker.compute.models.decoder import DecoderWeights, declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.weights.loader import load_weights
from engine_worker.core.engine import Engine
from engine_worker.demo import demo_model_path
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import SamplingParams
from tests.fakes.tiny_decoder import GreedyReference
from tests.fakes.tiny_engine import Answer, generate, run_all

pytestmark = pytest.mark.long

FOLDER = demo_model_path()
MAX_MODEL_LEN = 64
SAMPLING = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, logprobs=20)
TEXTS = (
    "The capital of France is",
    "One, two, three,",
    "Hello! Tell me about the sea.",
    "x = [1, 2",
)
# Of a logarithm of a probability; products of bfloat16 numbers, four layers deep.
TOLERANCE = 0.15


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    tokenizer = Tokenizer.load(FOLDER)
    return [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in TEXTS]


@pytest.fixture(scope="module")
def answers(prompts: list[tuple[int, ...]]) -> list[list[Answer]]:
    """Each prompt's answer alone, then beside the others."""
    spec = load_spec(FOLDER)
    runner = JaxModelRunner.create(
        load_weights(FOLDER, declare(spec, "bfloat16")),
        num_blocks=16,
        max_model_len=MAX_MODEL_LEN,
        block_size=16,
        max_num_seqs=4,
        max_num_batched_tokens=32,
    )
    tokenizer = Tokenizer.load(FOLDER)

    def ask(indices: range) -> list[Answer]:
        runner.reset()
        engine = Engine(runner, tokenizer, vocab_size=spec.vocab_size, max_model_len=MAX_MODEL_LEN)
        for index in indices:
            engine.add("g", generate(str(index), SAMPLING, prompt_token_ids=prompts[index]))
        found = run_all(engine)
        return [found[str(index)] for index in indices]

    alone = [ask(range(index, index + 1))[0] for index in range(len(prompts))]
    return [alone, ask(range(len(prompts)))]


@cache
def reference() -> GreedyReference:
    """The same weights in float32, attention written out."""
    graph = declare(load_spec(FOLDER), "float32")
    loaded = load_weights(FOLDER, declare(load_spec(FOLDER), "bfloat16"))
    leaves = tuple(leaf.astype(jnp.float32) for leaf in loaded.leaves)
    return GreedyReference(DecoderWeights(graph, leaves), MAX_MODEL_LEN)


def exact_logprobs(prompt: tuple[int, ...], answer: Answer) -> npt.NDArray[np.float64]:
    """[T, V], teacher-forced: before each token of the answer, given those before it."""
    logits = reference().logits([*prompt, *answer.token_ids]).astype(np.float64)
    logits = logits[len(prompt) - 1 : -1]
    logprobs: npt.NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logprobs


def worst_error(answer: Answer, exact: npt.NDArray[np.float64]) -> float:
    """The largest difference of a reported log probability."""
    return max(
        float(abs(top.logprob - row[top.token_id]))
        for scores, row in zip(answer.logprobs, exact, strict=True)
        for top in (scores.chosen, *scores.top)
    )


def test_logits_are_close_and_choices_differ_only_within_twice_the_error(
    prompts: list[tuple[int, ...]], answers: list[list[Answer]]
) -> None:
    num_tokens = 0
    for each in answers:
        for prompt, answer in zip(prompts, each, strict=True):
            exact = exact_logprobs(prompt, answer)
            error = worst_error(answer, exact)
            assert error < TOLERANCE
            for token_id, row in zip(answer.token_ids, exact, strict=True):
                assert row.max() - row[token_id] <= 2 * error
                num_tokens += 1
    assert num_tokens == 2 * len(prompts) * 20


def test_company_changes_a_choice_only_where_two_tokens_are_that_close(
    prompts: list[tuple[int, ...]], answers: list[list[Answer]]
) -> None:
    for prompt, alone, together in zip(prompts, *answers, strict=True):
        exact = exact_logprobs(prompt, alone)
        error = max(
            worst_error(alone, exact), worst_error(together, exact_logprobs(prompt, together))
        )
        pairs = zip(alone.token_ids, together.token_ids, strict=True)
        parted = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
        if parted is not None:
            best, second = np.sort(exact[parted])[::-1][:2]
            assert best - second <= 2 * error
