"""Who is told over HTTP of what the audit log takes up: webhooks, as the auth worker knows them."""

import base64
import binascii
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the beginning of every secret
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64
"""Both as Standard Webhooks asks (https://www.standardwebhooks.com, `Signature scheme`)."""


@dataclass(slots=True)
class StoredWebhook:
    """A webhook; one object, which administration changes in place.

    Attributes:
        secret: Signs what is sent; the database holds it as it is.
        events: Globs of actions of the audit log.
        suspended_at: Unix seconds.
        after_seq: Of the audit log: everything up to here was sent, or concerns nobody.
        num_failed: Attempts for the next entry that failed.
        next_attempt_ms: Not before this, Unix milliseconds.
        failing_since_ms: When the first attempt failed since one succeeded, or since this process
            began or the webhook was reactivated; 0 where none did.
    """

    webhook_id: str
    url: str
    events: tuple[str, ...]
    secret: str = field(repr=False)
    suspended_at: int | None = None
    after_seq: int = 0
    num_failed: int = 0
    next_attempt_ms: int = 0
    failing_since_ms: int = 0

    def begin_anew(self) -> None:
        """Attempt at once, whatever failed before."""
        self.num_failed = self.next_attempt_ms = self.failing_since_ms = 0

    def wants(self, action: str) -> bool:
        """Whether it is told of an action."""
        return any(fnmatchcase(action, glob) for glob in self.events)


def signing_key(secret: str) -> bytes | None:
    """What a secret signs with; None when it is none."""
    if not secret.startswith(SECRET_PREFIX):
        return None
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES else None
