"""In the usual mode an answer may depend on its company, but by no more than last bits.

Where questions stand in a batch, how many there are of their kind, what was cached and which
streams run beside them changes the order of sums. This bounds what that does to the probabilities
of labels, and to the likeliest one. In the deterministic mode nothing does anything to them.
"""

from array import array
from collections.abc import Sequence

import numpy as np
import pytest

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.score_pack import ScoredTexts
from engine_worker.core.engine import Engine
from engine_worker.core.engine_output import GatewayOutput
from engine_worker.core.score_task import score_task
from engine_worker.text.score_preparation import ScorePrompt
from gateway.http.scoring.probabilities import probabilities
from protocol.wire.messages import SamplingParams, Score, Scored, ScoredQuestion
from tests.fakes.packed_decoder import needs_native, packed
from tests.fakes.tiny_decoder import tiny_spec, tiny_weights
from tests.fakes.tiny_engine import MAX_MODEL_LEN, generate
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
GENERATOR = np.random.default_rng(11)
NUM_QUESTIONS = 40
TOLERANCE = 1e-5
"""Of a probability; answers are told to six digits."""


def tokens(num: int) -> tuple[int, ...]:
    return tuple(GENERATOR.integers(3, 250, num).tolist())


HEAD = tokens(29)
BEGINNINGS = [(), tokens(3), tokens(2)]
"""Of the kinds of questions, which take turns."""
TEXTS = [tokens(int(num)) for num in GENERATOR.integers(2, 13, NUM_QUESTIONS)]
LABELS = [
    tuple(tokens(int(length)) for length in GENERATOR.choice([1, 1, 1, 2], num))
    for num in GENERATOR.choice([2, 2, 3, 5], NUM_QUESTIONS)
]


def native_runner() -> JaxModelRunner:
    weights = tiny_weights(spec=tiny_spec(vocab_size=TOKENIZER.num_tokens))
    return JaxModelRunner.create(
        packed(weights, "cpu_native", "int8"),
        num_blocks=60,
        max_model_len=MAX_MODEL_LEN,
        block_size=8,
        max_num_seqs=8,
        max_num_batched_tokens=32,
    )


class Asker:
    """Asks an engine some of the questions; the probabilities of each one's labels."""

    def __init__(self, runner: JaxModelRunner) -> None:
        self._runner = runner
        self._engine = self.fresh()

    def fresh(self) -> Engine:
        """An engine with nothing in its cache."""
        self._runner.reset()
        self._engine = Engine(
            self._runner,
            TOKENIZER,
            vocab_size=TOKENIZER.num_tokens,
            max_model_len=MAX_MODEL_LEN,
            clock=lambda: 0.0,
        )
        return self._engine

    def ask(self, numbers: Sequence[int], *, num_streams: int = 0) -> dict[int, list[float]]:
        engine = self._engine
        sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=12)
        for number in range(num_streams):
            engine.add("g", generate(f"r{number}", sampling, prompt_token_ids=(number, 5, 6)))
        questions, first = [], 0
        for number in numbers:
            beginning = BEGINNINGS[number % len(BEGINNINGS)]
            questions.append(ScoredTexts(TEXTS[number], LABELS[number], first, beginning))
            first += len(LABELS[number])
        command = Score(
            request_id="s",
            deadline_s=60.0,
            messages_json="[]",
            questions=(ScoredQuestion(text=""),),
            label_sets=(("A",),),
        )
        prompt = ScorePrompt(HEAD, tuple(questions), first)
        engine.score(score_task("g", command, prompt, engine.score_limits, 0.0))
        values = array("f")
        while engine.has_work():
            for answer in engine.step().get("g", GatewayOutput()).answers:
                assert isinstance(answer, Scored)
                values.frombytes(answer.logprobs)
        return {
            number: probabilities(values[one.first : one.first + len(one.labels)].tolist())
            for number, one in zip(numbers, questions, strict=True)
        }


def ask_alone(asker: Asker, numbers: Sequence[int]) -> dict[int, list[float]]:
    alone: dict[int, list[float]] = {}
    for number in numbers:
        asker.fresh()
        alone |= asker.ask([number])
    return alone


def ask_in_company(
    asker: Asker, some: Sequence[int], everything: Sequence[int]
) -> list[dict[int, list[float]]]:
    asked: list[dict[int, list[float]]] = []
    for numbers in (some[::-1], everything):
        asker.fresh()
        asked.append(asker.ask(numbers))
        asked.append(asker.ask(numbers))  # behind a beginning that is in the cache
        asker.fresh()  # the beginning is computed in one step with others
        asked.append(asker.ask(numbers, num_streams=5))
    return asked


def winner(chances: Sequence[float]) -> int:
    return max(range(len(chances)), key=chances.__getitem__)


@pytest.mark.parametrize("backend", ["xla", pytest.param("cpu_native", marks=needs_native)])
def test_company_changes_no_more_than_last_bits_and_no_clear_winner(
    backend: str, bucket_runner: JaxModelRunner
) -> None:
    asker = Asker(bucket_runner if backend == "xla" else native_runner())
    some = list(range(6))
    alone = ask_alone(asker, some)
    for found in ask_in_company(asker, some, list(range(NUM_QUESTIONS))):
        for number in some:
            expected = alone[number]
            assert found[number] == pytest.approx(expected, abs=TOLERANCE)
            first, second = sorted(expected, reverse=True)[:2]
            if first - second > 2 * TOLERANCE:
                assert winner(found[number]) == winner(expected)


def test_in_the_deterministic_mode_company_changes_no_bit(
    runner_of_engines: JaxModelRunner,
) -> None:
    asker = Asker(runner_of_engines)
    some = list(range(6))
    alone = ask_alone(asker, some)
    for found in ask_in_company(asker, some, list(range(14))):
        assert {number: found[number] for number in some} == alone
