"""The gateway's error tree; each leaf carries an ErrorCode, and `error_table` its HTTP status.

PenstockError
├── GatewayError                 may carry `retry_after_s` and the caller's limits
│   ├── InvalidRequestError      400: a field is wrong; `param` names it
│   │   ├── UnsupportedFieldError    400: a documented field that is not served here
│   │   └── PreviousResponseNotFoundError    400: there is no such response to go on from
│   ├── NotOnThisPortError       404: the port has metrics and probes only
│   ├── NotOfferedError          404: a part of an API that this server doesn't have
│   ├── ForbiddenOriginError     403: Host or Origin is not on the allow-list
│   ├── ModelNotFoundError       404: lists the models there are
│   ├── StoredNotFoundError      404: no such response, conversation or item of this tenant
│   ├── ConversationLockedError  409: a response is being made in the conversation
│   ├── ToolNotFoundError        404: lists the tools of this server
│   ├── WorkerNotFoundError      404: no worker of this name is connected
│   ├── ToolPluginsError         500: the tools of this server can't be loaded
│   ├── RequestInProgressError   409: the request of this Idempotency-Key is still running
│   ├── IdempotencyKeyReusedError 422: its Idempotency-Key came with another request
│   ├── RequestTooLargeError     413
│   ├── DeniedError              the auth worker said no: 401, 402, 403 or 429
│   ├── OverloadedError          503: a queue, an outbox or a quota of ours is full
│   ├── WorkerUnavailableError   503: a part that the request needs is away
│   │   ├── ShuttingDownError        503, and the connection ends with it
│   │   └── StoreUnavailableError    503: the store of responses can't be used
│   ├── WorkerLostError          503 (or an event in the stream): a worker died under the request
│   │   ├── WeightsReplacedError     503 (likewise): its weights are served no more
│   │   └── AnotherTextError         (in a background response) it would go on with another text
│   ├── PoisonRequestError       500: engines die of this request
│   ├── DeadlineExceededError    504
│   ├── RemoteFailureError       a worker's Failure, with its code
│   └── ClientDisconnectedError  nobody is left to answer
└── ConfigurationError           (protocol) a setting that stops the start
"""

from collections.abc import Callable, Iterable
from typing import Final

from protocol.errors import ErrorCode, PenstockError
from protocol.wire.messages import Denied, Failure, LimitRefusal, LimitState, Usage
from protocol.wire.peers import DEATHS, LossReason


class GatewayError(PenstockError):
    """The end of a request, as its client will read it.

    Args:
        message: Safe for clients.
        param: The request field that is wrong, if one is.
        retry_after_s: When trying again makes sense.
        limits: Where the caller stands, for the `x-ratelimit-*` headers.
    """

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        limits: LimitState | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after_s = retry_after_s
        self.limits = limits


class InvalidRequestError(GatewayError):
    """The request is wrong, and the message says what to change."""

    code = ErrorCode.INVALID_REQUEST


class UnsupportedFieldError(InvalidRequestError):
    """A field or value that is documented, but that this server does not honour."""

    code = ErrorCode.UNSUPPORTED_PARAMETER


class PreviousResponseNotFoundError(InvalidRequestError):
    """There is no such response to go on from, or none of this tenant; the same words for both.

    Args:
        response_id: As the client named it.
        missing: What it goes on from in turn, if that is what is missing.
    """

    code = ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND

    def __init__(self, response_id: str, missing: str = "") -> None:
        shown = response_id[:200]
        message = f"Previous response with id '{shown}' not found."
        if missing:
            message = (
                f"Previous response with id '{shown}' can't be continued: it goes on from"
                f" '{missing}', which was deleted or has expired."
            )
        super().__init__(message, param="previous_response_id")


class ForbiddenOriginError(GatewayError):
    """A web page, or a name that is not ours, tries to reach a server that asks for no key."""

    code = ErrorCode.PERMISSION_DENIED


class RefusedByHookError(GatewayError):
    """A hook of the operator's refused the request.

    Args:
        reason: As the hook gave it.
        risk_score: 0 to 1; None where it gave none.
    """

    code = ErrorCode.REFUSED_BY_HOOK

    def __init__(self, reason: str, risk_score: float | None) -> None:
        super().__init__(reason or "The request was refused.")
        self.risk_score = risk_score


