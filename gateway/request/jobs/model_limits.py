"""What a request may ask of one model, beyond what every request is checked for.

What its engines can do and which ids it has; prompts that can't fit its context, before anybody
tokenises them; answers larger than this server sends, before anything is computed for them. Of
prompts only what a client gave as text or as token ids is looked at: a chat template may leave out
most of a history. The messages are the engines' own.
"""

from collections.abc import Iterable, Sequence

from gateway.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedFieldError,
    WorkerUnavailableError,
)
from gateway.request.jobs.job import CHAT_ENDPOINT, GenerationJob
from gateway.workers.engine_directory import EngineDirectory
from protocol.errors import ErrorCode
from protocol.version import EXTRAS_VERSION, SURFACE_VERSION, ProtocolVersion
from protocol.wire.messages import Classify, Embed, EngineOffer, Prepare

MANY_IDS = 128 * 1024
"""A body with more token ids is so large that its caller was known before it was read; too many of
them are refused where the body is parsed, before anything is done for each."""
TOKEN_BYTES = 6
"""Text of a token in an answer, escapes included."""
LOGPROB_BYTES = 96
"""One token with its log probability and its bytes, as JSON."""


def find_offer(directory: EngineDirectory, model: str, configured: tuple[str, ...]) -> EngineOffer:
    """What the engines of a model serve.

    Args:
        directory: The engines.
        model: As the client called it.
        configured: Names that are served sooner or later.

    Raises:
        WorkerUnavailableError: It is still starting.
        ModelNotFoundError: Nobody serves it; the message lists what there is.
    """
    offer = directory.offer(model)
    if offer is not None:
        return offer
    if model in configured:
        raise WorkerUnavailableError(f"The model `{model}` is still starting.")
    raise ModelNotFoundError(model, tuple(sorted({*directory.models(), *configured})))


def check_served(job: GenerationJob, offer: EngineOffer, version: ProtocolVersion) -> None:
    """Refuse what the engines of a model can't do, before anything is reserved or queued.

    Args:
        job: What is asked for.
        offer: What the engines serve.
        version: The oldest wire that one of them speaks.

    Raises:
        InvalidRequestError: A prompt that can't fit, a token id that the model doesn't have, or
            more log probabilities than its engines report; `param` names the field.
        UnsupportedFieldError: Log probabilities, and its engines report none; or what an engine
            of an older release would ignore.
    """
    # An engine that tells nothing of what it can do refuses by itself.
    if offer.capabilities and "completions" not in offer.capabilities:
        raise UnsupportedFieldError(
            f"The model `{offer.model}` only makes embeddings; use /v1/embeddings.",
            param="model",
        )
    check_prompts(job.prepares, offer)
    check_extras(job.prepares[0], offer, version)
    sampling = job.sampling
    if sampling.logprob_token_ids:
        check_version(version, "logprob_token_ids", since=EXTRAS_VERSION)
    if version < SURFACE_VERSION:
        wanted = {
            "logit_bias": sampling.logit_bias,
            "allowed_token_ids": sampling.allowed_token_ids,
            "bad_words": sampling.bad_words,
            "truncate_prompt_tokens": job.prepares[0].truncate_prompt_tokens,
            "echo": job.options.echoes,
        }
        check_version(version, *[name for name, value in wanted.items() if value])
    if job.names_token_ids:
        ids = {
            "logit_bias": [token_id for token_id, _ in sampling.logit_bias],
            "allowed_token_ids": sampling.allowed_token_ids or (),
            "stop_token_ids": sampling.stop_token_ids,
            "logprob_token_ids": sampling.logprob_token_ids,
        }
        for name, token_ids in ids.items():
            check_token_ids(name, token_ids, offer.vocab_size)
    options = job.options
    if not options.shows_logprobs and not options.ranks:
        return
    in_chat = job.endpoint == CHAT_ENDPOINT and options.num_top_logprobs
    top_name = job.logprobs_param or ("top_logprobs" if in_chat else "logprobs")
    for name, number in (
        (top_name, options.num_top_logprobs),
        ("best_of", options.engine_logprobs if options.ranks else None),
        ("prompt_logprobs", options.num_prompt_logprobs),
    ):
        _check_logprobs(name, number, offer)


