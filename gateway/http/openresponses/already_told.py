"""What earlier attempts at a response have told, so that the next one goes on behind it."""

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from gateway.errors import AnotherTextError

BEGINNINGS: Final = ("response.created", "response.queued", "response.in_progress")
_FAILURES: Final = ("error", "response.failed")
_ENDS: Final = ("response.completed", "response.incomplete")


class AlreadyTold:
    """What earlier attempts at a response have told; the next one goes on behind it.

    The same text is expected again, cut into other pieces: of its deltas as many characters are
    left out as were told of their item, and all other events that were told. What comes is compared
    with what was told, because the same request may well have another text by now: other weights,
    another model that stands in, or other last bits of a sum. An end is always told: no earlier
    attempt came to one.

    Args:
        events: In order, all attempts together.
        has_begun: Whether earlier ones have told that it is in progress.

    Attributes:
        has_begun: Whether they have told that it is in progress.
        has_output: Whether they have told more than that it began.
    """

    def __init__(self, events: Iterable[dict[str, Any]], *, has_begun: bool = False) -> None:
        self._others: deque[tuple[Any, ...]] = deque()
        pieces: dict[tuple[str, int], list[str]] = {}
        self.has_begun = has_begun
        for event in events:
            if event["type"] in BEGINNINGS:
                self.has_begun |= event["type"] == "response.in_progress"
            elif "delta" in event:
                pieces.setdefault(_place(event), []).append(event["delta"])
            else:
                self._others.append(_gist(event))
        self._texts = {place: "".join(those) for place, those in pieces.items()}
        self._num_read = dict.fromkeys(self._texts, 0)
        self.has_output = bool(self._texts or self._others)

    def passes(self, event: dict[str, Any]) -> bool:
        """Whether an event is told; of a delta only the rest, if there is one.

        Raises:
            AnotherTextError: It isn't what was told, or comes where more of that is expected.
        """
        kind = event["type"]
        if kind in BEGINNINGS:
            return not self.has_begun
        if kind in _FAILURES:
            return True
        if "delta" in event:
            return self._passes_delta(event)
        if kind in _ENDS:
            if self._others or any(map(self._is_unread, self._texts)):
                raise AnotherTextError
            return True
        is_known = bool(self._others)
        if is_known and self._others.popleft() != _gist(event):
            raise AnotherTextError
        # Events of an item either open it, or come when all of its text was told.
        if not is_known or kind.endswith(".done"):
            index = event["output_index"]
            if any(place[1] == index and self._is_unread(place) for place in self._texts):
                raise AnotherTextError
        return not is_known

    def _passes_delta(self, event: dict[str, Any]) -> bool:
        place, delta = _place(event), event["delta"]
        start = self._num_read.get(place, 0)
        told = self._texts.get(place, "")
        known = delta[: len(told) - start]
        if not told.startswith(known, start):
            raise AnotherTextError
        self._num_read[place] = start + len(known)
        rest = delta[len(known) :]
        if rest and self._others:
            # Its text was told to be over, or hadn't begun, when the next event was told.
            raise AnotherTextError
        event["delta"] = rest
        return bool(rest)

    def _is_unread(self, place: tuple[str, int]) -> bool:
        return self._num_read[place] < len(self._texts[place])


def _place(event: dict[str, Any]) -> tuple[str, int]:
    return event["type"], event["output_index"]


def _gist(event: dict[str, Any]) -> tuple[Any, ...]:
    """What must be the same of an event without a delta: texts are compared as deltas."""
    item = event.get("item") or {}
    return event["type"], event["output_index"], item.get("type"), item.get("name")
