"""A request for each route, good enough to be judged by who asks."""

import re
from typing import Any

import httpx

from gateway.http.openapi.document import EXAMPLES
from tests.fakes.running_gateway import MESSAGES

SCORING = (
    *("/v1/decisions", "/v1/systemone"),
    *("/v1/rerank", "/v2/rerank", "/v1/score", "/v1/classify"),
)


def body_of(template: str) -> dict[str, Any]:
    """A body that is read to its end; of a model `none`, where it names one.

    Administration gets one that changes nothing, whoever may do it.
    """
    if template == "/v1/completions":
        return {"model": "none", "prompt": "x"}
    if template in ("/v1/embeddings", "/v1/responses", "/v1/responses/input_tokens"):
        return {"model": "none", "input": "x"}
    if template in SCORING:
        return EXAMPLES[template] | {"model": "none"}
    if template == "/detokenize":
        return {"model": "none", "tokens": [1]}
    if template == "/v1/messages":
        return {"model": "none", "messages": MESSAGES, "max_tokens": 5}
    if template == "/v1/parse":
        return {"text": "x"}
    if template == "/v1/tools/execute":
        return {"name": "none"}
    if template.startswith(("/v1/admin", "/v1/organization", "/v1/models/invalidate-cache")):
        return {"wrong": 1}
    return {"model": "none", "messages": MESSAGES}


async def call(
    client: httpx.AsyncClient, method: str, template: str, headers: dict[str, str]
) -> httpx.Response:
    """Ask for a route by its template; parameters are `none`."""
    url = re.sub(r"\{\w+(:path)?\}", "none", template)
    # Without a body where the route reads none: nothing of what a walk does changes a key.
    has_body = method in ("POST", "PATCH", "PUT")
    body = body_of(template) if has_body else None
    return await client.request(method, url, json=body, headers=headers)
