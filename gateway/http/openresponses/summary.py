"""What a compaction answers: the user's messages, and one item that stands for all the rest."""

from collections.abc import Sequence
from typing import Any

import orjson

from gateway.errors import GatewayError
from gateway.http.openresponses.render import usage_object
from gateway.http.openresponses.sealing import sealed, with_summary
from gateway.http.openresponses.stored_items import with_ids
from gateway.json_numbers import loads
from gateway.request.delivery.events import ContentText, GenerationEvent
from protocol.wire.messages import Usage


class SummaryCollector:
    """Makes the answer of the events of one choice.

    Args:
        request_id: For ids.
        created: Unix seconds.
        kept_json: The items that stay, a JSON array.
        carried_json: Those that the summary carries, likewise.
    """

    def __init__(
        self, request_id: str, created: int, kept_json: str, carried_json: str = "[]"
    ) -> None:
        self._request_id = request_id
        self._created = created
        self._kept: list[dict[str, Any]] = loads(kept_json)
        self._carried_json = carried_json
        self._pieces: list[str] = []

    def add(self, events: Sequence[GenerationEvent]) -> None:
        """Take the events of one wake-up."""
        self._pieces += [event.text for event in events if isinstance(event, ContentText)]

    def body(self, usage: Usage) -> bytes:
        """The answer as JSON.

        Raises:
            GatewayError: There is no summary, and nothing may stand for what was said before.
        """
        text = "".join(self._pieces).strip()
        if not text:
            raise GatewayError(
                "The model has said nothing in place of a summary; keep the items, or try again."
            )
        summary = {
            "type": "compaction",
            "id": f"cmp_{self._request_id}_1",
            "encrypted_content": sealed(with_summary(text, self._carried_json)),
        }
        return orjson.dumps(
            {
                "id": f"resp_{self._request_id}",
                "object": "response.compaction",
                "created_at": self._created,
                "output": [*with_ids(self._kept, self._request_id), summary],
                "usage": usage_object(usage),
            }
        )
