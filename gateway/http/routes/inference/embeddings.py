"""POST /v1/embeddings."""

import asyncio
import base64
import sys
from array import array

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway.errors import (
    ClientDisconnectedError,
    UnsupportedFieldError,
    WorkerUnavailableError,
)
from gateway.http.access.guard import GuardedRoute, caller_of, parsed_body
from gateway.http.answers.answer_headers import answer_headers, ignored_headers
from gateway.http.answers.responses import run_to_end
from gateway.http.bodies.parsed_bodies import (
    EmbeddingBody,
)
from gateway.http.bodies.parsers import (
    EMBEDDING,
)
from gateway.http.parts import parts_of
from gateway.http.schemas.inference.embedding import (
    EmbeddingRequest,
    EncodingFormat,
    prompt_name_of,
)
from gateway.request.jobs.model_limits import check_inputs
from gateway.request.kinds.questions import Question
from protocol.version import ProtocolVersion
from protocol.wire.messages import Embed, Embedded, EngineOffer

_ENDPOINT = "/v1/embeddings"
_FLOAT_BYTES = 4
_LARGE_BYTES = 256 * 1024
"""Vectors above this are written beside the loop, which takes about 10 ms a megabyte and more."""
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
    body = await parsed_body(http_request, EMBEDDING)
    headers = ignored_headers(body.ignored, strict=parts.settings.strict_fields)
    request, work = parts.requests.question(_question(body), caller, http_request.state.request_id)
    try:
        await run_to_end(http_request, request)
    except ClientDisconnectedError:
        return Response(status_code=499)
    headers |= answer_headers(request.lease, model=work.model, asked=body.model)
    rendering = (work.answer, request.usage().prompt_tokens, work.model, body.encoding)
    is_large = len(work.answer.vectors) > _LARGE_BYTES
    content = await asyncio.to_thread(_render, *rendering) if is_large else _render(*rendering)
    return Response(content, media_type="application/json", headers=headers)


def _question(body: EmbeddingBody) -> Question[Embed, Embedded]:
    def check(offer: EngineOffer, _version: ProtocolVersion) -> None:
        if "embeddings" not in offer.capabilities:
            raise UnsupportedFieldError(
                f"The model `{offer.model}` makes no embeddings; its engines can be told to with "
                "PENSTOCK_POOLING.",
                param="model",
            )
        name = body.message.prompt_name
        if name and name not in offer.prompt_names:
            known = ", ".join(f"`{one}`" for one in offer.prompt_names) or "none"
            raise UnsupportedFieldError(
                f"The model `{offer.model}` has no prompt `{name}`; it has {known}.",
                param="prompt_name",
            )
        if name != prompt_name_of(body.prompt_name, body.input_type, offer.prompt_names):
            raise WorkerUnavailableError(
                "The model's engines changed while the request was read; please try again."
            )
        if name and body.num_ids:
            raise UnsupportedFieldError(
                "No prompt stands before token ids; send texts, or leave out `prompt_name` and"
                " `input_type`.",
                param="prompt_name" if body.input_type is None else "input_type",
            )
        check_inputs(body.message, offer)

    def bound(offer: EngineOffer | None) -> int:
        most = body.num_bytes + body.num_ids + _SPECIAL_TOKENS * body.num_inputs
        if offer is None:
            return most
        most += offer.max_prompt_bytes * body.num_inputs
        return min(most, offer.max_model_len * body.num_inputs)

    def least(offer: EngineOffer) -> int:
        longest = max(1, offer.max_token_bytes or body.num_bytes)
        return body.num_ids + -(-body.num_bytes // longest)

    return Question(
        endpoint=_ENDPOINT,
        model=body.model,
        message=body.message,
        answer_kind=Embedded,
        check=check,
        prompt_tokens=bound,
        least_tokens=least,
        tokens_of=lambda embedded: sum(embedded.num_tokens),
        slot="work",
        end_user=body.end_user,
    )


def _render(embedded: Embedded, num_tokens: int, model: str, encoding: EncodingFormat) -> bytes:
    """OpenAI's answer; base64 holds little-endian float32.

    Vector by vector, so that no single call holds the interpreter for long.
    """
    width = embedded.num_dimensions * _FLOAT_BYTES
    data = memoryview(embedded.vectors)
    rows = (data[begin : begin + width] for begin in range(0, len(data), width))
    vectors = (
        b'"%b"' % base64.b64encode(row) if encoding == "base64" else orjson.dumps(_numbers(row))
        for row in rows
    )
    parts = [b'{"object":"list","data":[']
    for index, vector in enumerate(vectors):
        comma = b"," if index else b""
        parts += (comma, b'{"object":"embedding","index":%d,"embedding":' % index, vector, b"}")
    usage = orjson.dumps({"prompt_tokens": num_tokens, "total_tokens": num_tokens})
    parts.append(b'],"model":%b,"usage":%b}' % (orjson.dumps(model), usage))
    return b"".join(parts)


def _numbers(row: memoryview) -> list[float]:
    numbers = array("f")
    numbers.frombytes(row)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
