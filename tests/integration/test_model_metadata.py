"""What a model can do is told in booleans, in the list and alone."""

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.running_gateway import running_gateway

GENERATES = {
    "supports_chat",
    "supports_completions",
    "supports_streaming",
    "supports_structured_outputs",
    "supports_logprobs",
}


@pytest.mark.parametrize(
    ("options", "supported"),
    [
        ({}, GENERATES),
        ({"max_logprobs": 0}, GENERATES - {"supports_logprobs"}),
        (
            {"tool_format": "hermes", "reasoning_format": "think"},
            GENERATES | {"supports_function_calling", "supports_reasoning"},
        ),
        (
            {"capabilities": ("chat", "completions", "fill_in_middle", "scores")},
            GENERATES | {"supports_fill_in_middle", "supports_decisions"},
        ),
        ({"capabilities": ("classify",)}, {"supports_classification"}),
    ],
)
async def test_what_a_model_supports_is_what_its_engine_offers(
    socket_dir: Path, options: dict[str, Any], supported: set[str]
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(**options)
        listed = (await gateway.client.get("/v1/models")).json()["data"][0]["metadata"]
        alone = (await gateway.client.get("/v1/models/demo")).json()["metadata"]
        assert listed == alone
        found = {name for name, is_there in listed.items() if is_there is True}
        assert found == supported
        assert listed["supports_vision"] is False


async def test_a_classifier_reads_no_question_and_says_where_its_labels_are(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(capabilities=("classify",))
        question = {"type": "predicate", "instructions": "Is it spam?"}
        body = {"model": "demo", "input": "x", "questions": [question]}
        answer = await gateway.client.post("/v1/decisions", json=body)
        assert answer.status_code == 400
        assert "/v1/classify" in answer.json()["error"]["message"]
