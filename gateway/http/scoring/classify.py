"""Classification: bodies of /v1/classify, pairs for cross-encoders, and what logits are told as."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, field_validator, model_validator

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.schemas.base.body import (
    RequestModel,
    field_error,
    load_json_object,
    unknown_fields,
    validate,
)
from gateway.http.schemas.base.ranges import MAX_EMBEDDING_INPUTS, MAX_TOKEN_IDS, ranged
from gateway.http.schemas.inference.embedding import Input, input_of_one_kind
from gateway.http.scoring.probabilities import probabilities, shown
from gateway.request.callers.caller import named_end_user
from protocol.wire.messages import Classified, Classify, EngineOffer, Usage

MAX_NUMBERS: Final = 1_000_000
"""Of an answer: inputs times labels."""
_SPECIAL_TOKENS: Final = 8
"""What a tokenizer adds to a text or a pair, at most, in any model that is known here."""
_HALF: Final = 0.5

PairsOrInput = Input | list[list[str]]


class ClassifyRequest(RequestModel):
    """Texts, pairs of texts, or token ids, to be classified: vLLM's fields.

    `input` is as of embeddings, or a list of pairs of texts.
    """

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: PairsOrInput
    truncate_prompt_tokens: Annotated[int | None, ranged("truncate_prompt_tokens")] = None
    use_activation: bool | None = None
    # Harmless.
    user: Any = None
    priority: Any = None

    @field_validator("input", mode="plain", json_schema_input_type=PairsOrInput)
    @classmethod
    def _of_one_kind(cls, value: Any) -> Any:
        if not (isinstance(value, list) and value and isinstance(value[0], list)):
            return input_of_one_kind(value)
        if not value[0] or not isinstance(value[0][0], str):
            return input_of_one_kind(value)
        if len(value) > MAX_EMBEDDING_INPUTS:
            raise field_error(
                f"there are {len(value)} pairs; at most {MAX_EMBEDDING_INPUTS} are accepted."
            )
        for index, pair in enumerate(value):
            is_pair = isinstance(pair, list) and len(pair) == len(("first", "second"))
            if not is_pair or not all(isinstance(one, str) for one in pair):
                raise field_error("a pair of two texts is expected.", f"[{index}]")
        return value

    @model_validator(mode="after")
    def _no_priority(self) -> "ClassifyRequest":
        if self.priority not in (None, 0):
            raise field_error("requests have no priorities of their own.", "priority")
        return self

    def message(self) -> Classify:
        """What an engine is asked; not addressed yet."""
        value: Any = self.input
        texts: Sequence[str] = ()
        seconds: Sequence[str] = ()
        token_ids: tuple[tuple[int, ...], ...] = ()
        if isinstance(value, str):
            texts = (value,)
        elif isinstance(value[0], int):
            token_ids = (tuple(value),)
        elif isinstance(value[0], str):
            texts = value
        elif isinstance(value[0][0], str):
            texts, seconds = [one for one, _ in value], [other for _, other in value]
        else:
            token_ids = tuple(map(tuple, value))
        return bridge.classification(
            texts, seconds, token_ids, truncate_prompt_tokens=self.truncate_prompt_tokens
        )


@dataclass(frozen=True, slots=True)
class ClassifyBody:
    """Of /v1/classify.

    Attributes:
        is_raw: Logits are told, not probabilities.
        num_bytes: Upper bound of the tokens that are computed.
        ignored: Fields that no schema knows.
        material: The field with what is classified.
        end_user: For whom it is; empty when the body doesn't say.
    """

    model: str
    message: Classify
    is_raw: bool
    num_bytes: int
    ignored: list[str]
    material: str
    end_user: str

    @property
    def before(self) -> str:
        """The field with the text that stands first."""
        return self.material


def classify_body(body: bytes) -> ClassifyBody:
    """Of /v1/classify.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    request = validate(ClassifyRequest, value)
    message = request.message()
    num_ids = sum(map(len, message.token_ids))
    if num_ids > MAX_TOKEN_IDS:
        raise InvalidRequestError(
            f"Invalid `input`: there are {num_ids} token ids; at most {MAX_TOKEN_IDS} are"
            " accepted.",
            param="input",
        )
    return ClassifyBody(
        model=request.model,
        message=message,
        is_raw=request.use_activation is False,
        num_bytes=most_tokens(message),
        ignored=unknown_fields(request, value),
        material="input",
        end_user=named_end_user(request.user),
    )


def most_tokens(message: Classify) -> int:
    """Tokens at most of what is to be classified: no text has more of them than bytes."""
    firsts = sum(len(text.encode("utf-8", "surrogatepass")) for text in message.texts)
    if message.second_texts and len(message.texts) == 1:
        firsts *= len(message.second_texts)
    seconds = sum(len(text.encode("utf-8", "surrogatepass")) for text in message.second_texts)
    ids = sum(map(len, message.token_ids))
    return firsts + seconds + ids + _SPECIAL_TOKENS * message.num_inputs


def rows_of(classified: Classified) -> list[list[float]]:
    """The logits of each input.

    Raises:
        ValueError: They are no whole rows of floats.
    """
    values = array("f")
    values.frombytes(classified.logits)
    if memoryview(b"\1\0").cast("h")[0] != 1:
        values.byteswap()
    width = classified.num_labels
    if width < 1 or len(values) % width:
        raise ValueError("logits come in whole rows")
    numbers = values.tolist()
    return [numbers[first : first + width] for first in range(0, len(numbers), width)]


def sigmoid(logit: float) -> float:
    """The chance that a logit stands for, without overflow."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    weight = math.exp(logit)
    return weight / (1.0 + weight)


def activated(logits: Sequence[float], problem_type: str) -> list[float]:
    """What logits say: probabilities of labels, or the numbers of a regression with several.

    A single number is always a score between 0 and 1.
    """
    if len(logits) == 1 or problem_type == "multi_label":
        return [sigmoid(logit) for logit in logits]
    return list(logits) if problem_type == "regression" else probabilities(logits)


def scores_of(classified: Classified, *, is_raw: bool) -> list[float]:
    """How well the second text of each pair fits the first one: a model with one label says."""
    return [shown(row[0] if is_raw else sigmoid(row[0])) for row in rows_of(classified)]


def classify_answer(
    classified: Classified,
    body: ClassifyBody,
    offer: EngineOffer,
    usage: Usage,
    answer_id: str,
    created: int,
) -> bytes:
    """VLLM's answer; `truncated` and, of models where several labels may hold, `labels` beside."""
    cut = frozenset(classified.truncated)
    data = []
    for index, row in enumerate(rows_of(classified)):
        chances = list(row) if body.is_raw else activated(row, offer.problem_type)
        one: dict[str, Any] = {
            "index": index,
            "label": _label(row, offer),
            "probs": [shown(chance) for chance in chances],
            "num_classes": len(row),
        }
        if offer.problem_type == "multi_label":
            one["labels"] = [
                label
                for label, logit in zip(offer.labels, row, strict=True)
                if sigmoid(logit) >= _HALF
            ]
        if index in cut:
            one["truncated"] = True
        data.append(one)
    return orjson.dumps(
        {
            "id": answer_id,
            "object": "list",
            "created": created,
            "model": body.model,
            "data": data,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "total_tokens": usage.prompt_tokens,
                "completion_tokens": 0,
            },
        }
    )


def _label(row: Sequence[float], offer: EngineOffer) -> str | None:
    """The label that fits best; None where numbers stand for no labels."""
    if offer.problem_type == "regression" and len(row) > 1:
        return None
    return offer.labels[row.index(max(row))]
