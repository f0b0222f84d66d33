"""What is logged of single requests; each line carries the request's id and its client's."""

import logging
from contextlib import AbstractContextManager
from typing import Protocol

from engine_worker.core.choice.request import Request
from protocol.errors import ErrorCode
from protocol.runtime import logs
from protocol.wire.messages import Failure, Finished, Generate

_OUR_FAULTS = frozenset({ErrorCode.INTERNAL_ERROR, ErrorCode.WORKER_LOST})

_log = logging.getLogger("penstock.engine")


class _Named(Protocol):
    """A command, or the engine's own request."""

    @property
    def request_id(self) -> str: ...

    @property
    def trace_id(self) -> str: ...


def about(request: _Named) -> AbstractContextManager[None]:
    """What is logged within is about this request."""
    return logs.about(request.request_id, request.trace_id)


def log_accepted(request: Request) -> None:
    """A choice was taken."""
    if _log.isEnabledFor(logging.DEBUG):
        with about(request):
            _log.debug(
                "choice %d accepted, attempt %d: %d prompt tokens, %d of an earlier attempt",
                request.choice,
                request.attempt,
                request.num_prompt_tokens,
                request.num_output_tokens,
            )


def log_refused(command: Generate, end: Failure) -> None:
    """A choice was not taken."""
    if _log.isEnabledFor(logging.DEBUG):
        with about(command):
            _log.debug("choice %d refused: %s: %s", command.choice, end.code, end.message)


def log_ended(request: Request, end: Finished | Failure) -> None:
    """A choice that was taken has ended; a failure of the engine itself is a warning."""
    if isinstance(end, Finished):
        level, reason = logging.DEBUG, str(end.finish_reason)
    else:
        level = logging.WARNING if end.code in _OUR_FAULTS else logging.DEBUG
        reason = f"{end.code}: {end.message}"
    if _log.isEnabledFor(level):
        with about(request):
            _log.log(
                level,
                "choice %d ended, attempt %d, %d output tokens: %s",
                request.choice,
                request.attempt,
                request.num_output_tokens,
                reason,
            )
