"""Random weights behind grammars: the real step programs, masks and samplers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest

from engine_worker.compute.models.decoder import DecoderWeights, declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.weights.loader import load_weights
from engine_worker.core.engine import Engine
from engine_worker.grammar.compiler import GrammarCompiler
from protocol.wire.messages import Delta, Finished, Generate, Grammar, SamplingParams
from tests.fakes.parsed_text import TOOLS, Parsed
from tests.fakes.tiny_checkpoint import TINY_LLAMA, write_checkpoint
from tests.fakes.tiny_tokenizers import byte_level_tokenizer
from tests.fakes.tool_schemas import TEXT, a_tool, an_object
from toolparser_worker.grammar.request import Wish, request_grammar
from toolparser_worker.machine.machine import Machine
from toolparser_worker.machine.tool_schemas import ToolSchemas

TOKENIZER = byte_level_tokenizer()
VOCAB_SIZE = TOKENIZER.num_tokens
CITY = a_tool("get_weather", an_object(city=TEXT, days={"enum": [1, 2, 3]}))
PERSON = an_object(name={"enum": ["ann", "bob"]}, age={"type": "integer", "maximum": 99})
SCHEMA = Grammar(kind="json_schema", source=json.dumps(PERSON))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> DecoderWeights:
    folder: Path = tmp_path_factory.mktemp("tiny")
    config = TINY_LLAMA | {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 256}
    write_checkpoint(folder, config)
    graph = declare(load_spec(folder), np.float32)
    return load_weights(folder, graph, progress=lambda done, text: None)


@pytest.fixture(scope="module")
def grammars() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(TOKENIZER, VOCAB_SIZE)
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def engines(weights: DecoderWeights, grammars: GrammarCompiler) -> list[Engine]:
    """Two engines of the same model."""
    return [
        Engine(
            JaxModelRunner.create(
                weights,
                num_blocks=64,
                block_size=16,
                max_model_len=256,
                max_num_seqs=4,
                max_num_batched_tokens=32,
                deterministic=True,
            ),
            TOKENIZER,
            vocab_size=VOCAB_SIZE,
            max_model_len=256,
            grammars=grammars,
        )
        for _ in range(2)
    ]


def generate(request_id: str, grammar: Grammar | None, **changes: Any) -> Generate:
    options: dict[str, Any] = {
        "choice": 0,
        "attempt": 1,
        "prompt_token_ids": tuple(b"Hello"),
        "sampling": SamplingParams(temperature=1.0, seed=7, max_tokens=200),
        "lease_tokens": 1000,
        "deadline_s": 600.0,
        "want_token_ids": True,
        **changes,
    }
    return Generate(request_id=request_id, grammar=grammar, **options)


def run(engine: Engine, *commands: Generate) -> dict[str, tuple[list[int], str, Finished]]:
    """Token ids, text and end of each request, all of them at once."""
    for command in commands:
        engine.add("g", command)
    deltas: list[Delta] = []
    ends: dict[str, Finished] = {}
    while engine.has_work():
        for output in engine.step().values():
            deltas += output.deltas
            for end in output.ends:
                assert isinstance(end, Finished), end
                ends[end.request_id] = end
    return {
        name: (
            [token for one in deltas if one.request_id == name for token in one.token_ids],
            "".join(one.text for one in deltas if one.request_id == name),
            end,
        )
        for name, end in ends.items()
    }


def test_random_weights_write_valid_calls_and_json_beside_free_text(engines: list[Engine]) -> None:
    wish = Wish(tools=[CITY], tool_choice="required", parallel_tool_calls=False)
    calls = request_grammar(TOOLS["hermes"], None, wish)
    sampling = [SamplingParams(temperature=1.0, seed=seed, max_tokens=200) for seed in range(2)]
    found = run(
        engines[0],
        *(generate(f"call {i}", calls, sampling=one) for i, one in enumerate(sampling)),
        *(generate(f"json {i}", SCHEMA, sampling=one) for i, one in enumerate(sampling)),
        generate("free", None, sampling=SamplingParams(temperature=1.0, max_tokens=40)),
    )
    assert len(found) == 5
    for name, (_, text, end) in found.items():
        if name.startswith("json"):
            jsonschema.validate(json.loads(text), PERSON)
            assert end.finish_reason == "stop"
        elif name.startswith("call"):
            machine = Machine(
                tool_format=TOOLS["hermes"],
                reasoning_format=None,
                call_id=lambda index, name: name,
                tools=ToolSchemas([CITY]),
            )
            parsed = Parsed()
            parsed.add(machine.feed(text, ()))
            parsed.add(machine.finish())
            (call,) = parsed.calls
            jsonschema.validate(json.loads(call.arguments), CITY["function"]["parameters"])
            assert end.finish_reason == "stop"


def test_two_engines_write_the_same_alone_in_company_and_after_a_move(
    engines: list[Engine],
) -> None:
    one, other = engines
    token_ids, text, _ = run(one, generate("a", SCHEMA))["a"]
    company = [
        generate(f"{seed}", grammar, sampling=SamplingParams(seed=seed, max_tokens=60))
        for seed, grammar in enumerate((None, SCHEMA, Grammar(kind="regex", source="[a-z]{30}")))
    ]
    assert run(other, *company, generate("a", SCHEMA, attempt=2))["a"][:2] == (token_ids, text)
    for cut in (1, len(token_ids) // 2, len(token_ids) - 1):
        moved = generate(
            "a",
            SCHEMA,
            attempt=3 + cut,
            output_token_ids=tuple(token_ids[:cut]),
            num_sent_characters=len(TOKENIZER.decode(token_ids[:cut])),
        )
        rest_ids, rest, end = run(other, moved)["a"]
        assert token_ids[:cut] + rest_ids == token_ids
        assert text.endswith(rest)
        assert end.finish_reason == "stop"


def test_log_probabilities_come_with_every_token_and_change_none(engines: list[Engine]) -> None:
    engine = engines[0]
    sampling = SamplingParams(temperature=0.0, logprobs=2, max_tokens=200)
    engine.add("g", generate("l", SCHEMA, sampling=sampling))
    deltas: list[Delta] = []
    while engine.has_work():
        for output in engine.step().values():
            deltas += output.deltas
    scored = [one.chosen.token_id for delta in deltas for one in delta.logprobs]
    assert scored == [token for delta in deltas for token in delta.token_ids]
    jsonschema.validate(json.loads("".join(delta.text for delta in deltas)), PERSON)
