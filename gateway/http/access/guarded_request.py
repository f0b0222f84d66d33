"""What handlers get, whose headers are asked for a dozen times, and the heads of their answers."""

import contextlib
from collections.abc import MutableMapping
from typing import Any

from fastapi import Request, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeaderTable(Headers):
    """Starlette's headers, which reads all of them at each question, with a table of the first.

    Args:
        scope: Of the request.
    """

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        self._list = scope["headers"]
        self._first: dict[bytes, bytes] = dict(reversed(self._list))

    def get(self, key: str, default: Any = None) -> Any:
        """The first value of a name."""
        value = self._first.get(key.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def getlist(self, key: str) -> list[str]:
        """All values of a name."""
        value = self._first.get(key.lower().encode("latin-1"))
        if value is None:
            return []
        if len(self._first) == len(self._list):
            return [value.decode("latin-1")]
        return super().getlist(key)

    def __getitem__(self, key: str) -> str:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return str(value)

    def __contains__(self, key: Any) -> bool:
        return key.lower().encode("latin-1") in self._first


class GuardedRequest(Request):
    """What guards and handlers get.

    Args:
        scope: Of ASGI, as are the others.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self._table = HeaderTable(scope)

    @property
    def headers(self) -> Headers:
        """By name, whatever its case."""
        return self._table


class _HeadIsSentError(Exception):
    """The head of an answer has left, and nobody wants its body."""


def head_of(response: Response) -> ASGIApp:
    """What sends the head of an answer, for HEAD.

    A body takes as long as it takes, be it that of a long file or the events of what has not ended,
    and nobody would get it. Whoever makes it is stopped where it would begin.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_head(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({**message, "body": b"", "more_body": False})
            raise _HeadIsSentError

        with contextlib.suppress(_HeadIsSentError):
            await response(scope, receive, send_head)

    return answer
