"""Messages between gateway and engine for classifying texts and pairs of texts."""

from protocol.wire.messages.base import Count, Message


class Classify(Message, frozen=True, tag="classify"):
    """Give a classifier's logits for texts, for pairs of texts, or for inputs that are token ids.

    Attributes:
        deadline_s: Remaining seconds when sent.
        texts: Single texts, or the first ones of pairs: as many as `second_texts`, or one for all.
        second_texts: Of pairs; empty for single texts.
        token_ids: Inputs that are token ids; then both lists of texts are empty.
        truncate_prompt_tokens: Cut longer inputs, of a pair the longer text first; -1 to what the
            model takes; None refuses them.
        max_second_tokens: Second texts are cut to so many tokens before; None leaves them.
        priority: Lower runs first.
        tenant: Whose turn it is.
        trace_id: The client's `X-Request-ID`, for logs.
    """

    request_id: str
    deadline_s: float
    texts: tuple[str, ...] = ()
    second_texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    truncate_prompt_tokens: int | None = None
    max_second_tokens: int | None = None
    priority: int = 0
    tenant: str = ""
    trace_id: str = ""

    @property
    def num_inputs(self) -> int:
        """Texts, pairs or inputs of token ids."""
        return len(self.second_texts) or len(self.texts) + len(self.token_ids)


class Classified(Message, frozen=True, tag="classified"):
    """The answer to Classify.

    Attributes:
        num_labels: L, as many as the engine's offer names.
        logits: [N, L] float32 little-endian, row by row, in the order of the inputs.
        num_tokens: Tokens of each input as it was computed, [N].
        truncated: Indices of inputs that were cut.
    """

    request_id: str
    num_labels: Count
    logits: bytes
    num_tokens: tuple[int, ...]
    truncated: tuple[int, ...] = ()
