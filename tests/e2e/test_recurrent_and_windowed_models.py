"""Models whose layers don't keep every token, served like others: cached prompts, kills."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine_worker.demo import demo_model_path
from tests.e2e.harness import Harness, eventually, start_harness, stop_harness
from tests.e2e.live_stream import LiveStream, ask, known_answer
from tests.fakes.tiny_checkpoint import write_checkpoint

pytestmark = [pytest.mark.process, pytest.mark.long]

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "vocab_size": 2048,
}
DELTA_NET: dict[str, Any] = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
WINDOWS: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    # Less than a prompt: its blocks are freed while it is computed, and more with every 32 tokens.
    "sliding_window": 40,
    "query_pre_attn_scalar": 16,
    "rope_local_base_freq": 10000.0,
}
MODELS = {"recurrent": DELTA_NET, "windowed": WINDOWS}
BODY: dict[str, Any] = {
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
    config = ""
    for name, values in MODELS.items():
        folder = tmp_path_factory.mktemp(name)
        for file in demo_model_path().iterdir():
            if file.name.startswith(("tokenizer", "chat_template")):
                shutil.copy(file, folder)
        write_checkpoint(folder, SIZES | values)
        # Types that think first are among them; a random model would never end that.
        served = {"name": name, "path": str(folder), "reasoning_format": "none"}
        lines = [f"{key} = {json.dumps(value)}" for key, value in served.items()]
        config += "\n".join(["[[models]]", *lines, "engines = 2", ""])
    path = tmp_path_factory.mktemp("config") / "penstock.toml"
    path.write_text(config, encoding="utf-8")
    harness = start_harness(
        tmp_path_factory.mktemp("server") / "data",
        cache_dir,
        *("--config", str(path), "--deterministic"),
        PENSTOCK_WORKER_DEAD_S="6",
    )
    yield harness
    assert stop_harness(harness) == 0


def engines_of(harness: Harness, model: str) -> list[int]:
    """Process ids of a model's engines."""
    pids = harness.pids("engine_worker")
    return [pid for pid in pids if psutil.Process(pid).environ()["PENSTOCK_MODEL_NAME"] == model]


def num_ready(harness: Harness) -> int:
    text = httpx.get(f"{harness.url}/metrics", timeout=10, trust_env=False).text
    wanted = 'penstock_gateway_workers{phase="ready",role="engine"}'
    other = 'penstock_gateway_workers{role="engine",phase="ready"}'
    for line in text.splitlines():
        if line.startswith((wanted, other)):
            return int(float(line.rsplit(" ", 1)[1]))
    return 0


def all_ready(harness: Harness) -> None:
    eventually(lambda: num_ready(harness) == 2 * len(MODELS), 240)


@pytest.mark.parametrize("model", MODELS)
def test_a_killed_engines_stream_goes_on_with_the_same_text_and_so_does_a_cached_one(
    harness: Harness, model: str
) -> None:
    body = {"model": model, **BODY}
    all_ready(harness)
    expected = known_answer(harness.url, body)
    assert len(expected[0]["tokens"]) == BODY["max_tokens"]
    # A beginning that is cached has the same bits as one that is computed.
    again = ask(harness.url, body)
    assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert known_answer(harness.url, body) == expected
    for _ in range(2):
        # Two streams, so that the engine which is killed has one of them.
        streams = [LiveStream(harness.url, {**body, "user": str(index)}) for index in range(2)]
        for stream in streams:
            stream.wait_started()
        # The one that runs longest: the other one than last time.
        oldest = min(engines_of(harness, model), key=lambda pid: psutil.Process(pid).create_time())
        os.kill(oldest, signal.SIGKILL)
        assert [stream.answer() for stream in streams] == [expected, expected]
        all_ready(harness)
