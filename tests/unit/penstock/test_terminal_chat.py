"""`penstock chat`: the conversation grows, streams are printed, Ctrl-D ends it."""

import io
import json
from collections.abc import Iterator

import httpx
import pytest
from rich.console import Console

from penstock.api_client import ApiClient
from penstock.chat import answer, choose_model, converse
from penstock.errors import ServerError


def chunk(text: str) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n"


class EchoServer:
    """Answers each chat with the last message in capitals, one letter a chunk."""

    def __init__(self, *models: str) -> None:
        self.bodies: list[dict[str, object]] = []
        self._models = models

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": name} for name in self._models]})
        body = json.loads(request.content)
        self.bodies.append(body)
        text = body["messages"][-1]["content"].upper()
        return httpx.Response(200, text="".join(map(chunk, text)) + "data: [DONE]\n\n")


@pytest.fixture
def server() -> EchoServer:
    return EchoServer("first", "second")


@pytest.fixture
def client(server: EchoServer) -> Iterator[ApiClient]:
    with ApiClient("http://server", transport=httpx.MockTransport(server)) as client:
        yield client


def test_the_first_served_model_is_chosen_unless_one_is_wanted(client: ApiClient) -> None:
    assert choose_model(client, None) == "first"
    assert choose_model(client, "other") == "other"


def test_a_server_without_models_says_so() -> None:
    transport = httpx.MockTransport(EchoServer())
    with (
        ApiClient("http://server", transport=transport) as client,
        pytest.raises(ServerError, match="serves no model yet"),
    ):
        choose_model(client, None)


def test_an_answer_is_printed_and_joins_the_conversation(client: ApiClient) -> None:
    out = io.StringIO()
    messages = [{"role": "user", "content": "hi"}]
    answer(client, {"model": "first"}, messages, Console(file=out))
    assert out.getvalue() == "HI\n"
    assert messages[-1] == {"role": "assistant", "content": "HI"}


def test_a_dialogue_sends_what_was_said_before_and_ends_with_the_input(
    client: ApiClient, server: EchoServer
) -> None:
    lines = iter(["one", "", "two"])

    def read_line() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    converse(client, {"model": "first"}, [], Console(file=io.StringIO()), read_line)
    assert [len(body["messages"]) for body in server.bodies] == [1, 3]  # type: ignore[arg-type]
