"""POST /v1/embeddings."""

import base64
import sys
from array import array

import orjson
from fastapi import APIRouter, Request, Response

from gateway.http.access import GuardedRoute, caller_of, services_of
from gateway.http.error_table import limit_headers
from gateway.http.ignored_fields import ignored_headers
from gateway.http.responses import DisconnectGuard
from gateway.http.schemas.embedding import EmbeddingRequest, EncodingFormat, parse_embedding_body
from gateway.request.embedding import EMBEDDING_ENDPOINT, EmbeddingJob, EmbeddingResult, embed
from protocol.runtime import logs
from protocol.wire.messages import Embed

_FLOAT_BYTES = 4

router = APIRouter(route_class=GuardedRoute, tags=["embeddings"])
_SCHEMA = {"$ref": f"#/components/schemas/{EmbeddingRequest.__name__}"}


@router.post(
    EMBEDDING_ENDPOINT,
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}
    },
)
async def embeddings(request: Request) -> Response:
    """Turn texts into vectors."""
    body, ignored = parse_embedding_body(await request.body())
    services = services_of(request)
    headers = ignored_headers(ignored, strict=services.settings.strict_fields)
    request_id: str = request.state.request_id
    logs.request_id.set(request_id)
    async with DisconnectGuard(request.receive):
        result = await embed(services, _job(body), caller_of(request), request_id)
    headers.update(limit_headers(result.limits))
    content = _render(result, body.model, body.encoding_format or "float")
    return Response(content, media_type="application/json", headers=headers)


def _job(body: EmbeddingRequest) -> EmbeddingJob:
    texts, token_ids = body.texts, body.token_ids
    num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    question = Embed(
        request_id="",
        deadline_s=0.0,
        texts=texts,
        token_ids=token_ids,
        dimensions=body.dimensions,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
    )
    return EmbeddingJob(body.model, question, num_bytes + sum(map(len, token_ids)))


def _render(result: EmbeddingResult, model: str, encoding: EncodingFormat) -> bytes:
    """OpenAI's answer; base64 holds little-endian float32."""
    width = result.embedded.num_dimensions * _FLOAT_BYTES
    data = memoryview(result.embedded.vectors)
    rows = (data[begin : begin + width] for begin in range(0, len(data), width))
    vectors = [
        base64.b64encode(row).decode() if encoding == "base64" else _numbers(row) for row in rows
    ]
    num_tokens = result.usage.prompt_tokens
    return orjson.dumps(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": vector}
                for index, vector in enumerate(vectors)
            ],
            "model": model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
    )


def _numbers(row: memoryview) -> list[float]:
    numbers = array("f")
    numbers.frombytes(row)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
