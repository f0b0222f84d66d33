"""Claims and answers of administrators' requests with an `Idempotency-Key`, judged."""

from typing import Final

from auth_worker.clock import Clock
from auth_worker.errors import ActorNotAllowedError, InvalidCommandError
from auth_worker.principals.keys import ANONYMOUS_KEY_ID, KeyDirectory
from auth_worker.principals.roles import OF_ADMINS_ALONE
from auth_worker.records.operations import ClaimAnswerRow, KeepAnswerRow
from protocol.wire.messages import ClaimAnswer, KeepAnswer

DIGEST_BYTES: Final = 32
MAX_ANSWER_BYTES: Final = 64 * 1024


def claim_row(command: ClaimAnswer, keys: KeyDirectory, clock: Clock) -> ClaimAnswerRow:
    """What to write for a claim.

    Raises:
        ActorNotAllowedError: Who asks administers nothing.
        InvalidCommandError: A digest is none.
    """
    _check(command, keys, clock)
    if len(command.fingerprint) != DIGEST_BYTES:
        raise InvalidCommandError("A fingerprint has 32 bytes.")
    return ClaimAnswerRow(
        command.name, command.actor.key_id, command.fingerprint, int(clock.wall_s() * 1000)
    )


def keep_row(command: KeepAnswer, keys: KeyDirectory, clock: Clock) -> KeepAnswerRow:
    """What to write of an answer.

    Raises:
        ActorNotAllowedError: Who asks administers nothing.
        InvalidCommandError: The answer is too large.
    """
    _check(command, keys, clock)
    if len(command.answer) > MAX_ANSWER_BYTES:
        raise InvalidCommandError(f"An answer has at most {MAX_ANSWER_BYTES} bytes.")
    return KeepAnswerRow(command.name, command.actor.key_id, command.answer)


def _check(command: ClaimAnswer | KeepAnswer, keys: KeyDirectory, clock: Clock) -> None:
    actor = command.actor
    key = None
    if actor.key_id != ANONYMOUS_KEY_ID:
        key = keys.acting(actor.key_id, actor.key_digest)
    # A key that has just ended itself, or lost its scopes, may still say what came of that.
    may_begin = key is not None and (
        isinstance(command, KeepAnswer)
        or (key.is_active(clock.wall_s()) and not key.scopes.isdisjoint(OF_ADMINS_ALONE))
    )
    if not may_begin:
        raise ActorNotAllowedError("This needs an active key of an administrator.")
    if len(command.name) != DIGEST_BYTES:
        raise InvalidCommandError("A name has 32 bytes.")
