"""What a webhook is sent for an entry of the audit log, and its signature.

The format is that of Standard Webhooks (https://www.standardwebhooks.com), for which there are
verifying libraries in most languages.
"""

import base64
import hmac
import json
from datetime import UTC, datetime
from typing import NamedTuple

from auth_worker.principals.webhooks import signing_key
from protocol.wire.messages import AuditRecord


class WebhookMessage(NamedTuple):
    """One message, ready to be sent; its id is that of every attempt, and of nothing else."""

    message_id: str
    body: bytes

    def headers(self, secret: str, wall_s: float) -> dict[str, str]:
        """Headers of an attempt at this time.

        Raises:
            ValueError: The secret is none.
        """
        key = signing_key(secret)
        if key is None:
            raise ValueError("the webhook's secret is none")
        timestamp = str(int(wall_s))
        signed = f"{self.message_id}.{timestamp}.".encode() + self.body
        signature = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
        return {
            "Content-Type": "application/json",
            "webhook-id": self.message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{signature}",
        }


def message_of(entry: AuditRecord) -> WebhookMessage:
    """The message of an entry: its action is the type of the event."""
    at = datetime.fromtimestamp(entry.at_ms / 1000, UTC)
    event = {
        "type": entry.action,
        "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {
            "seq": entry.seq,
            "actor": entry.actor,
            "subject": entry.subject,
            "outcome": entry.outcome,
            "address": entry.address,
            "request_id": entry.request_id,
            "detail": json.loads(entry.detail),
        },
    }
    body = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    # The number alone comes again after a restore, and at the next server, to the same target.
    return WebhookMessage(f"msg_{entry.seq}_{entry.hash[:8].hex()}", body.encode())
