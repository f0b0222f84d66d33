"""Rerank and score: how well documents answer a query.

A cross-encoder says it of each pair; a chat model is asked, and the chance of yes counts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, field_validator, model_validator

from gateway import bridge
from gateway.errors import UnsupportedFieldError
from gateway.http.schemas.base.body import (
    RequestModel,
    dump_json,
    field_error,
    load_json_object,
    unknown_fields,
    validate,
)
from gateway.http.schemas.base.shapes import ListOf, fields
from gateway.http.scoring import wording
from gateway.http.scoring.classify import most_tokens, scores_of
from gateway.http.scoring.convert import upper_bound
from gateway.http.scoring.decision_schemas import MAX_TEXT_CHARACTERS
from gateway.http.scoring.probabilities import probabilities, shown
from gateway.http.scoring.render import logprobs_of
from gateway.request.callers.caller import named_end_user
from protocol.wire.messages import Classified, Classify, EngineOffer, Scored, Usage
from protocol.wire.messages import Score as ScoreMessage

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

    shapes = {"documents": ListOf(fields("text"))}  # noqa: RUF012

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
    use_activation: bool | None = None
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


_FIRSTS: Final = ("text_1", "queries", "data_1")
_SECONDS: Final = ("text_2", "documents", "data_2", "items")


class ScoreRequest(RequestModel):
    """Pairs of texts to be scored: one first text for all, or as many as second ones.

    Both have several names, of which one is used: clients were written for several servers.
    """

    model: Annotated[str, Field(min_length=1, max_length=512)]
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None
    items: str | list[str] | None = None
    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1)] = None
    instruction: Annotated[str | None, Field(max_length=MAX_TEXT_CHARACTERS)] = None
    use_activation: bool | None = None
    # Harmless.
    user: Any = None
    priority: Any = None

    @model_validator(mode="after")
    def _pairs(self) -> "ScoreRequest":
        given = [self._given(names) for names in (_FIRSTS, _SECONDS)]
        if [len(names) for names in given] != [1, 1]:
            raise field_error(
                "either `text_1` and `text_2`, or `queries` and `documents` (or `items`), or"
                " `data_1` and `data_2`."
            )
        if self.priority not in (None, 0):
            raise field_error("requests have no priorities of their own.", "priority")
        firsts, seconds = self.firsts, self.seconds
        (first_name,), (name,) = given
        if not firsts:
            raise field_error("it has to be a string.", first_name)
        if not seconds or len(firsts) not in (1, len(seconds)):
            raise field_error(
                f"there are {len(firsts)} first texts for {len(seconds)} second ones; one for all,"
                " or as many, are expected.",
                name,
            )
        if len(seconds) > MAX_DOCUMENTS:
            raise field_error(
                f"there are {len(seconds)} pairs; at most {MAX_DOCUMENTS} are read.", name
            )
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
        return self._texts(_FIRSTS)

    @property
    def seconds(self) -> list[str]:
        """The documents."""
        return self._texts(_SECONDS)

    @property
    def first_name(self) -> str:
        """The field with the queries."""
        return self._given(_FIRSTS)[0]

    @property
    def second_name(self) -> str:
        """The field with the documents."""
        return self._given(_SECONDS)[0]

    def _given(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]

    def _texts(self, names: tuple[str, ...]) -> list[str]:
        value: str | list[str] = getattr(self, self._given(names)[0])
        return [value] if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class RerankBody:
    """Of /v1/rerank and /v1/score.

    Attributes:
        message: Pairs for a model with a classifier, questions for others.
        is_raw: Told is what stands before the sigmoid: a logit, or the log of the odds of yes.
        documents: To be told again; empty where they aren't.
        num_documents: That were scored.
        num_wanted: That are told.
        num_bytes: Upper bound of the tokens that are computed.
        ignored: Fields that no schema knows.
        material: The field with the texts that are scored.
        before: The field with what they are scored by.
        end_user: For whom it is; empty when the body doesn't say.
    """

    model: str
    message: ScoreMessage | Classify
    is_raw: bool
    documents: tuple[str, ...]
    num_documents: int
    num_wanted: int
    num_bytes: int
    ignored: list[str]
    material: str
    before: str
    end_user: str


OfferOf = Callable[[str], EngineOffer | None]
"""What is served under a name; None for one that nobody serves."""


def nobody(_model: str) -> EngineOffer | None:
    """No model is served."""
    return None


def rerank_body(body: bytes, offer_of: OfferOf = nobody) -> RerankBody:
    """Of the rerank routes.

    Args:
        body: As it came.
        offer_of: Says how the model is asked.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    request = validate(RerankRequest, value)
    offer = offer_of(request.model)
    num_bytes, message = (
        _pairs(
            request,
            [request.query],
            request.documents,
            truncates=request.truncation is not False,
            max_second_tokens=request.max_tokens_per_doc,
        )
        if is_classifier(offer)
        else _questions(
            request.query,
            request.documents,
            request.instruction,
            _cut(
                request.max_tokens_per_doc,
                request.truncate_prompt_tokens,
                truncation=request.truncation,
            ),
            "" if offer is None else offer.rerank_wording,
        )
    )
    return RerankBody(
        model=request.model,
        message=message,
        is_raw=request.use_activation is False,
        documents=tuple(request.documents) if request.return_documents is not False else (),
        num_documents=len(request.documents),
        num_wanted=request.num_wanted,
        num_bytes=num_bytes,
        ignored=unknown_fields(request, value),
        material="documents",
        before="query",
        end_user=named_end_user(request.user),
    )


