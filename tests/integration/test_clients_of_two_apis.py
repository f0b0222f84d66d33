"""What clients of OpenAI's and of Anthropic's API are told on paths of both, and of neither."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.late import anthropic
from tests.fakes.running_gateway import RunningGateway, running_gateway

VERSION = {"anthropic-version": "2023-06-01"}
REQUESTS = [
    ("GET", "/v1/files", 404),
    ("POST", "/v1/files", 404),
    ("GET", "/v1/files/file_x", 404),
    ("DELETE", "/v1/files/file_x", 404),
    ("GET", "/v1/files/file_x/content", 404),
    ("PUT", "/v1/files", 405),
    ("GET", "/v1/models/none", 404),
    ("POST", "/v1/models", 405),
    ("GET", "/v1/messages", 405),
    ("GET", "/v1/messages/batches", 404),
    ("GET", "/v1/skills", 404),
    ("POST", "/v1/complete", 404),
]


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        yield gateway


def assert_anthropics(body: Any, status: int) -> None:
    kind = {404: "not_found_error", 405: "invalid_request_error"}[status]
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["request_id"]
    anthropic.types.ErrorResponse.model_validate(body)


async def test_each_client_gets_errors_of_its_api(gateway: RunningGateway) -> None:
    for method, path, status in REQUESTS:
        theirs = await gateway.client.request(method, path, headers=VERSION)
        assert theirs.status_code == status, (method, path, theirs.text)
        assert_anthropics(theirs.json(), status)
        assert theirs.headers["request-id"]
        ours = await gateway.client.request(method, path)
        if path.startswith("/v1/messages"):
            assert_anthropics(ours.json(), status)
        elif ours.status_code != 200:  # files may be listed
            assert ours.json()["error"].keys() == {"message", "type", "param", "code"}, path
            assert "request-id" not in ours.headers


async def test_anthropics_client_is_told_what_there_is(gateway: RunningGateway) -> None:
    base = f"http://127.0.0.1:{gateway.client.base_url.port}"
    client = anthropic.AsyncAnthropic(base_url=base, api_key="k", max_retries=0)
    file = ("a.txt", b"x", "text/plain")
    files, other = "Files API is not offered", "there are /v1/messages, "
    asked: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
        (files, lambda: client.beta.files.list()),
        (files, lambda: client.beta.files.retrieve_metadata("file_x")),
        (files, lambda: client.beta.files.upload(file=file)),
        (other, lambda: client.beta.skills.list()),
        (other, lambda: client.messages.batches.list()),
    ]
    async with client:
        for told, ask in asked:
            with pytest.raises(anthropic.NotFoundError, match=told):
                await ask()
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0) as plain:
        assert (await plain.files.create(file=file, purpose="user_data")).filename == "a.txt"
        assert len((await plain.files.list()).data) == 1
