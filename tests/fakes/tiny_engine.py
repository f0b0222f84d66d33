"""An engine around a tiny random decoder and a byte-level tokenizer, and one answer of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine_worker.compute.models.decoder import DecoderWeights
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.engine import Engine
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Delta, Failure, Finished, Generate, SamplingParams, TokenLogprobs
from tests.fakes.tiny_decoder import tiny_spec, tiny_weights
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

MAX_MODEL_LEN = 80
PROMPT = tuple(b"The tiny model says: ")


def tiny_engine_weights(tokenizer: Tokenizer | None = None) -> DecoderWeights:
    """Random weights with a logit for each token of the tokenizer."""
    tokenizer = tokenizer or byte_level_tokenizer()
    return tiny_weights(spec=tiny_spec(vocab_size=tokenizer.num_tokens))


def tiny_runner(*, deterministic: bool = False, num_blocks: int = 60) -> JaxModelRunner:
    """A runner whose programs are compiled when they are first needed."""
    return JaxModelRunner.create(
        tiny_engine_weights(),
        num_blocks=num_blocks,
        max_model_len=MAX_MODEL_LEN,
        block_size=8,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        deterministic=deterministic,
    )


def engine_on(runner: JaxModelRunner, tokenizer: Tokenizer | None = None, **options: Any) -> Engine:
    """A fresh engine on a runner that may have served another one."""
    runner.reset()
    tokenizer = tokenizer or byte_level_tokenizer()
    return Engine(
        runner,
        tokenizer,
        vocab_size=tokenizer.num_tokens,
        max_model_len=MAX_MODEL_LEN,
        **options,
    )


def generate(request_id: str, sampling: SamplingParams, **changes: Any) -> Generate:
    """A command for the usual prompt."""
    options: dict[str, Any] = {
        "choice": 0,
        "attempt": 0,
        "prompt_token_ids": PROMPT,
        "lease_tokens": 1000,
        "deadline_s": 1e6,
        "want_token_ids": True,
        **changes,
    }
    return Generate(request_id=request_id, sampling=sampling, **options)


@dataclass
class Answer:
    """All that was told about one request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    end: Finished | Failure | None = None

    def add(self, delta: Delta) -> None:
        """Take one more delta."""
        self.token_ids.extend(delta.token_ids)
        self.text += delta.text
        self.logprobs.extend(delta.logprobs)
        self.prompt_logprobs.extend(delta.prompt_logprobs)

    def join(self, rest: "Answer") -> None:
        """Take what was told after it."""
        self.token_ids += rest.token_ids
        self.text += rest.text
        self.logprobs += rest.logprobs
        self.prompt_logprobs += rest.prompt_logprobs
        self.end = rest.end

    @property
    def finish_reason(self) -> str:
        """Why it ended well."""
        assert isinstance(self.end, Finished), self.end
        return self.end.finish_reason


def run_all(engine: Engine, max_steps: int = 2000) -> dict[str, Answer]:
    """Steps until all is done; answers by request id."""
    answers: dict[str, Answer] = {}
    for _ in range(max_steps):
        if not engine.has_work():
            return answers
        for told in engine.step().values():
            for delta in told.deltas:
                answers.setdefault(delta.request_id, Answer()).add(delta)
            for end in told.ends:
                answers.setdefault(end.request_id, Answer()).end = end
    raise AssertionError("the engine doesn't come to rest")


def answer_of(engine: Engine, sampling: SamplingParams, **changes: Any) -> Answer:
    """One request alone."""
    engine.add("g", generate("r", sampling, **changes))
    answer = run_all(engine)["r"]
    engine.forget_gateway("g")
    return answer


def answers_of(engine: Engine, samplings: Sequence[SamplingParams]) -> list[Answer]:
    """Several requests together."""
    for index, sampling in enumerate(samplings):
        engine.add("g", generate(str(index), sampling))
    answers = run_all(engine)
    engine.forget_gateway("g")
    return [answers[str(index)] for index in range(len(samplings))]
