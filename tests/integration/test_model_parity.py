"""Our decoder against transformers (torch, CPU, float32) on small random models per family."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.engine import Engine
from protocol.wire.messages import Finished, SamplingParams
from tests.fakes.late import torch, transformers
from tests.fakes.model_families import (
    CASES,
    NUM_GREEDY_TOKENS,
    SIZES,
    FamilyCase,
    family_params,
)
from tests.fakes.packed_decoder import packed, why_not_native
from tests.fakes.parity import (
    Reference,
    assert_parity,
    compute,
    load,
    make_reference,
)
from tests.fakes.tiny_engine import Answer, answer_of
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

CHUNK = 16
BLOCK_SIZE = 8
MAX_MODEL_LEN = 128
NUM_RESUMED = 21
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_GREEDY_TOKENS, ignore_eos=True)
VOCAB_SIZE = int(SIZES["vocab_size"])
LLAMA = FamilyCase("LlamaConfig")


WITH_AN_ENGINE = ("qwen3_5", "gemma3_with_two_ropes")
"""Of `make test`: one with states beside its cache, one with a cache of windows."""


def engine_params() -> list[Any]:
    """As `family_params`, but with fewer families in `make test`."""
    return [
        pytest.param(name, marks=() if name in WITH_AN_ENGINE else (pytest.mark.parity,))
        for name in CASES
    ]


@pytest.fixture(params=family_params(), scope="module")
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    return make_reference(tmp_path_factory.mktemp("family"), CASES[request.param])


def runner_of(reference: Reference, backend: str) -> JaxModelRunner:
    return JaxModelRunner.create(
        packed(load(reference.folder), backend, "float32", BLOCK_SIZE),
        num_blocks=60,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
        max_num_seqs=2,
        max_num_batched_tokens=CHUNK,
    )


def engine_of(runner: JaxModelRunner) -> Engine:
    """A fresh engine on a runner that may have served another one."""
    runner.reset()
    # All ids of a case are ids of this tokenizer; its texts don't matter.
    tokenizer = byte_level_tokenizer()
    return Engine(runner, tokenizer, vocab_size=VOCAB_SIZE, max_model_len=MAX_MODEL_LEN)


def num_cached_tokens(answer: Answer) -> int:
    assert isinstance(answer.end, Finished), answer.end
    return answer.end.usage.cached_tokens


def test_logits_match_transformers_through_whole_prefill_chunked_prefill_and_decode(
    reference: Reference,
) -> None:
    weights, num_tokens = load(reference.folder), len(reference.prompt)
    assert_parity(compute(weights, reference.prompt, [num_tokens]), reference.logits)
    in_chunks = [CHUNK, CHUNK] + [1] * (num_tokens - 2 * CHUNK)
    assert_parity(compute(weights, reference.prompt, in_chunks), reference.logits)


@pytest.mark.parametrize("reference", engine_params(), indirect=True)
@pytest.mark.parametrize("backend", ["cpu_native", pytest.param("xla", marks=pytest.mark.parity)])
def test_the_engine_generates_what_transformers_does_also_from_its_cache_and_resumed(
    reference: Reference, backend: str
) -> None:
    """Chunked prefill and decode through pages, a prefix hit, and an answer that goes on."""
    if backend == "cpu_native" and why_not_native():
        pytest.skip(why_not_native())
    if reference.why_logits_only:
        pytest.skip(reference.why_logits_only)
    runner = runner_of(reference, backend)
    engine = engine_of(runner)
    prompt = tuple(int(token_id) for token_id in reference.prompt)
    first = answer_of(engine, GREEDY, prompt_token_ids=prompt)
    assert first.token_ids == reference.output
    assert num_cached_tokens(first) == 0

    again = answer_of(engine, GREEDY, prompt_token_ids=prompt)
    assert again.token_ids == reference.output
    assert num_cached_tokens(again) >= len(prompt) // 2

    known = tuple(reference.output[:NUM_RESUMED])
    fresh = engine_of(runner)
    rest = answer_of(fresh, GREEDY, prompt_token_ids=prompt, output_token_ids=known)
    assert rest.token_ids == reference.output[NUM_RESUMED:]


def test_bfloat16_weights_stay_near_the_float32_logits(tmp_path: Path) -> None:
    reference = make_reference(tmp_path, LLAMA)
    ours = compute(load(tmp_path, jnp.bfloat16), reference.prompt, [len(reference.prompt)])
    assert ours.dtype == np.float32
    error = np.abs(ours - reference.logits)
    assert 0 < error.mean() < 0.03 * reference.logits.std()


def test_a_head_beside_a_tied_config_is_used_as_by_transformers(tmp_path: Path) -> None:
    prompt = make_reference(tmp_path, LLAMA).prompt
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"tie_word_embeddings": True}), encoding="utf-8")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(prompt[None].astype(np.int64))).logits[0].numpy()
    assert_parity(compute(load(tmp_path), prompt, [len(prompt)]), theirs)
