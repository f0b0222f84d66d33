"""Messages between gateway and engine for embeddings: texts in, vectors out."""

from protocol.wire.messages.base import Message


class Embed(Message, frozen=True, tag="embed"):
    """Embed texts, or prompts that are token ids already; exactly one of both lists is filled.

    Attributes:
        deadline_s: Remaining seconds when sent.
        dimensions: Keep so many leading numbers of each vector and normalise again; None all.
        truncate_prompt_tokens: Cut longer inputs; -1 to what the model takes; None refuses them.
        prompt_name: Of the prompt that stands before texts, of those that the engine offers; empty
            is what the model has by default.
        priority: Lower runs first.
        tenant: Whose turn it is.
        trace_id: The client's `X-Request-ID`, for logs.
    """

    request_id: str
    deadline_s: float
    texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    priority: int = 0
    tenant: str = ""
    trace_id: str = ""
    prompt_name: str = ""


class Embedded(Message, frozen=True, tag="embedded"):
    """The answer to Embed.

    Attributes:
        num_dimensions: D, numbers a vector.
        vectors: [N, D] float32 little-endian, row by row, in the order of the inputs.
        num_tokens: Tokens of each input, [N].
    """

    request_id: str
    num_dimensions: int
    vectors: bytes
    num_tokens: tuple[int, ...]
