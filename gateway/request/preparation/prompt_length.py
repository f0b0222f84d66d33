"""Refuses prompts that can't fit a model's context before anybody tokenises them.

Only what a client gave as text or as token ids: a chat template may leave out most of a history.
The messages are the engines' own.
"""

from collections.abc import Sequence

from gateway.errors import InvalidRequestError
from protocol.errors import ErrorCode
from protocol.wire.messages import Classify, Embed, EngineOffer, Prepare

MANY_IDS = 128 * 1024
"""A body with more token ids is so large that its caller was known before it was read; too many of
them are refused where the body is parsed, before anything is done for each."""


def check_prompts(prepares: Sequence[Prepare], offer: EngineOffer) -> None:
    """Refuse prompts of completions by their length.

    Raises:
        InvalidRequestError: `context_length_exceeded`; with the length, or the least it can be.
    """
    for prepare in prepares:
        if prepare.kind != "completion" or prepare.truncate_prompt_tokens is not None:
            continue
        least, is_exact = _least_tokens(prepare.prompt, prepare.prompt_token_ids, offer)
        if prepare.suffix is not None:
            behind, _ = _least_tokens(prepare.suffix, None, offer)
            least, is_exact = least + behind, False
        if least + (prepare.max_tokens or 1) > offer.max_model_len:
            wanted = prepare.max_tokens
            output = "at least 1 output token" if wanted is None else f"{wanted} output tokens"
            raise InvalidRequestError(
                f"This model's maximum context length is {offer.max_model_len} tokens. However, "
                f"you requested {output} and your prompt contains "
                f"{'' if is_exact else 'at least '}{least} input tokens. Shorten the prompt or ask "
                "for fewer output tokens.",
                code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                param="prompt",
            )


def check_inputs(message: Embed | Classify, offer: EngineOffer) -> None:
    """Refuse inputs of embeddings, or texts to be classified, by their length.

    Of pairs the first texts alone are looked at.

    Raises:
        InvalidRequestError: `context_length_exceeded`, naming the first input that is too long.
    """
    if message.truncate_prompt_tokens is not None:
        return
    rows = [_least_tokens(text, None, offer) for text in message.texts]
    rows += [_least_tokens(None, ids, offer) for ids in message.token_ids]
    for index, (least, is_exact) in enumerate(rows):
        if least > offer.max_model_len:
            raise InvalidRequestError(
                f"This model's maximum context length is {offer.max_model_len} tokens, but input "
                f"{index} has {'' if is_exact else 'at least '}{least}. Shorten it, or set "
                "'truncate_prompt_tokens' to -1.",
                code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                param="input",
            )


def _least_tokens(
    text: str | None, token_ids: tuple[int, ...] | None, offer: EngineOffer
) -> tuple[int, bool]:
    """The fewest tokens that a prompt can have, and whether it has just these."""
    if token_ids is not None:
        return len(token_ids), True
    if text is None or not offer.max_token_bytes:
        return 0, False
    num_bytes = len(text.encode("utf-8", "surrogatepass"))
    return -(-num_bytes // offer.max_token_bytes), False
