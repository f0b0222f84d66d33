"""The description of the API is made when it is first asked for."""

import asyncio
from types import SimpleNamespace
from typing import cast

from fastapi import Request

from gateway.http.routes.server import docs


async def test_those_who_ask_at_the_same_time_have_it_made_once() -> None:
    made = []

    def openapi() -> dict[str, int]:
        made.append(1)
        return {"paths": len(made)}

    app = SimpleNamespace(openapi=openapi, state=SimpleNamespace())
    request = cast(Request, SimpleNamespace(app=app))
    found = await asyncio.gather(*(docs._document(request) for _ in range(5)))
    assert (found, made) == ([{"paths": 1}] * 5, [1])
