"""A request whose headers are asked for by name a dozen times before its handler runs."""

from collections.abc import MutableMapping
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send


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
