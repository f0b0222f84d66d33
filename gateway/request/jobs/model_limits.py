"""What a request may ask of one model, beyond what every request is checked for."""

from collections.abc import Iterable

from gateway.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedFieldError,
    WorkerUnavailableError,
)
from gateway.request.jobs.job import CHAT_ENDPOINT, GenerationJob
from gateway.request.preparation.prompt_length import check_prompts
from gateway.workers.engine_directory import EngineDirectory
from protocol.version import EXTRAS_VERSION, SURFACE_VERSION, ProtocolVersion
from protocol.wire.messages import EngineOffer, Prepare


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
    in_chat = job.endpoint == CHAT_ENDPOINT and options.num_top_logprobs
    top_name = "top_logprobs" if in_chat else "logprobs"
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
    wanted = {
        "chat_template": prepare.chat_template,
        "suffix": prepare.suffix,
        "cache_salt": prepare.cache_salt,
    }
    check_version(version, *[name for name, value in wanted.items() if value], since=EXTRAS_VERSION)
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
