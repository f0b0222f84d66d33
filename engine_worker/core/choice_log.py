"""What is logged of single choices; each line carries the request's id and its client's."""

import logging
from contextlib import AbstractContextManager
from typing import Protocol

from engine_worker.core.choice.choice import Choice
from protocol.errors import ErrorCode
from protocol.runtime import logs
from protocol.wire.messages import Failure, Finished, Generate

_OUR_FAULTS = frozenset({ErrorCode.INTERNAL_ERROR, ErrorCode.WORKER_LOST})

_log = logging.getLogger("penstock.engine")


class _Named(Protocol):
    """A command, or the engine's choice."""

    @property
    def request_id(self) -> str: ...

    @property
    def trace_id(self) -> str: ...


def about(choice: _Named) -> AbstractContextManager[None]:
    """What is logged within is about this choice."""
    return logs.about(choice.request_id, choice.trace_id)


def log_accepted(choice: Choice) -> None:
    """A choice was taken."""
    if _log.isEnabledFor(logging.DEBUG):
        with about(choice):
            _log.debug(
                "choice %d accepted, attempt %d: %d prompt tokens, %d of an earlier attempt",
                choice.index,
                choice.attempt,
                choice.num_prompt_tokens,
                choice.num_output_tokens,
            )


def log_refused(command: Generate, end: Failure) -> None:
    """A choice was not taken."""
    if _log.isEnabledFor(logging.DEBUG):
        with about(command):
            _log.debug("choice %d refused: %s: %s", command.choice, end.code, end.message)


def log_ended(choice: Choice, end: Finished | Failure) -> None:
    """A choice that was taken has ended; a failure of the engine itself is a warning."""
    if isinstance(end, Finished):
        level, reason = logging.DEBUG, str(end.finish_reason)
    else:
        level = logging.WARNING if end.code in _OUR_FAULTS else logging.DEBUG
        reason = f"{end.code}: {end.message}"
    if _log.isEnabledFor(level):
        with about(choice):
            _log.log(
                level,
                "choice %d ended, attempt %d, %d output tokens: %s",
                choice.index,
                choice.attempt,
                choice.num_output_tokens,
                reason,
            )
