"""Rerank and score: how well documents answer a query, by the chance that a model says yes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, field_validator, model_validator

from gateway import bridge
from gateway.errors import UnsupportedFieldError
from gateway.http.schemas.body import (
    RequestModel,
    dump_json,
    field_error,
    load_json_object,
    unknown_keys,
    validate,
)
from gateway.http.scoring import wording
from gateway.http.scoring.convert import upper_bound
from gateway.http.scoring.decision_schemas import MAX_TEXT_CHARACTERS
from gateway.http.scoring.probabilities import probabilities, shown
from gateway.http.scoring.render import logprobs_of
from gateway.request.end_users import named_end_user
from protocol.wire.messages import Score as ScoreMessage
from protocol.wire.messages import Scored, Usage

MAX_DOCUMENTS: Final = 10_000
_KWARGS_JSON: Final = '{"enable_thinking":false,"thinking":false}'
_SEARCH_UNIT_DOCUMENTS: Final = 100
"""Documents of one of Cohere's search units."""
HARMLESS_FIELDS: Final[dict[str, str]] = {
    "priority": "only 0, the neutral value",
    "user": "names an end user; it counts with keys that may do so",
}
"""Accepted without effect."""

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]


class Document(RequestModel):
    """A document as an object."""

    text: Text


def _documents(value: Any) -> Any:
    """Texts of documents that are texts, or objects with one."""
    if not isinstance(value, list) or not value:
        raise field_error("a list of texts, or of objects with a `text`, is expected.")
    if len(value) > MAX_DOCUMENTS:
        raise field_error(f"there are {len(value)} documents; at most {MAX_DOCUMENTS} are read.")
    texts = []
    for index, one in enumerate(value):
        text = one.get("text") if isinstance(one, dict) else one
        if not isinstance(text, str):
            raise field_error("a text, or an object with a `text`, is expected.", f"[{index}]")
        texts.append(text)
    return texts


DocumentsField = list[str]
_SCHEMA_TYPE = list[str | Document]


class RerankRequest(RequestModel):
    """Documents to be ordered by how well they answer a query: Jina's and Cohere's fields."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    query: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
    documents: DocumentsField
    top_n: Annotated[int | None, Field(ge=0)] = None
    top_k: Annotated[int | None, Field(ge=0)] = None
    return_documents: bool | None = None
    max_tokens_per_doc: Annotated[int | None, Field(ge=1)] = None
    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1)] = None
    truncation: bool | None = None
    instruction: Annotated[str | None, Field(max_length=MAX_TEXT_CHARACTERS)] = None
    # Harmless.
    user: Any = None
    priority: Any = None

    _read_documents = field_validator(
        "documents", mode="plain", json_schema_input_type=_SCHEMA_TYPE
    )(_documents)

    @model_validator(mode="after")
    def _one_number(self) -> "RerankRequest":
        if self.top_n is not None and self.top_k is not None and self.top_n != self.top_k:
            raise field_error("`top_n` and `top_k` are two names of one number.", "top_k")
        if self.priority not in (None, 0):
            raise field_error("requests have no priorities of their own.", "priority")
        return self

    @property
    def num_wanted(self) -> int:
        """How many documents are told."""
        wanted = self.top_n if self.top_n is not None else self.top_k
        return min(wanted or len(self.documents), len(self.documents))


class ScoreRequest(RequestModel):
    """Pairs of texts to be scored: one first text for all, or as many as second ones."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1)] = None
    instruction: Annotated[str | None, Field(max_length=MAX_TEXT_CHARACTERS)] = None
    # Harmless.
    user: Any = None
    priority: Any = None

    @model_validator(mode="after")
    def _pairs(self) -> "ScoreRequest":
        if (self.text_1 is None) == (self.queries is None):
            raise field_error("either `text_1` and `text_2`, or `queries` and `documents`.")
        if (self.text_2 is None) == (self.documents is None):
            raise field_error("either `text_1` and `text_2`, or `queries` and `documents`.")
        if self.priority not in (None, 0):
            raise field_error("requests have no priorities of their own.", "priority")
        firsts, seconds = self.firsts, self.seconds
        if not firsts or not seconds or len(firsts) not in (1, len(seconds)):
            raise field_error(
                f"there are {len(firsts)} first texts for {len(seconds)} second ones; one for all,"
                " or as many, are expected."
            )
        if len(seconds) > MAX_DOCUMENTS:
            raise field_error(f"there are {len(seconds)} pairs; at most {MAX_DOCUMENTS} are read.")
        # One first text stands in every pair, so a small body may ask for gigabytes.
        num_times = len(seconds) if len(firsts) == 1 else 1
        num_characters = sum(map(len, firsts)) * num_times + sum(map(len, seconds))
        if num_characters > MAX_TEXT_CHARACTERS:
            raise field_error(
                f"the pairs have {num_characters} characters together; at most"
                f" {MAX_TEXT_CHARACTERS} are read."
            )
        return self

    @property
    def firsts(self) -> list[str]:
        """The queries."""
        return _as_list(self.text_1 if self.queries is None else self.queries)

    @property
    def seconds(self) -> list[str]:
        """The documents."""
        return _as_list(self.text_2 if self.documents is None else self.documents)


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