class ModelNotFoundError(GatewayError):
    """No such model; the message lists those there are.

    Args:
        model: As it was called.
        known: Those that whoever asks may see.
    """

    code = ErrorCode.MODEL_NOT_FOUND

    def __init__(self, model: str, known: tuple[str, ...]) -> None:
        self.model = model
        self.known = known
        there_are = ", ".join(f"`{name}`" for name in known) or "none yet"
        super().__init__(
            f"The model `{model}` does not exist here. Available models: {there_are}.",
            param="model",
        )

    def seen_by(self, may_see: Callable[[str], bool]) -> "ModelNotFoundError":
        """The same error, naming only models of which `may_see` says that the caller may."""
        return ModelNotFoundError(self.model, tuple(filter(may_see, self.known)))


class ModelUnnamedError(InvalidRequestError):
    """A request names no model, and there isn't just one; the message lists those there are.

    Args:
        known: Those that whoever asks may see.
    """

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known
        there_are = ", ".join(f"`{name}`" for name in known) or "none yet"
        super().__init__(f"Missing field `model`. Available models: {there_are}.", param="model")

    def seen_by(self, may_see: Callable[[str], bool]) -> "ModelUnnamedError":
        """The same error, naming only models of which `may_see` says that the caller may."""
        return ModelUnnamedError(tuple(filter(may_see, self.known)))


_HINTS: Final = {
    "response": " A response that its client waits for is there once it has ended; one that is made"
    " in the background from the beginning."
}
"""Why something that a client knows isn't there."""


class StoredNotFoundError(GatewayError):
    """Nothing of this id is stored, or it is another tenant's; the same words for both.

    Args:
        kind: What it would be.
        stored_id: As the client named it.
        param: The field that names it, where it isn't the path.
    """

    code = ErrorCode.NOT_FOUND

    def __init__(self, kind: str, stored_id: str, *, param: str | None = None) -> None:
        hint = _HINTS.get(kind, "")
        message = f"{kind.capitalize()} with id '{stored_id[:200]}' not found.{hint}"
        super().__init__(message, param=param)


class ConversationLockedError(GatewayError):
    """Somebody else's turn: a conversation is written by one at a time."""

    code = ErrorCode.CONVERSATION_LOCKED

    def __init__(self, conversation_id: str) -> None:
        super().__init__(
            f"A response is being made in the conversation '{conversation_id[:200]}'; please try"
            " again when it has ended.",
            param="conversation",
        )


class ToolNotFoundError(GatewayError):
    """No such tool; the message lists those there are."""

    code = ErrorCode.NOT_FOUND

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        there_are = ", ".join(f"`{tool}`" for tool in known)
        super().__init__(
            f"This server has no tool named `{name}`. Available tools: {there_are}.", param="name"
        )


class NotOnThisPortError(GatewayError):
    """The port of the metrics was asked for something else."""

    code = ErrorCode.NOT_FOUND

    def __init__(self, served: Iterable[str]) -> None:
        super().__init__(f"This port (PENSTOCK_METRICS_PORT) serves only {', '.join(served)}.")


class NotOfferedError(GatewayError):
    """A client asks for a part of its API that this server doesn't have."""

    code = ErrorCode.NOT_FOUND


class WorkerNotFoundError(GatewayError):
    """No worker of this name is connected to this gateway."""

    code = ErrorCode.NOT_FOUND

    def __init__(self, name: str) -> None:
        super().__init__(
            f"No worker `{name[:100]}` is connected to this gateway; GET /v1/admin/workers lists"
            " those that are.",
            param="name",
        )


class ResourceNotFoundError(GatewayError):
    """The caller has nothing of this kind with this id; somebody else may."""

    code = ErrorCode.NOT_FOUND

    def __init__(self, kind: str, resource_id: str) -> None:
        super().__init__(f"No such {kind}: `{resource_id:.64}`.")


class ToolPluginsError(GatewayError):
    """The packages that bring this server's tools can't be loaded; the log says why."""


class RequestInProgressError(GatewayError):
    """The request with this `Idempotency-Key` is still running; its answer comes later."""

    code = ErrorCode.REQUEST_IN_PROGRESS

    def __init__(self) -> None:
        super().__init__(
            "A request with this Idempotency-Key is still running; repeat yours in a moment.",
            param="Idempotency-Key",
            retry_after_s=1.0,
        )