def score_body(body: bytes, offer_of: OfferOf = nobody) -> RerankBody:
    """Of /v1/score.

    Args:
        body: As it came.
        offer_of: Says how the model is asked.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    request = validate(ScoreRequest, value)
    firsts, seconds, offer = request.firsts, request.seconds, offer_of(request.model)
    message: ScoreMessage | Classify
    if is_classifier(offer):
        num_bytes, message = _pairs(
            request, firsts, seconds, truncates=False, max_second_tokens=None
        )
    else:
        firsts = firsts * (1 if len(firsts) == len(seconds) else len(seconds))
        num_bytes, message = _questions(
            None,
            # Each pair whole, so that its score is the same whichever others stand beside it.
            [wording.rerank_pair(*pair) for pair in zip(firsts, seconds, strict=True)],
            request.instruction,
            _cut(None, request.truncate_prompt_tokens, truncation=False),
            "" if offer is None else offer.rerank_wording,
        )
    return RerankBody(
        model=request.model,
        message=message,
        is_raw=request.use_activation is False,
        documents=(),
        num_documents=len(seconds),
        num_wanted=len(seconds),
        num_bytes=num_bytes,
        ignored=unknown_fields(request, value),
        material=request.second_name,
        before=request.first_name,
        end_user=named_end_user(request.user),
    )


def is_classifier(offer: EngineOffer | None) -> bool:
    """Whether a model says of a pair itself how well it fits."""
    return offer is not None and "classify" in offer.capabilities


def _pairs(
    request: RerankRequest | ScoreRequest,
    firsts: Sequence[str],
    seconds: Sequence[str],
    *,
    truncates: bool,
    max_second_tokens: int | None,
) -> tuple[int, Classify]:
    """The pairs for a cross-encoder, and an upper bound of their tokens."""
    if request.instruction is not None:
        raise UnsupportedFieldError(
            "`instruction` is for models that are asked in words; this one is a cross-encoder.",
            param="instruction",
        )
    cut = request.truncate_prompt_tokens
    message = bridge.classification(
        firsts,
        seconds,
        truncate_prompt_tokens=-1 if cut is None and truncates else cut,
        max_second_tokens=max_second_tokens,
    )
    return most_tokens(message), message


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


def _questions(
    query: str | None,
    documents: Sequence[str],
    instruction: str | None,
    max_question_tokens: int | None,
    style: str,
) -> tuple[int, ScoreMessage]:
    """The questions for a chat model, and an upper bound of their tokens."""
    words = wording.rerank_words(style)
    messages = [
        {"role": "system", "content": words.system},
        {"role": "user", "content": wording.rerank_head(words, instruction, query)},
    ]
    messages_json = dump_json(messages, "query")
    message = bridge.score_question(
        messages_json,
        [("", document, 0) for document in documents],
        (words.yes_no,),
        _KWARGS_JSON,
        max_question_tokens,
    )
    return upper_bound(messages_json, documents), message


def relevance(answer: Scored | Classified, body: RerankBody) -> list[float]:
    """How well each document fits: the chance of yes against no, or what a cross-encoder says."""
    if isinstance(answer, Classified):
        return scores_of(answer, is_raw=body.is_raw)
    logprobs = logprobs_of(answer)
    pairs = zip(logprobs[::2], logprobs[1::2], strict=True)
    if body.is_raw:
        return [shown(yes - no) for yes, no in pairs]
    return [shown(probabilities(pair)[0]) for pair in pairs]


def _best_first(scores: Sequence[float], num_wanted: int) -> Iterable[tuple[int, float]]:
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return [(index, scores[index]) for index in order[:num_wanted]]


def rerank_answer(
    scored: Scored | Classified, body: RerankBody, usage: Usage, answer_id: str
) -> bytes:
    """Jina's answer, with Cohere's count of what is billed."""
    results: list[dict[str, Any]] = []
    cut = _truncated(scored)
    for index, score in _best_first(relevance(scored, body), body.num_wanted):
        result: dict[str, Any] = {"index": index, "relevance_score": score}
        if body.documents:
            result["document"] = {"text": body.documents[index]}
        if index in cut:
            result["truncated"] = True
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
    scored: Scored | Classified, body: RerankBody, usage: Usage, answer_id: str, created: int
) -> bytes:
    """The answer of /v1/score: in the order of the request."""
    cut = _truncated(scored)
    data = [
        {"index": index, "object": "score", "score": score}
        | ({"truncated": True} if index in cut else {})
        for index, score in enumerate(relevance(scored, body))
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


def _truncated(answer: Scored | Classified) -> frozenset[int]:
    """Pairs that a cross-encoder didn't read to their end."""
    return frozenset(answer.truncated) if isinstance(answer, Classified) else frozenset()


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