def check_extras(prepare: Prepare, offer: EngineOffer, version: ProtocolVersion) -> None:
    """Refuse what a prompt asks of engines that can't do it, or that are older.

    Args:
        prepare: The prompt.
        offer: What the engines serve.
        version: The oldest wire that one of them speaks.

    Raises:
        UnsupportedFieldError: Naming the field.
    """
    if version < EXTRAS_VERSION:
        wanted = {
            "chat_template": prepare.chat_template,
            "suffix": prepare.suffix,
            "cache_salt": prepare.cache_salt,
        }
        names = [name for name, value in wanted.items() if value]
        check_version(version, *names, since=EXTRAS_VERSION)
    if prepare.suffix is not None and "fill_in_middle" not in offer.capabilities:
        raise UnsupportedFieldError(
            f"The model `{offer.model}` has no tokens for filling in the middle.", param="suffix"
        )


def unread_fields(job: GenerationJob, offer: EngineOffer) -> tuple[str, ...]:
    """Fields that the model's template never reads, and that clients send to models of any kind."""
    own = job.prepares[0].chat_template
    reads = "verbosity" in (offer.capabilities if own is None else own)
    return () if reads or not job.verbosity_param else (job.verbosity_param,)


def check_template(prepare: Prepare, *, is_allowed: bool) -> None:
    """Refuse a chat template of a client, unless the operator lets them send some.

    Raises:
        UnsupportedFieldError: Naming the field and the setting.
    """
    if prepare.chat_template is not None and not is_allowed:
        raise UnsupportedFieldError(
            "`chat_template` is not supported: templates come with the model, unless this server"
            " sets PENSTOCK_REQUEST_CHAT_TEMPLATES.",
            param="chat_template",
        )


def check_version(
    version: ProtocolVersion, *names: str, since: ProtocolVersion = SURFACE_VERSION
) -> None:
    """Refuse fields that came with a later release than an engine's.

    Raises:
        UnsupportedFieldError: Naming the first of them.
    """
    if names and version < since:
        raise UnsupportedFieldError(
            f"`{names[0]}` is not supported: an engine of this model runs an older release.",
            param=names[0],
        )


def check_token_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Refuse ids that a model doesn't have.

    Raises:
        InvalidRequestError: Naming the field and the first such id.
    """
    if not vocab_size:
        return  # an engine that doesn't tell checks by itself
    wrong = next((token_id for token_id in token_ids if token_id >= vocab_size), None)
    if wrong is not None:
        raise InvalidRequestError(
            f"Invalid `{name}`: the model has no token {wrong}; its ids are 0 to {vocab_size - 1}.",
            param=name,
        )


def _check_logprobs(name: str, number: int | None, offer: EngineOffer) -> None:
    if number is None or number <= offer.max_logprobs > 0:
        return
    if offer.max_logprobs == 0:
        raise UnsupportedFieldError(
            f"The engines of `{offer.model}` report no log probabilities, which `{name}` needs.",
            param=name,
        )
    raise InvalidRequestError(
        f"Invalid `{name}`: {number} is out of this model's range, 0 ≤ x ≤ {offer.max_logprobs}.",
        param=name,
    )


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


def check_answer_size(
    job: GenerationJob, prompt_tokens: Sequence[int], output_limits: Sequence[int], max_bytes: int
) -> None:
    """Refuse what would be answered with more than a client or this server can hold.

    A stream's output leaves as it is made, so only what it tells of its prompts counts.

    Args:
        job: What is asked for.
        prompt_tokens: Tokens of each prompt.
        output_limits: Output tokens at most of a choice of each prompt.
        max_bytes: Larger answers are refused.

    Raises:
        InvalidRequestError: With both numbers.
    """
    options = job.options
    estimate = 0
    per_prompt_token = TOKEN_BYTES if options.echoes or options.shows_token_ids else 0
    num_beside_prompt = options.engine_prompt_logprobs
    if num_beside_prompt is not None:
        per_prompt_token += (1 + num_beside_prompt) * LOGPROB_BYTES
    per_token = TOKEN_BYTES
    if options.num_top_logprobs is not None:
        num_beside = options.num_top_logprobs + options.num_wanted_logprobs
        per_token += (1 + num_beside) * LOGPROB_BYTES
    for num_prompt, num_output in zip(prompt_tokens, output_limits, strict=True):
        num_shown = options.num_choices if options.echoes else 1
        estimate += num_prompt * per_prompt_token * num_shown
        if not options.is_streaming and not job.discards_output:
            estimate += num_output * per_token * options.num_choices
    if estimate > max_bytes:
        raise InvalidRequestError(
            f"The answer could have {estimate} bytes, over this server's limit of {max_bytes} "
            "(PENSTOCK_MAX_ANSWER_BYTES). Ask for fewer choices, tokens or log probabilities, or "
            "for a stream.",
            param=(job.logprobs_param or "logprobs") if options.shows_logprobs else "n",
        )