class OutcomeUnknownError(GatewayError):
    """The request with this `Idempotency-Key` was begun, and nobody can say what came of it."""

    code = ErrorCode.REQUEST_IN_PROGRESS

    def __init__(self) -> None:
        super().__init__(
            "This request was begun before with this Idempotency-Key, and its answer can't be"
            " shown: it was lost on the way, or was for another secret of this key. Look whether it"
            " was done; to do it again, use another Idempotency-Key.",
            param="Idempotency-Key",
        )


class IdempotencyKeyReusedError(GatewayError):
    """The `Idempotency-Key` names another request."""

    code = ErrorCode.IDEMPOTENCY_KEY_REUSED

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was used with another body or route; a new request needs a new"
            " one.",
            param="Idempotency-Key",
        )


class RequestTooLargeError(GatewayError):
    """The body is over the limit."""

    code = ErrorCode.REQUEST_TOO_LARGE


class DeniedError(GatewayError):
    """The auth worker said no, or one of our own bounds of a caller did.

    Attributes:
        key_id: Whose request it was, as far as that is known.
        limit: The limit that refused it, with its figures.
        is_unpriced: A budget holds for the caller and the model has no price.
    """

    key_id: str = ""
    limit: LimitRefusal | None = None
    is_unpriced: bool = False

    @classmethod
    def from_message(cls, denied: Denied) -> "DeniedError":
        """The error of a `Denied`."""
        error = cls(
            denied.message,
            code=denied.code,
            retry_after_s=denied.retry_after_s,
            limits=denied.limits,
        )
        error.key_id = denied.key_id
        error.limit = denied.limit
        error.is_unpriced = denied.is_unpriced
        return error


class OverloadedError(GatewayError):
    """A bound of this server is reached; trying again later makes sense."""

    code = ErrorCode.OVERLOADED


class WorkerUnavailableError(GatewayError):
    """A part that the request needs is away."""

    code = ErrorCode.WORKER_UNAVAILABLE


class ShuttingDownError(WorkerUnavailableError):
    """This gateway takes nothing new; its client had better connect to another one."""

    def __init__(self) -> None:
        super().__init__("This server is shutting down; please try again.")


class StoreUnavailableError(WorkerUnavailableError):
    """The store of responses can't be used at the moment, or there is none."""


class WorkerLostError(GatewayError):
    """A worker died or vanished while it worked on the request.

    Args:
        message: Safe for clients.
        worker_id: The instance that was lost.
        reason: Why it was lost, as the socket saw it.
    """

    code = ErrorCode.WORKER_LOST

    def __init__(
        self, message: str, *, worker_id: str = "", reason: LossReason | None = None
    ) -> None:
        super().__init__(message)
        self.worker_id = worker_id
        self.reason = reason

    @property
    def is_death(self) -> bool:
        """Whether the work that ran there may have been the cause."""
        return self.reason in DEATHS


class WeightsReplacedError(WorkerLostError):
    """The last engine that could go on with a request left cleanly; others are there."""

    def __init__(self) -> None:
        super().__init__(
            "The engines that began this answer were replaced by another version that can't go on "
            "with it; please try again."
        )


class AnotherTextError(WorkerLostError):
    """A response that is made again has another text than the part that was told of it."""

    def __init__(self) -> None:
        super().__init__(
            "Part of this answer was told, and then it had to be made again, by other weights or "
            "with other rounding: its text is another one now, which can't go on behind that part. "
            "Please ask for it again."
        )


class PoisonRequestError(GatewayError):
    """Engines died of this request, the last one while it ran alone."""

    code = ErrorCode.POISON_REQUEST


class DeadlineExceededError(GatewayError):
    """The request took longer than `request_timeout_s`."""

    code = ErrorCode.DEADLINE_EXCEEDED


class RemoteFailureError(GatewayError):
    """A worker ended the request with a Failure.

    Attributes:
        usage: What it had computed until then; None where it says nothing of that.
    """

    usage: Usage | None = None

    @classmethod
    def from_message(cls, failure: Failure) -> "RemoteFailureError":
        """The error of a `Failure`."""
        error = cls(
            failure.message,
            code=failure.code,
            param=failure.param,
            retry_after_s=failure.retry_after_s,
        )
        error.usage = failure.usage
        return error


class ClientDisconnectedError(GatewayError):
    """The client went away; nobody is left to answer."""
