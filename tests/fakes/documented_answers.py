"""Whether what a gateway answers is what its OpenAPI document says, on whatever a test asks of it.

Each JSON answer and each event of a stream that a test's client reads to its end is held against
the schema of its route and status. `httpx` gives the answer to its reader piece by piece as before.
"""

import json
import re
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any

import httpx
import jsonschema_rs  # of schemathesis: quick enough for every answer of every test

from gateway.application import Application
from gateway.http.app import build_api

EVENTS = "text/event-stream"
_MAX_BYTES = 4 * 1024 * 1024
"""Of an answer that is looked at; larger ones are those of tests of size."""
_documents: list[dict[str, Any]] = []
"""The one of this process: what it says of answers is the same whatever the settings are."""


def document_of(application: Application) -> dict[str, Any]:
    """What the gateway says of itself."""
    if not _documents:
        _documents.append(build_api(application.parts).openapi())
    return _documents[0]


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Templates, those with most letters of their own first, so that `stats` is no id."""
    paths: list[str] = sorted(
        _documents[0]["paths"], key=lambda path: (path.count("{"), -len(path))
    )
    return [
        (re.compile(re.sub(r"\\{(rate_limit_id|model_id|path)\\}", ".+", _escaped(path))), path)
        for path in paths
    ]


def _escaped(path: str) -> str:
    several = re.compile(r"\\\{(?!rate_limit_id|model_id|path)\w+\\\}")
    return several.sub("[^/]+", re.escape(path))


@cache
def _validator(pointer: str) -> Any:
    schema: Any = _documents[0]
    for part in pointer.split("\n"):
        schema = schema[int(part) if isinstance(schema, list) else part]
    return jsonschema_rs.Draft202012Validator({**schema, "components": _named_in(schema)})


def _named_in(schema: Any) -> dict[str, Any]:
    """The components that a schema needs: with all of them a validator takes long to make."""
    known = _documents[0]["components"]["schemas"]
    found: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        for name in re.findall(r"#/components/schemas/(\w+)", json.dumps(waiting.pop())):
            if name not in found:
                found[name] = known[name]
                waiting.append(known[name])
    return {"schemas": found}


def complaint(method: str, path: str, status: int, kind: str, body: bytes) -> str | None:
    """What of an answer the document doesn't know; None where it knows all of it."""
    template = next((one for pattern, one in _patterns() if pattern.fullmatch(path)), None)
    operation = _documents[0]["paths"].get(template or "", {}).get(method)
    if template is None or operation is None or not body:
        return None
    answers = operation["responses"]
    name = str(status) if str(status) in answers else "default"
    content = answers[name].get("content", {})
    if "*/*" in content:
        return None
    if kind not in content:
        return f"{method} {template} {status}: no {kind} is described"
    where = "\n".join(("paths", template, method, "responses", name, "content", kind))
    if kind == EVENTS:
        where += "\nitemSchema\nproperties\ndata\nanyOf\n1\ncontentSchema"
        values = [json.loads(one) for one in data_of(body.decode()) if one != "[DONE]"]
    elif kind == "application/json" and "schema" in content[kind]:
        where += "\nschema"
        values = [json.loads(body)]
    else:
        return None
    for value in values:
        wrong = next(_validator(where).iter_errors(value), None)
        if wrong is not None:
            at = "/".join(map(str, wrong.instance_path))
            return f"{method} {template} {status}, at {at!r}: {wrong.message}; {value}"
    return None


def data_of(text: str) -> list[str]:
    """The data of the events of a stream."""
    lines = (line for event in text.split("\n\n") for line in event.splitlines())
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


class _Looking(httpx.AsyncByteStream):
    """A body that is looked at once all of it is read."""

    def __init__(self, inner: httpx.AsyncByteStream, look: Callable[[bytes], None]) -> None:
        self._inner = inner
        self._look = look

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces: list[bytes] = []
        num_bytes = 0
        async for piece in self._inner:
            num_bytes += len(piece)
            if num_bytes <= _MAX_BYTES:
                pieces.append(piece)
            yield piece
        if num_bytes <= _MAX_BYTES:
            self._look(b"".join(pieces))

    async def aclose(self) -> None:
        await self._inner.aclose()


class DocumentedTransport(httpx.AsyncBaseTransport):
    """Fails a test that gets an answer which the document doesn't know."""

    def __init__(self, inner: httpx.AsyncBaseTransport, application: Application) -> None:
        self._inner = inner
        document_of(application)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        kind = response.headers.get("content-type", "").partition(";")[0]
        if request.method == "HEAD" or kind not in ("application/json", EVENTS):
            return response
        assert isinstance(response.stream, httpx.AsyncByteStream)

        def look(body: bytes) -> None:
            path, method = request.url.path, request.method.lower()
            wrong = complaint(method, path, response.status_code, kind, body)
            assert wrong is None, wrong

        response.stream = _Looking(response.stream, look)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()
