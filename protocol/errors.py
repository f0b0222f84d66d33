"""The error tree of the wire and the codes that may cross it.

PenstockError                  carries an ErrorCode, a message safe for clients, maybe a `param`
├── ProtocolError              the wire itself
│   ├── DecodeError            bytes that are no message of the expected union
│   ├── EncodeError            a message that MessagePack can't spell; its request fails
│   ├── MessageTooLargeError   a message beyond `max_message_bytes`
│   ├── VersionMismatchError   the peer speaks another major version
│   └── PeerOverflowError      a peer's queue is full; its requests fail, the process goes on
└── ConfigurationError         a setting that stops the start; names the setting

Each package hangs its own leaves below PenstockError. Over the wire an error is a `Failure`.
"""

from enum import StrEnum
from typing import Final

NO_API_KEY: Final = (
    "No API key was sent. Send one as `Authorization: Bearer psk-…` or `X-API-Key: psk-…`; whoever "
    "runs this server makes keys with `penstock keys create`."
)
"""What a caller without a key reads, whether the gateway or the auth worker refuses it."""


class ErrorCode(StrEnum):
    """Why something was refused or failed; the gateway has one table from code to HTTP status."""

    # The request is wrong (400).
    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    NO_CHAT_TEMPLATE = "no_chat_template"
    TEMPLATE_ERROR = "template_error"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    UNSUPPORTED_GRAMMAR = "unsupported_grammar"
    PREVIOUS_RESPONSE_NOT_FOUND = "previous_response_not_found"
    # The caller (401, 402, 403, 404, 409, 413, 422, 429).
    INVALID_API_KEY = "invalid_api_key"
    BUDGET_EXCEEDED = "budget_exceeded"
    PERMISSION_DENIED = "permission_denied"
    REFUSED_BY_HOOK = "refused_by_hook"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    CONVERSATION_LOCKED = "conversation_locked"
    REQUEST_TOO_LARGE = "request_too_large"
    REQUEST_IN_PROGRESS = "request_in_progress"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    INSUFFICIENT_QUOTA = "insufficient_quota"
    TOO_MANY_WRONG_KEYS = "too_many_wrong_keys"
    # The server (500, 503, 504).
    INTERNAL_ERROR = "internal_error"
    POISON_REQUEST = "poison_request"
    OVERLOADED = "overloaded"
    WORKER_UNAVAILABLE = "worker_unavailable"
    WORKER_LOST = "worker_lost"
    CREDIT_EXCEEDED = "credit_exceeded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    # Between processes only.
    VERSION_MISMATCH = "version_mismatch"
    FINGERPRINT_MISMATCH = "fingerprint_mismatch"
    UNKNOWN_LEASE = "unknown_lease"
    UNKNOWN_REQUEST = "unknown_request"


class PenstockError(Exception):
    """The base of every error of ours: a code, a message that clients may read, maybe a field."""

    code: ErrorCode = ErrorCode.INTERNAL_ERROR

    def __init__(
        self, message: str, *, code: ErrorCode | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class ProtocolError(PenstockError):
    """Something is wrong on the wire itself."""


class DecodeError(ProtocolError):
    """Bytes that are no message of the expected union."""

    code = ErrorCode.INVALID_REQUEST


class EncodeError(ProtocolError):
    """A message with a text or number that MessagePack can't spell."""


class MessageTooLargeError(ProtocolError):
    """A message beyond `max_message_bytes`."""

    code = ErrorCode.REQUEST_TOO_LARGE


class VersionMismatchError(ProtocolError):
    """The peer speaks another major version of the wire."""

    code = ErrorCode.VERSION_MISMATCH


class PeerOverflowError(ProtocolError):
    """A peer cannot take more: its queue reached its bound in bytes."""

    code = ErrorCode.OVERLOADED


class ConfigurationError(PenstockError):
    """A setting that stops the start; the message names the setting."""
