"""One request for embeddings from its authorisation to its settlement."""

import asyncio
from dataclasses import dataclass

from msgspec import structs

from gateway.errors import (
    DeadlineExceededError,
    ModelNotFoundError,
    RemoteFailureError,
    ShuttingDownError,
    UnsupportedFieldError,
    WorkerLostError,
    WorkerUnavailableError,
)
from gateway.request.caller import Caller
from gateway.request.choice import is_retryable
from gateway.request.lease import RequestLease
from gateway.request.services import Services
from protocol.wire.messages import Authorize, Embed, Embedded, EngineOffer, LimitState, Usage

EMBEDDING_ENDPOINT = "/v1/embeddings"
_MAX_RETRIES = 3


@dataclass(frozen=True)
class EmbeddingJob:
    """What is asked for.

    Attributes:
        model: Public name.
        question: For the engine; its id and deadline are set when it is sent.
        num_bytes: Of all inputs: no text has more tokens, its special ones apart.
    """

    model: str
    question: Embed
    num_bytes: int

    @property
    def num_inputs(self) -> int:
        """Texts or lists of token ids."""
        return len(self.question.texts) + len(self.question.token_ids)


@dataclass(frozen=True)
class EmbeddingResult:
    """The answer, with where the caller stands."""

    embedded: Embedded
    usage: Usage
    limits: LimitState


async def embed(
    services: Services, job: EmbeddingJob, caller: Caller, request_id: str
) -> EmbeddingResult:
    """Authorise, compute at an engine (at another one if it dies), and settle.

    Raises:
        GatewayError: It could not be done; whatever was reserved is given back.
    """
    if services.is_draining:
        raise ShuttingDownError()
    services.outbox.check_room()
    offer = services.engines.offer(job.model)
    lease = RequestLease(services.auth, request_id)
    await lease.reserve(
        Authorize(
            request_id=request_id,
            key_digest=caller.key_digest,
            endpoint=EMBEDDING_ENDPOINT,
            model=job.model,
            address=caller.address,
            prompt_tokens=_upper_bound(job, offer),
        )
    )
    usage = Usage()
    timeout_s = services.settings.request_timeout_s
    try:
        _check(services, job, offer)
        async with asyncio.timeout(timeout_s):
            bound = _upper_bound(job, offer)
            embedded = await _ask(services, job, lease, request_id, bound)
        usage = Usage(prompt_tokens=sum(embedded.num_tokens))
    except TimeoutError:
        lease.settle(services.outbox, usage, "failed")
        raise DeadlineExceededError(
            f"The request took longer than {timeout_s:g} seconds."
        ) from None
    except asyncio.CancelledError:
        lease.settle(services.outbox, usage, "aborted")
        raise
    except BaseException:
        lease.settle(services.outbox, usage, "failed")
        raise
    lease.settle(services.outbox, usage, "finished")
    services.metrics.tokens.labels(job.model, "prompt").inc(usage.prompt_tokens)
    return EmbeddingResult(embedded, usage, lease.limits)


def _upper_bound(job: EmbeddingJob, offer: EngineOffer | None) -> int:
    """Tokens of all inputs at most, before anything is tokenised."""
    bound = job.num_bytes + 2 * job.num_inputs
    return bound if offer is None else min(bound, offer.max_model_len * job.num_inputs)


def _check(services: Services, job: EmbeddingJob, offer: EngineOffer | None) -> None:
    if offer is None:
        if job.model in services.settings.models:
            raise WorkerUnavailableError(f"The model `{job.model}` is still starting.")
        known = {*services.engines.models(), *services.settings.models}
        raise ModelNotFoundError(job.model, tuple(sorted(known)))
    if "embeddings" not in offer.capabilities:
        raise UnsupportedFieldError(
            f"The model `{job.model}` makes no embeddings; its engines can be told to with "
            "PENSTOCK_POOLING.",
            param="model",
        )


async def _ask(
    services: Services, job: EmbeddingJob, lease: RequestLease, request_id: str, bound: int
) -> Embedded:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + services.settings.request_timeout_s
    for retry in range(_MAX_RETRIES + 1):
        seat = await services.admission.acquire(
            job.model,
            tenant=lease.tenant,
            priority=lease.priority,
            tokens=bound,
            is_extra=retry > 0,
        )
        question = structs.replace(
            job.question,
            request_id=request_id,
            deadline_s=max(0.0, deadline - loop.time()),
            priority=lease.priority,
        )
        try:
            return await services.engines.embed(seat.engine, question)
        except (WorkerLostError, RemoteFailureError) as error:
            if retry == _MAX_RETRIES or not is_retryable(error):
                raise
        finally:
            services.admission.release(seat)
    raise AssertionError("the last retry returns or raises")
