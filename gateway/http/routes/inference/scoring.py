"""POST /v1/decisions, /v1/systemone, /v1/rerank, /v2/rerank, /v1/score and /v1/classify."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway.errors import (
    ClientDisconnectedError,
    InvalidRequestError,
    RemoteFailureError,
    UnsupportedFieldError,
)
from gateway.http.access.guard import GuardedRoute, caller_of, parsed_body
from gateway.http.answers.answer_headers import answer_headers, ignored_headers
from gateway.http.answers.responses import run_to_end
from gateway.http.bodies.parsers import CLASSIFY, DECISION, RERANK, SCORE, SYSTEMONE
from gateway.http.parts import parts_of
from gateway.http.schemas.base.body import body_schema
from gateway.http.scoring import render
from gateway.http.scoring.classify import (
    MAX_NUMBERS,
    ClassifyBody,
    ClassifyRequest,
    classify_answer,
)
from gateway.http.scoring.convert import DecisionBody
from gateway.http.scoring.decision_schemas import DecisionRequest, SystemoneRequest
from gateway.http.scoring.probabilities import shown
from gateway.http.scoring.rerank import (
    RerankBody,
    RerankRequest,
    ScoreRequest,
    rerank_answer,
    score_answer,
)
from gateway.request.jobs.model_limits import check_inputs
from gateway.request.kinds.questions import AnswerT, Question, QuestionT
from protocol.version import ProtocolVersion
from protocol.wire.messages import Classified, Classify, EngineOffer, Score, Scored, Usage

_MANY_LABELS = 1000
"""Answers with more are written beside the loop."""
_ENGINES_WORD = "input"
"""What an error of an engine calls whatever it was to read."""
_BEFORE = "before"
"""What it calls the text that stands before those, or with each of them."""

router = APIRouter(route_class=GuardedRoute)


class ScoringBody(Protocol):
    """What the bodies of these routes have in common."""

    @property
    def model(self) -> str:
        """Public name."""
        ...

    @property
    def message(self) -> Score | Classify:
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
    def material(self) -> str:
        """The field with what is judged."""
        ...

    @property
    def before(self) -> str:
        """The field with what it is judged by, where that is another one."""
        ...

    @property
    def end_user(self) -> str:
        """For whom it is; empty when the body doesn't say."""
        ...


BodyT = TypeVar("BodyT", DecisionBody, RerankBody, ClassifyBody)


@router.post("/v1/decisions", tags=["decisions"], openapi_extra=body_schema(DecisionRequest))
async def decisions(request: HttpRequest) -> Response:
    """Answer questions about one material with probabilities."""
    body = await parsed_body(request, DECISION)
    return await _decided(request, "/v1/decisions", body, render.decision)


@router.post("/v1/systemone", tags=["decisions"], openapi_extra=body_schema(SystemoneRequest))
async def systemone(request: HttpRequest) -> Response:
    """Answer questions by name about one state with probabilities."""
    body = await parsed_body(request, SYSTEMONE)
    return await _decided(request, "/v1/systemone", body, render.systemone)


@router.post("/v1/rerank", tags=["rerank"], openapi_extra=body_schema(RerankRequest))
async def rerank(request: HttpRequest) -> Response:
    """Order documents by how well they answer a query."""
    return await _reranked(request, "/v1/rerank")


@router.post("/v2/rerank", tags=["rerank"], openapi_extra=body_schema(RerankRequest))
async def rerank_v2(request: HttpRequest) -> Response:
    """The same where clients of Cohere's look for it."""
    return await _reranked(request, "/v2/rerank")


@router.post("/v1/score", tags=["rerank"], openapi_extra=body_schema(ScoreRequest))
async def score(request: HttpRequest) -> Response:
    """Score how well each document answers a query."""
    body = await parsed_body(request, SCORE)
    answer_id, created = request.state.request_id, int(parts_of(request).wall_clock())

    def write(scored: Scored | Classified, body: RerankBody, usage: Usage) -> bytes:
        return score_answer(scored, body, usage, f"score-{answer_id}", created)

    return await _answered(request, "/v1/score", body, write)


@router.post("/v1/classify", tags=["classify"], openapi_extra=body_schema(ClassifyRequest))
async def classify(request: HttpRequest) -> Response:
    """Say which labels texts, or pairs of texts, have."""
    body = await parsed_body(request, CLASSIFY)
    answer_id, created = request.state.request_id, int(parts_of(request).wall_clock())
    # Kept from the check before the question was sent: an answer is told by the labels of then.
    offers: list[EngineOffer] = []

    def check(offer: EngineOffer) -> None:
        num_numbers = len(offer.labels) * body.message.num_inputs
        if num_numbers > MAX_NUMBERS:
            raise InvalidRequestError(
                f"{body.message.num_inputs} inputs with {len(offer.labels)} labels each make an"
                f" answer of {num_numbers} numbers; at most {MAX_NUMBERS} are given. Send fewer"
                " inputs at a time.",
                param="input",
            )
        check_inputs(body.message, offer)
        offers[:] = [offer]

    def write(classified: Classified, body: ClassifyBody, usage: Usage) -> bytes:
        name = f"classify-{answer_id}"
        return classify_answer(classified, body, offers[0], usage, name, created)

    question = _classification("/v1/classify", body, body.message, check)
    return await _run(request, body, question, write)


