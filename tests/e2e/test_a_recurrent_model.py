"""A model with recurrent layers, served like any other: cached prompts, engines that are killed."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine_worker.demo import demo_model_path
from tests.e2e.harness import Harness, eventually, start_harness, stop_harness
from tests.e2e.live_stream import LiveStream, ask, known_answer
from tests.fakes.tiny_checkpoint import write_checkpoint

pytestmark = [pytest.mark.process, pytest.mark.long]

MODEL = "recurrent"
DELTA_NET: dict[str, Any] = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
BODY: dict[str, Any] = {
    "model": MODEL,
    # Longer than a block, so that the second request finds a beginning.
    "messages": [{"role": "user", "content": "Say it again, and then once more. " * 6}],
    "ignore_eos": True,
    "max_tokens": 220,
    "temperature": 1.0,
    "seed": 3,
    "logprobs": True,
}


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Harness]:
    folder = tmp_path_factory.mktemp("model")
    for path in demo_model_path().iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, folder)
    write_checkpoint(folder, DELTA_NET | {"vocab_size": 2048})
    harness = start_harness(
        tmp_path_factory.mktemp("server") / "data",
        cache_dir,
        *(f"{MODEL}={folder}", "--deterministic", "--engines", "2"),
        PENSTOCK_WORKER_DEAD_S="6",
    )
    yield harness
    assert stop_harness(harness) == 0


def num_ready(harness: Harness) -> int:
    text = httpx.get(f"{harness.url}/metrics", timeout=10, trust_env=False).text
    wanted = 'penstock_gateway_workers{phase="ready",role="engine"}'
    other = 'penstock_gateway_workers{role="engine",phase="ready"}'
    for line in text.splitlines():
        if line.startswith((wanted, other)):
            return int(float(line.rsplit(" ", 1)[1]))
    return 0


def test_a_killed_engines_stream_goes_on_with_the_same_text_and_so_does_a_cached_one(
    harness: Harness,
) -> None:
    eventually(lambda: num_ready(harness) == 2, 240)
    expected = known_answer(harness.url, BODY)
    assert len(expected[0]["tokens"]) == BODY["max_tokens"]
    # A beginning that is cached has the same bits as one that is computed.
    again = ask(harness.url, BODY)
    assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert known_answer(harness.url, BODY) == expected
    for engine in (0, 1):
        # Two streams, so that the engine which is killed has one of them.
        streams = [LiveStream(harness.url, {**BODY, "user": str(index)}) for index in range(2)]
        for stream in streams:
            stream.wait_started()
        os.kill(harness.pids("engine_worker")[engine], signal.SIGKILL)
        assert [stream.answer() for stream in streams] == [expected, expected]
        eventually(lambda: num_ready(harness) == 2, 240)
