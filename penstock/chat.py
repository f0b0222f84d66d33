"""`penstock chat`: a conversation in the terminal, streamed."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from penstock.api_client import ApiClient
from penstock.errors import ServerError


def choose_model(client: ApiClient, wanted: str | None) -> str:
    """The model to talk to: the wanted one, else the first that the server serves.

    Raises:
        ServerError: The server does not answer or serves nothing.
    """
    if wanted:
        return wanted
    models = client.request("GET", "/v1/models")["data"]
    if not models:
        raise ServerError("The server serves no model yet.")
    return str(models[0]["id"])


def answer(
    client: ApiClient, body: dict[str, Any], messages: list[dict[str, str]], console: Console
) -> None:
    """Stream one answer to the terminal and add it to the conversation."""
    parts: list[str] = []
    for chunk in client.stream_chat({**body, "messages": messages, "stream": True}):
        for choice in chunk.get("choices", []):
            text = choice["delta"].get("content") or ""
            parts.append(text)
            console.out(text, end="", highlight=False)
    console.out("")
    messages.append({"role": "assistant", "content": "".join(parts)})


def converse(
    client: ApiClient,
    body: dict[str, Any],
    messages: list[dict[str, str]],
    console: Console,
    read_line: Callable[[], str],
) -> None:
    """Read lines and answer them until end of input, `/exit` or Ctrl-C."""
    console.print(f"Talking to {body['model']}; /exit or Ctrl-D ends it.", highlight=False)
    while True:
        try:
            line = read_line().strip()
        except (EOFError, KeyboardInterrupt):
            console.out("")
            return
        if line in ("/exit", "/quit"):
            return
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        try:
            answer(client, body, messages, console)
        except KeyboardInterrupt:
            console.out("")
            messages.pop()
