"""Every documented example, and its stream, is answered as the document says, field by field."""

import io
from pathlib import Path
from typing import Any

import pytest

from gateway.http.openapi.document import EXAMPLES
from tests.fakes.documented_answers import EVENTS, complaint, data_of
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway
from tests.integration.test_metered_answers import AnsweringEngine

STREAMED = (
    *("/v1/chat/completions", "/v1/completions"),
    *("/v1/responses", "/v1/messages"),
)
READ = (
    *("/live", "/ping", "/ready", "/health", "/metrics", "/load", "/version"),
    *("/v1/models", "/v1/models/demo", "/v1/tools", "/tokenizer_info"),
)
MORE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "return_token_ids": True,
        "prompt_logprobs": 1,
        "include_budget_warnings": True,
        "include_timings": True,
    },
    "/v1/completions": {"logprobs": 2, "echo": True, "return_token_ids": True},
    "/v1/responses": {"include": ["message.output_text.logprobs"], "top_logprobs": 1},
}
"""Fields that ask for all that an answer may have."""


async def serving(gateway: RunningGateway) -> None:
    """Everything that a route may need."""
    await gateway.auth()
    await gateway.parser()
    engine = AnsweringEngine(
        gateway.directory,
        tool_format="hermes",
        capabilities=("chat", "completions", "embeddings", "scores", "classify"),
        labels=("LABEL_0",),
        tokenizer_info_json='{"eos_token": "</s>"}',
    )
    gateway.workers.append(engine)
    engine.start()
    await gateway.until(lambda: gateway.is_known(engine))


def checked(answer: Any, kind: str = "application/json") -> None:
    """That an answer is as documented, and that one with a field more would not be."""
    path, method = answer.request.url.path, answer.request.method.lower()
    assert answer.status_code < 400, answer.text
    assert answer.headers["content-type"].partition(";")[0] == kind
    assert complaint(method, path, answer.status_code, kind, answer.content) is None
    if kind == EVENTS:
        first = next(one for one in data_of(answer.text))
        other = answer.text.replace(first, '{"forgotten": 1}').encode()
    else:
        other = b'{"forgotten":1,' + answer.content.lstrip()[1:]
    assert complaint(method, path, answer.status_code, kind, other) is not None, path


@pytest.mark.parametrize("is_full", [False, True])
async def test_inference_answers_its_examples_as_documented(
    socket_dir: Path, *, is_full: bool
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await serving(gateway)
        for path, example in EXAMPLES.items():
            is_inference = not path.startswith(("/v1/admin", "/v1/organization", "/v1/models"))
            needs_more = path in ("/v1/files", "/v1/batches", "/v1/tools/execute")
            if not is_inference or needs_more or "{" in path:
                continue
            body = example | (MORE.get(path, {}) if is_full else {})
            checked(await gateway.client.post(path, json=body))
        for path in STREAMED:
            more = {key: value for key, value in MORE.get(path, {}).items() if is_full}
            more.pop("prompt_logprobs", None)
            body = EXAMPLES[path] | more | {"stream": True}
            if is_full and path in STREAMED[:2]:
                body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
            checked(await gateway.client.post(path, json=body), EVENTS)


async def test_what_is_stored_and_read_is_as_documented(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await serving(gateway)
        client = gateway.client
        line = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}'
        form = {"file": ("a.jsonl", io.BytesIO(line))}
        uploaded = await client.post("/v1/files", data={"purpose": "batch"}, files=form)
        checked(uploaded)
        file_id = uploaded.json()["id"]
        batch = EXAMPLES["/v1/batches"] | {"input_file_id": file_id}
        made = await client.post("/v1/batches", json=batch)
        checked(made)
        response = await client.post("/v1/responses", json=EXAMPLES["/v1/responses"])
        one = f"/v1/responses/{response.json()['id']}"
        conversation = await client.post("/v1/conversations", json=EXAMPLES["/v1/conversations"])
        items = f"/v1/conversations/{conversation.json()['id']}/items"
        as_json = {"accept": "application/json"}
        for path in (*READ, "/v1/files", f"/v1/files/{file_id}", "/v1/batches", one):
            checked(await client.get(path, headers=as_json))
        for path in ("/v1/models", "/v1/models/demo"):
            checked(await client.get(path, headers={"anthropic-version": "2023-06-01"}))
        checked(await client.get(items))
        checked(await client.get(f"{one}?stream=true"), EVENTS)
        checked(await client.get(f"{one}/input_items"))
        checked(await client.delete(one))
        checked(await client.post(f"/v1/batches/{made.json()['id']}/cancel"))
        checked(await client.delete(f"/v1/files/{file_id}"))


async def test_refusals_are_as_documented_in_the_words_of_their_path(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        for path in ("/v1/chat/completions", "/v1/messages", "/mcp", "/v1/responses"):
            answer = await gateway.client.post(path, json={"model": "none", "messages": MESSAGES})
            assert answer.status_code >= 400
            kind = "application/json"
            assert complaint("post", path, answer.status_code, kind, answer.content) is None
            assert complaint("post", path, answer.status_code, kind, b'{"error": {}}') is not None
        unknown, headers = "/v1/models/none", {"anthropic-version": "2023-06-01"}
        for more in ({}, headers):
            answer = await gateway.client.get(unknown, headers=more)
            assert answer.status_code == 404
            assert ("request_id" in answer.json()) is bool(more)
