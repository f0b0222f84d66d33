"""POST /v1/decisions, /v1/systemone, /v1/rerank, /v2/rerank and /v1/score."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway.errors import ClientDisconnectedError, UnsupportedFieldError
from gateway.http.access import GuardedRoute, caller_of, parsed_body
from gateway.http.error_table import limit_headers
from gateway.http.ignored_fields import ignored_headers
from gateway.http.parsers import DECISION, RERANK, SCORE, SYSTEMONE
from gateway.http.parts import parts_of
from gateway.http.responses import run_to_end
from gateway.http.schemas.body import RequestModel
from gateway.http.scoring import render
from gateway.http.scoring.convert import DecisionBody
from gateway.http.scoring.decision_schemas import DecisionRequest, SystemoneRequest
from gateway.http.scoring.probabilities import shown
from gateway.http.scoring.rerank import (
    RerankRequest,
    ScoreRequest,
    rerank_answer,
    score_answer,
)
from gateway.request.questions import Question
from protocol.version import ProtocolVersion
from protocol.wire.messages import EngineOffer, Score, Scored, Usage

_MANY_LABELS = 1000
"""Answers with more are written beside the loop."""

router = APIRouter(route_class=GuardedRoute)


class ScoringBody(Protocol):
    """What the bodies of these routes have in common."""

    @property
    def model(self) -> str:
        """Public name."""
        ...

    @property
    def message(self) -> Score:
        """Not addressed yet."""
        ...

    @property
    def num_bytes(self) -> int:
        """Upper bound of the tokens that are computed."""
        ...

    @property
    def ignored(self) -> list[str]:
        """Fields that no schema knows."""
        ...

    @property
    def end_user(self) -> str:
        """For whom it is; empty when the body doesn't say."""
        ...


def _schema(model: type[RequestModel]) -> dict[str, object]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


@router.post("/v1/decisions", tags=["decisions"], openapi_extra=_schema(DecisionRequest))
async def decisions(request: HttpRequest) -> Response:
    """Answer questions about one material with probabilities."""
    body = await parsed_body(request, DECISION)
    return await _decided(request, "/v1/decisions", body, render.decision)


@router.post("/v1/systemone", tags=["decisions"], openapi_extra=_schema(SystemoneRequest))
async def systemone(request: HttpRequest) -> Response:
    """Answer questions by name about one state with probabilities."""
    body = await parsed_body(request, SYSTEMONE)
    return await _decided(request, "/v1/systemone", body, render.systemone)


@router.post("/v1/rerank", tags=["rerank"], openapi_extra=_schema(RerankRequest))
async def rerank(request: HttpRequest) -> Response:
    """Order documents by how well they answer a query."""
    return await _reranked(request, "/v1/rerank")


@router.post("/v2/rerank", tags=["rerank"], openapi_extra=_schema(RerankRequest))
async def rerank_v2(request: HttpRequest) -> Response:
    """The same where clients of Cohere's look for it."""
    return await _reranked(request, "/v2/rerank")


@router.post("/v1/score", tags=["rerank"], openapi_extra=_schema(ScoreRequest))
async def score(request: HttpRequest) -> Response:
    """Score how well each document answers a query."""
    body = await parsed_body(request, SCORE)
    answer_id, created = request.state.request_id, int(parts_of(request).wall_clock())

    def write(scored: Scored, usage: Usage) -> bytes:
        return score_answer(scored, body, usage, f"score-{answer_id}", created)

    return await _answered(request, "/v1/score", body, write)


async def _decided(
    request: HttpRequest,
    endpoint: str,
    body: DecisionBody,
    written: Callable[[Scored, DecisionBody, Usage], bytes],
) -> Response:
    def headers(scored: Scored) -> dict[str, str]:
        mass = shown(render.lowest_mass(scored, body.asked))
        return {"X-Penstock-Label-Mass": f"{mass:g}"}

    def write(scored: Scored, usage: Usage) -> bytes:
        return written(scored, body, usage)

    return await _answered(request, endpoint, body, write, headers)


async def _reranked(request: HttpRequest, endpoint: str) -> Response:
    body = await parsed_body(request, RERANK)
    answer_id = f"rerank-{request.state.request_id}"

    def write(scored: Scored, usage: Usage) -> bytes:
        return rerank_answer(scored, body, usage, answer_id)

    return await _answered(request, endpoint, body, write)


async def _answered(
    http_request: HttpRequest,
    endpoint: str,
    body: ScoringBody,
    write: Callable[[Scored, Usage], bytes],
    more_headers: Callable[[Scored], dict[str, str]] = lambda _scored: {},
) -> Response:
    """Have the labels scored, and tell what they say."""
    parts, caller = parts_of(http_request), caller_of(http_request)
    headers = ignored_headers(body.ignored, strict=parts.settings.strict_fields)
    question = _question(endpoint, body)
    request, work = parts.requests.question(question, caller, http_request.state.request_id)
    try:
        await run_to_end(http_request, request)
    except ClientDisconnectedError:
        return Response(status_code=499)
    headers |= limit_headers(request.limits)
    scored, usage = work.answer, request.usage()
    headers |= more_headers(scored)
    is_large = len(scored.logprobs) > 4 * _MANY_LABELS
    content = await asyncio.to_thread(write, scored, usage) if is_large else write(scored, usage)
    return Response(content, media_type="application/json", headers=headers)


def _question(endpoint: str, body: ScoringBody) -> Question[Score, Scored]:
    message = body.message
    num_labels = sum(len(message.label_sets[one.label_set]) for one in message.questions)

    def check(offer: EngineOffer, _version: ProtocolVersion) -> None:
        if "scores" not in offer.capabilities:
            raise UnsupportedFieldError(
                f"The model `{offer.model}` answers no such questions: it has no chat template, or"
                " its engines are of an older release.",
                param="model",
            )

    def bound(offer: EngineOffer | None) -> int:
        if offer is None:
            return body.num_bytes
        return min(body.num_bytes, offer.max_model_len * (1 + len(message.questions)))

    return Question(
        endpoint=endpoint,
        model=body.model,
        message=message,
        answer_kind=Scored,
        check=check,
        prompt_tokens=bound,
        least_tokens=lambda _offer: len(message.questions),
        tokens_of=lambda scored: scored.num_prompt_tokens,
        cached_of=lambda scored: scored.num_cached_tokens,
        check_answer=lambda scored: len(scored.logprobs) == 4 * num_labels,
        seat="work",
        end_user=body.end_user,
    )
