"""POST /v1/embeddings."""

import base64
import sys
from array import array

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway import bridge
from gateway.errors import ClientDisconnectedError, UnsupportedFieldError
from gateway.http.access import GuardedRoute, caller_of, read_body
from gateway.http.error_table import limit_headers
from gateway.http.ignored_fields import ignored_headers
from gateway.http.parts import parts_of
from gateway.http.responses import run_to_end
from gateway.http.schemas.embedding import (
    EmbeddingRequest,
    EncodingFormat,
    parse_embedding_body,
)
from gateway.request.questions import Question
from protocol.version import ProtocolVersion
from protocol.wire.messages import Embed, Embedded, EngineOffer

_ENDPOINT = "/v1/embeddings"
_FLOAT_BYTES = 4
_SPECIAL_TOKENS = 2
"""What a tokenizer adds to each text, at most."""

router = APIRouter(route_class=GuardedRoute, tags=["embeddings"])
_SCHEMA = {"$ref": f"#/components/schemas/{EmbeddingRequest.__name__}"}


@router.post(
    _ENDPOINT,
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}
    },
)
async def embeddings(http_request: HttpRequest) -> Response:
    """Turn texts into vectors."""
    parts, caller = parts_of(http_request), caller_of(http_request)
    raw = await read_body(http_request)
    body, ignored = await parts.bodies.parse(raw, caller.name, parse_embedding_body)
    headers = ignored_headers(ignored, strict=parts.settings.strict_fields)
    request, work = parts.requests.question(_question(body), caller, http_request.state.request_id)
    try:
        await run_to_end(http_request, request)
    except ClientDisconnectedError:
        return Response(status_code=499)
    headers.update(limit_headers(request.limits))
    content = _render(
        work.answer, request.usage().prompt_tokens, body.model, body.encoding_format or "float"
    )
    return Response(content, media_type="application/json", headers=headers)


def _question(body: EmbeddingRequest) -> Question[Embed, Embedded]:
    texts, token_ids = body.texts, body.token_ids
    num_ids = sum(map(len, token_ids))
    num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    num_inputs = len(texts) + len(token_ids)

    def bound(offer: EngineOffer | None) -> int:
        most = num_bytes + num_ids + _SPECIAL_TOKENS * num_inputs
        return most if offer is None else min(most, offer.max_model_len * num_inputs)

    def least(offer: EngineOffer) -> int:
        return num_ids + -(-num_bytes // max(1, offer.max_token_bytes or num_bytes))

    return Question(
        endpoint=_ENDPOINT,
        model=body.model,
        message=bridge.embedding_inputs(
            texts, token_ids, body.dimensions, body.truncate_prompt_tokens
        ),
        answer_kind=Embedded,
        check=_check,
        prompt_tokens=bound,
        least_tokens=least,
        tokens_of=lambda embedded: sum(embedded.num_tokens),
        seat="work",
    )


def _check(offer: EngineOffer, _version: ProtocolVersion) -> None:
    if "embeddings" not in offer.capabilities:
        raise UnsupportedFieldError(
            f"The model `{offer.model}` makes no embeddings; its engines can be told to with "
            "PENSTOCK_POOLING.",
            param="model",
        )


def _render(embedded: Embedded, num_tokens: int, model: str, encoding: EncodingFormat) -> bytes:
    """OpenAI's answer; base64 holds little-endian float32."""
    width = embedded.num_dimensions * _FLOAT_BYTES
    data = memoryview(embedded.vectors)
    rows = (data[begin : begin + width] for begin in range(0, len(data), width))
    vectors = [
        base64.b64encode(row).decode() if encoding == "base64" else _numbers(row) for row in rows
    ]
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
