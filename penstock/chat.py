"""`penstock chat`: a conversation in the terminal, streamed."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from penstock.api_client import ApiClient
from penstock.errors import ServerError
from penstock.terminal import visible


def choose_model(client: ApiClient, wanted: str | None) -> str:
    """The model to talk to: the wanted one, else the first that the server serves.

    Raises:
        ServerError: The server does not answer or serves nothing.
    """
    if wanted:
        return wanted
    listed = client.request("GET", "/v1/models")
    with client.reading():
        names = [str(model["id"]) for model in listed["data"]]
    if not names:
        raise ServerError("The server serves no model yet.")
    return names[0]


def answer(
    client: ApiClient, body: dict[str, Any], messages: list[dict[str, str]], console: Console
) -> None:
    """Stream one answer to the terminal and add it to the conversation.

    What a model writes may come from anywhere: nothing of it reaches the terminal as a command.
    """
    parts: list[str] = []
    for chunk in client.stream_chat({**body, "messages": messages, "stream": True}):
        with client.reading():
            text = "".join(
                choice["delta"].get("content") or "" for choice in chunk.get("choices", [])
            )
        parts.append(text)
        console.out(visible(text), end="", highlight=False)
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
    console.out(visible(f"Talking to {body['model']}; /exit or Ctrl-D ends it."), highlight=False)
    while True:
        try:
            line = read_line().strip()
        except UnicodeDecodeError:
            console.out("That line is not UTF-8 and was not sent.", highlight=False)
            continue
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
        except ServerError as error:
            # Such as a limit or a restart: what was said so far is worth another try.
            console.out(visible(f"\n{error.message}"), highlight=False)
            messages.pop()
