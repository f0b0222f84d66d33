"""The bundled model as GGUF files, by the real command: it says what its folder's model says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gguf import LlamaFileType

from engine_worker.demo import demo_model_path
from tests.e2e.harness import Harness, start_harness, stop_harness
from tests.e2e.test_chat_with_the_openai_sdk import MODEL, WEATHER, ask
from tests.fakes.gguf_blocks import encoded
from tests.fakes.gguf_files import write_gguf
from tests.fakes.packed_decoder import needs_native
from tests.fakes.quick_compile import QUICK

pytestmark = pytest.mark.process


def test_a_chat_and_a_tool_call_are_those_of_the_folder(pair: Harness, harness: Harness) -> None:
    def answer(client: Any, model: str, **options: Any) -> dict[str, Any]:
        message = (
            client.chat.completions.create(model=model, temperature=0, **options)
            .choices[0]
            .message.model_dump()
        )
        for call in message["tool_calls"] or ():
            call.pop("id")
        return dict(message)

    ours, theirs = pair.client(), harness.client()
    chat = answer(theirs, MODEL, messages=ask("What is 12 + 30?"))
    assert "42" in chat["content"]
    assert answer(ours, "tiny-F32", messages=ask("What is 12 + 30?")) == chat
    request = {"messages": ask("What is the weather in Paris?"), "tools": [WEATHER]}
    call = answer(theirs, MODEL, **request)
    assert [one["function"]["name"] for one in call["tool_calls"]] == ["get_weather"]
    assert answer(ours, "tiny-F32", **request) == call
    card = httpx.get(f"{pair.url}/v1/models/tiny-F32", trust_env=False).json()
    assert card["compute"]["stored_as"] == "GGUF F32"
    assert card["compute"]["weights"] == "float32"


@pytest.fixture
def quantised(tmp_path: Path, cache_dir: Path) -> Iterator[Harness]:
    """As people download them: most matrices in Q4_K, those that need it in Q6_K."""
    path = tmp_path / "tiny-Q4_K_M.gguf"
    wide = dict.fromkeys(("token_embd", "attn_v", "ffn_down"), "Q6_K")
    write_gguf(
        path,
        demo_model_path(),
        kind="Q4_K",
        kinds=wide,
        encode=encoded,
        more=lambda writer: writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M),
    )
    harness = start_harness(
        tmp_path / "data",
        cache_dir,
        str(path),
        # Few programs, which no other deployment has: they are compiled as tests compile.
        XLA_FLAGS=QUICK,
        PENSTOCK_MAX_NUM_SEQS="1",
        PENSTOCK_MAX_NUM_BATCHED_TOKENS="32",
        PENSTOCK_SPECULATION="off",
    )
    yield harness
    assert stop_harness(harness) == 0


@needs_native
def test_a_quantised_file_stays_in_its_blocks_and_calls_a_tool(quantised: Harness) -> None:
    """By the command that the page names, in the mode that nobody changed."""
    message = (
        quantised.client()
        .chat.completions.create(
            model="tiny-Q4_K_M",
            temperature=0,
            messages=ask("What is the weather in Paris?"),
            tools=[WEATHER],
        )
        .choices[0]
        .message
    )
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    card = httpx.get(f"{quantised.url}/v1/models/tiny-Q4_K_M", trust_env=False).json()
    assert card["compute"]["stored_as"] == "GGUF Q4_K_M"
    assert card["compute"]["backend"].startswith("cpu_native")
    assert "(17 of 17 matrices)" in card["compute"]["stored_formats"]
