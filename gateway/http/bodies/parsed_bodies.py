"""What is left of a body once it was read, small and typed: one class a kind of body."""

from dataclasses import dataclass

from msgspec import Struct

from gateway.errors import InvalidRequestError
from gateway.http.openresponses.convert import AskedResponse, Refs
from gateway.http.schemas.inference.embedding import EncodingFormat, InputType
from gateway.request.jobs.job import GenerationJob
from protocol.errors import ErrorCode
from protocol.wire.messages import Detokenize, Embed, Prepare


@dataclass(frozen=True, slots=True)
class Refusal:
    """An `InvalidRequestError` as a value, which may pass between processes."""

    message: str
    code: ErrorCode
    param: str | None

    @classmethod
    def of(cls, error: InvalidRequestError) -> "Refusal":
        """What an error says."""
        return cls(error.message, error.code, error.param)

    def error(self) -> InvalidRequestError:
        """The error, to be raised."""
        return InvalidRequestError(self.message, code=self.code, param=self.param)


class GenerationBody(Struct, frozen=True):
    """Of /v1/chat/completions and /v1/completions.

    Attributes:
        ignored: Fields that no schema knows; here and in the others.
    """

    job: GenerationJob
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class EmbeddingBody:
    """Of /v1/embeddings.

    Attributes:
        num_bytes: UTF-8 bytes of all texts.
        num_ids: Token ids of all inputs that are some.
        prompt_name: As the client says it, as `input_type`; `message` has what they come to.
    """

    model: str
    message: Embed
    encoding: EncodingFormat
    num_bytes: int
    num_ids: int
    num_inputs: int
    ignored: list[str]
    end_user: str = ""
    prompt_name: str | None = None
    input_type: InputType | None = None


@dataclass(frozen=True, slots=True)
class TokenizeBody:
    """Of /tokenize."""

    model: str | None
    message: Prepare
    returns_strings: bool
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class SocketBody:
    """A message on the WebSocket of /v1/responses.

    Attributes:
        generates: Whether it wants output.
        asked: None for another type than `response.create`, and for one that is refused.
        stream_id: The lane that its events name; empty for none.
        steer_json: Of `response.steer`, what it wants to say, a JSON object.
        refusal: Why a `response.create` is refused, if it is and its lane is known: the refusal
            is told on that lane.
    """

    type: str
    generates: bool
    asked: AskedResponse | None
    stream_id: str = ""
    steer_json: str = ""
    refusal: Refusal | None = None

    def response(self) -> AskedResponse:
        """What a `response.create` asks for.

        Raises:
            InvalidRequestError: It is wrong.
        """
        if self.refusal is not None:
            raise self.refusal.error()
        assert self.asked is not None, "it is a `response.create`"
        return self.asked


@dataclass(frozen=True, slots=True)
class InputTokensBody:
    """Of /v1/responses/input_tokens.

    Attributes:
        refs: What of the store it names.
        body: None as long as that has to be read.
    """

    refs: Refs
    body: TokenizeBody | None


@dataclass(frozen=True, slots=True)
class ConversationBody:
    """Of the routes of conversations.

    Attributes:
        items_json: Whole items, a JSON array.
        metadata_json: A JSON object.
    """

    items_json: str
    metadata_json: str
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class DetokenizeBody:
    """Of /detokenize."""

    model: str | None
    message: Detokenize
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class ParseBody:
    """Of /v1/parse; the fields are those of `ParseRequest`.

    Attributes:
        custom_tools: Names of those among `tools` whose calls are told with a text as input.
        ignored: Fields within `tools` that no schema knows.
    """

    text: str
    model: str | None
    format: str | None
    reasoning_format: str | None
    tools_json: str | None
    custom_tools: frozenset[str]
    is_parallel: bool
    prompt_tail: str
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class ExecuteBody:
    """Of /v1/tools/execute.

    Attributes:
        arguments_json: A JSON object.
    """

    name: str
    arguments_json: str
