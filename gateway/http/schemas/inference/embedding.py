"""The body of POST /v1/embeddings."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from gateway.http.schemas.base.body import (
    RequestModel,
    field_error,
    load_json_object,
    unknown_fields,
    validate,
)
from gateway.http.schemas.base.ranges import MAX_EMBEDDING_INPUTS, ranged

Input = str | list[str] | list[int] | list[list[int]]
_END_OF_IDS = 2**31
EncodingFormat = Literal["float", "base64"]
InputType = Literal["query", "document", "search_query", "search_document", "passage"]
"""What a text is: as Cohere, NVIDIA and others call it."""
_QUERY: Final = ("query", "search_query")
_DOCUMENT: Final = ("document", "passage", "corpus", "search_document")
_PROMPTS_OF_TYPES: Final[dict[InputType, tuple[str, ...]]] = {
    "query": _QUERY,
    "search_query": _QUERY,
    "document": _DOCUMENT,
    "search_document": _DOCUMENT,
    "passage": _DOCUMENT,
}
"""The first of these that a model has stands before texts, as sentence-transformers' `encode_query`
and `encode_document` do it; a model without any of them needs none."""


class EmbeddingRequest(RequestModel):
    """Texts, or token ids, to be turned into vectors.

    `input` is a text, a list of texts, one list of token ids, or a list of such lists.
    """

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: Input
    encoding_format: EncodingFormat | None = None
    dimensions: Annotated[int | None, ranged("dimensions")] = None
    truncate_prompt_tokens: Annotated[int | None, ranged("truncate_prompt_tokens")] = None
    user: str | None = None

    prompt_name: Annotated[str | None, Field(min_length=1, max_length=64)] = None
    input_type: InputType | None = None

    # "plain": pydantic would try each kind of the union, and keep an error for every token id of
    # a list that is no list of strings.
    @field_validator("input", mode="plain", json_schema_input_type=Input)
    @classmethod
    def _of_one_kind(cls, value: Any) -> Any:
        return input_of_one_kind(value)

    @model_validator(mode="after")
    def _one_prompt(self) -> "EmbeddingRequest":
        if self.prompt_name is not None and self.input_type is not None:
            raise field_error("give `prompt_name` or `input_type`, not both.", "input_type")
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        """The inputs, when they are texts."""
        if isinstance(self.input, str):
            return (self.input,)
        return tuple(one for one in self.input if isinstance(one, str))

    @property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        """The inputs, when they are token ids."""
        if isinstance(self.input, str):
            return ()
        if isinstance(self.input[0], int):
            return (tuple(one for one in self.input if isinstance(one, int)),)
        return tuple(tuple(one) for one in self.input if isinstance(one, list))


def input_of_one_kind(value: Any) -> Any:
    """An `input` that is a text, texts, token ids, or lists of them.

    Raises:
        PydanticCustomError: Naming what is wrong.
    """
    if isinstance(value, str):
        return _not_empty(value)
    if not isinstance(value, list) or not value:
        raise field_error("must be a string, token ids, or a list of either.")
    if type(value[0]) is int:
        return _ids(value, "")
    if len(value) > MAX_EMBEDDING_INPUTS:
        raise field_error(
            f"there are {len(value)} inputs; at most {MAX_EMBEDDING_INPUTS} are accepted."
        )
    if all(isinstance(one, str) for one in value):
        return [_not_empty(one, f"[{index}]") for index, one in enumerate(value)]
    if all(isinstance(one, list) for one in value):
        return [_ids(one, f"[{index}]") for index, one in enumerate(value)]
    raise field_error("all inputs must be texts, or all lists of token ids.")


def prompt_name_of(
    prompt_name: str | None, input_type: InputType | None, known: Sequence[str]
) -> str:
    """The prompt that is meant; empty is what the model has by default.

    Args:
        prompt_name: As the client says it.
        input_type: Likewise.
        known: Prompts of the model.
    """
    if prompt_name is not None:
        return prompt_name
    wanted = () if input_type is None else _PROMPTS_OF_TYPES[input_type]
    return next((name for name in wanted if name in known), "")


def _not_empty(text: str, suffix: str = "") -> str:
    if not text:
        raise field_error("an input can't be empty.", suffix)
    return text


def _ids(value: list[Any], suffix: str) -> list[int]:
    if not value or not all(type(one) is int and 0 <= one < _END_OF_IDS for one in value):
        raise field_error("token ids are expected, at least one.", suffix)
    return value


def parse_embedding_body(body: bytes) -> tuple[EmbeddingRequest, list[str]]:
    """The checked request and the fields that no schema knows.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    request = validate(EmbeddingRequest, value)
    return request, unknown_fields(request, value)
