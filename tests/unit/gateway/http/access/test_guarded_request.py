"""Headers of a request by name: whatever Starlette says of them, without reading all each time."""

from typing import Any

import pytest
from starlette.datastructures import Headers

from gateway.http.access.guarded_request import GuardedRequest, HeaderTable

ONCE = [(b"host", b"here"), (b"content-length", b"12"), (b"x-empty", b""), (b"x-odd", b"\xe9")]
TWICE = [*ONCE, (b"x-api-key", b"first"), (b"x-api-key", b"second")]


@pytest.mark.parametrize("raw", [ONCE, TWICE, []])
@pytest.mark.parametrize("name", ["Host", "content-length", "X-Empty", "x-odd", "X-API-Key", "no"])
def test_what_starlette_says(raw: list[tuple[bytes, bytes]], name: str) -> None:
    scope: dict[str, Any] = {"headers": raw}
    table, other = HeaderTable(scope), Headers(raw=raw)
    assert table.get(name) == other.get(name)
    assert table.get(name, "else") == other.get(name, "else")
    assert table.getlist(name) == other.getlist(name)
    assert (name in table) == (name in other)
    assert table == other
    if name in other:
        assert table[name] == other[name]
    else:
        with pytest.raises(KeyError):
            _ = table[name]


def test_a_request_makes_its_table_once() -> None:
    async def nobody(*_: Any) -> Any: ...

    request = GuardedRequest({"type": "http", "headers": TWICE}, nobody, nobody)
    assert isinstance(request.headers, HeaderTable)
    assert request.headers is request.headers
    assert request.headers.items() == Headers(raw=TWICE).items()