async def _decided(
    request: HttpRequest,
    endpoint: str,
    body: DecisionBody,
    written: Callable[[Scored, DecisionBody, Usage], bytes],
) -> Response:
    def headers(scored: Scored) -> dict[str, str]:
        mass = shown(render.lowest_mass(scored, body.asked))
        return {"X-Penstock-Label-Mass": f"{mass:g}"}

    return await _answered(request, endpoint, body, written, headers)


async def _reranked(request: HttpRequest, endpoint: str) -> Response:
    body = await parsed_body(request, RERANK)
    answer_id = f"rerank-{request.state.request_id}"

    def write(scored: Scored | Classified, body: RerankBody, usage: Usage) -> bytes:
        return rerank_answer(scored, body, usage, answer_id)

    return await _answered(request, endpoint, body, write)


async def _answered(
    http_request: HttpRequest,
    endpoint: str,
    body: BodyT,
    write: Callable[[Any, BodyT, Usage], bytes],
    more_headers: Callable[[Any], dict[str, str]] = lambda _answer: {},
) -> Response:
    """Have the labels scored, or the pairs, and tell what they say."""
    message = body.message
    if isinstance(message, Classify):
        pairs = _classification(endpoint, body, message, _check_pairs)
        return await _run(http_request, body, pairs, write)
    question = _question(endpoint, body, message)
    return await _run(http_request, body, question, write, more_headers)


async def _run(
    http_request: HttpRequest,
    body: BodyT,
    question: Question[QuestionT, AnswerT],
    write: Callable[[AnswerT, BodyT, Usage], bytes],
    more_headers: Callable[[AnswerT], dict[str, str]] = lambda _answer: {},
) -> Response:
    """Ask, and write what is answered; `write` gets the body with the model that answered."""
    parts, caller = parts_of(http_request), caller_of(http_request)
    headers = ignored_headers(body.ignored, strict=parts.settings.strict_fields)
    request, work = parts.requests.question(question, caller, http_request.state.request_id)
    try:
        await run_to_end(http_request, request)
    except ClientDisconnectedError:
        return Response(status_code=499)
    except RemoteFailureError as error:
        if error.param in (_ENGINES_WORD, _BEFORE):
            error.param = body.before if error.param == _BEFORE else body.material
        raise
    headers |= answer_headers(request.lease, model=work.model, asked=body.model)
    headers |= more_headers(work.answer)
    told = (work.answer, replace(body, model=work.model), request.usage())
    is_large = _num_numbers(work.answer) > _MANY_LABELS
    content = await asyncio.to_thread(write, *told) if is_large else write(*told)
    return Response(content, media_type="application/json", headers=headers)


def _num_numbers(answer: object) -> int:
    """Log probabilities or logits of an answer."""
    if isinstance(answer, Classified):
        return len(answer.logits) // 4
    return len(answer.logprobs) // 4 if isinstance(answer, Scored) else 0


def _check_pairs(offer: EngineOffer) -> None:
    """Refuse a classifier that doesn't say how well pairs fit."""
    if len(offer.labels) != 1:
        raise UnsupportedFieldError(
            f"The model `{offer.model}` has {len(offer.labels)} labels, so it says no score of a"
            " pair; /v1/classify tells its labels.",
            param="model",
        )


def _classification(
    endpoint: str,
    body: ScoringBody,
    message: Classify,
    more_checks: Callable[[EngineOffer], None],
) -> Question[Classify, Classified]:
    num_inputs, num_labels = message.num_inputs, 0

    def check(offer: EngineOffer, _version: ProtocolVersion) -> None:
        nonlocal num_labels
        if "classify" not in offer.capabilities:
            raise UnsupportedFieldError(
                f"The model `{offer.model}` classifies nothing: it has no sequence classifier, or"
                " its engines are of an older release.",
                param="model",
            )
        more_checks(offer)
        num_labels = len(offer.labels)

    def bound(offer: EngineOffer | None) -> int:
        if offer is None:
            return body.num_bytes
        return min(body.num_bytes, offer.max_model_len * num_inputs)

    def is_answer(classified: Classified) -> bool:
        return (
            classified.num_labels == num_labels > 0
            and len(classified.logits) == 4 * num_labels * num_inputs
            and len(classified.num_tokens) == num_inputs
        )

    return Question(
        endpoint=endpoint,
        model=body.model,
        message=message,
        answer_kind=Classified,
        check=check,
        prompt_tokens=bound,
        least_tokens=lambda _offer: num_inputs,
        tokens_of=lambda classified: sum(classified.num_tokens),
        check_answer=is_answer,
        slot="work",
        end_user=body.end_user,
        is_counted_late=True,
    )


def _question(endpoint: str, body: ScoringBody, message: Score) -> Question[Score, Scored]:
    num_labels = sum(len(message.label_sets[one.label_set]) for one in message.questions)

    def check(offer: EngineOffer, _version: ProtocolVersion) -> None:
        if "scores" not in offer.capabilities:
            why = (
                "it is a classifier, which has the labels it was trained for and reads no questions"
                " (POST /v1/classify)"
                if "classify" in offer.capabilities
                else "it has no chat template, or its engines are of an older release"
            )
            raise UnsupportedFieldError(
                f"The model `{offer.model}` answers no such questions: {why}.", param="model"
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
        slot="work",
        end_user=body.end_user,
        is_counted_late=True,
    )