@dataclass(frozen=True, slots=True)
class RerankBody:
    """Of /v1/rerank and /v1/score.

    Attributes:
        documents: To be told again; empty where they aren't.
        num_documents: That were scored.
        num_wanted: That are told.
        num_bytes: Upper bound of the tokens that are computed.
        ignored: Fields that no schema knows.
        end_user: For whom it is; empty when the body doesn't say.
    """

    model: str
    message: ScoreMessage
    documents: tuple[str, ...]
    num_documents: int
    num_wanted: int
    num_bytes: int
    ignored: list[str]
    end_user: str


def rerank_body(body: bytes) -> RerankBody:
    """Of the rerank routes.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    request = validate(RerankRequest, value)
    return _body(
        request.model,
        wording.rerank_head(request.instruction, request.query),
        request.documents,
        _cut(
            request.max_tokens_per_doc,
            request.truncate_prompt_tokens,
            truncation=request.truncation,
        ),
        num_wanted=request.num_wanted,
        tells_documents=request.return_documents is not False,
        ignored=unknown_keys(value, RerankRequest.known_fields),
        end_user=named_end_user(request.user),
    )


def score_body(body: bytes) -> RerankBody:
    """Of /v1/score.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    request = validate(ScoreRequest, value)
    seconds = request.seconds
    firsts = request.firsts * (1 if len(request.firsts) == len(seconds) else len(seconds))
    return _body(
        request.model,
        wording.rerank_head(request.instruction),
        # Each pair whole, so that its score is the same whichever others stand beside it.
        [wording.rerank_pair(*pair) for pair in zip(firsts, seconds, strict=True)],
        _cut(None, request.truncate_prompt_tokens, truncation=False),
        num_wanted=len(request.seconds),
        tells_documents=False,
        ignored=unknown_keys(value, ScoreRequest.known_fields),
        end_user=named_end_user(request.user),
    )


def _cut(per_document: int | None, prompt: int | None, *, truncation: bool | None) -> int | None:
    """How many tokens of a document are read; None refuses one that is too long."""
    if per_document is not None:
        return per_document
    if prompt is not None and prompt != -1:
        raise UnsupportedFieldError(
            "`truncate_prompt_tokens` is -1 here; `max_tokens_per_doc` cuts documents.",
            param="truncate_prompt_tokens",
        )
    cuts = truncation is not False if prompt is None else True
    return 2**31 - 1 if cuts else None


def _body(
    model: str,
    head: str,
    documents: Sequence[str],
    max_question_tokens: int | None,
    *,
    num_wanted: int,
    tells_documents: bool,
    ignored: list[str],
    end_user: str,
) -> RerankBody:
    messages = [
        {"role": "system", "content": wording.RERANK_SYSTEM},
        {"role": "user", "content": head},
    ]
    messages_json = dump_json(messages, "query")
    return RerankBody(
        model=model,
        message=bridge.score_question(
            messages_json,
            [(document, 0) for document in documents],
            (wording.YES_NO,),
            _KWARGS_JSON,
            max_question_tokens,
        ),
        documents=tuple(documents) if tells_documents else (),
        num_documents=len(documents),
        num_wanted=num_wanted,
        num_bytes=upper_bound(messages_json, documents),
        ignored=ignored,
        end_user=end_user,
    )


def relevance(scored: Scored) -> list[float]:
    """Of each document, the chance of yes against no."""
    logprobs = logprobs_of(scored)
    pairs = zip(logprobs[::2], logprobs[1::2], strict=True)
    return [shown(probabilities(pair)[0]) for pair in pairs]


def _best_first(scores: Sequence[float], num_wanted: int) -> Iterable[tuple[int, float]]:
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return [(index, scores[index]) for index in order[:num_wanted]]


def rerank_answer(scored: Scored, body: RerankBody, usage: Usage, answer_id: str) -> bytes:
    """Jina's answer, with Cohere's count of what is billed."""
    results: list[dict[str, Any]] = []
    for index, score in _best_first(relevance(scored), body.num_wanted):
        result: dict[str, Any] = {"index": index, "relevance_score": score}
        if body.documents:
            result["document"] = {"text": body.documents[index]}
        results.append(result)
    units = -(-body.num_documents // _SEARCH_UNIT_DOCUMENTS)
    return orjson.dumps(
        {
            "id": answer_id,
            "object": "list",
            "model": body.model,
            "results": results,
            "usage": _usage(usage),
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": units}},
        }
    )


def score_answer(
    scored: Scored, body: RerankBody, usage: Usage, answer_id: str, created: int
) -> bytes:
    """The answer of /v1/score: in the order of the request."""
    data = [
        {"index": index, "object": "score", "score": score}
        for index, score in enumerate(relevance(scored))
    ]
    return orjson.dumps(
        {
            "id": answer_id,
            "object": "list",
            "created": created,
            "model": body.model,
            "data": data,
            "usage": _usage(usage),
        }
    )


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
