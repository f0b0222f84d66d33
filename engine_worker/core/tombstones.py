"""Remembers which attempts of which choices are over, within a bound."""

from collections import OrderedDict
from typing import TypeVar

from protocol.wire.messages import ALL_CHOICES

ChoiceKey = tuple[str, str, int]
"""Gateway, request and choice."""

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class Tombstones:
    """What happened to the most recent choices; the oldest are forgotten beyond the bound.

    What is forgotten could only matter to a message that is older than `max_entries` choices.
    """

    def __init__(self, max_entries: int = 10_000) -> None:
        self._max_entries = max_entries
        self._ended: OrderedDict[tuple[ChoiceKey, int], None] = OrderedDict()
        self._latest: OrderedDict[ChoiceKey, int] = OrderedDict()
        self._aborted: OrderedDict[ChoiceKey, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ended) + len(self._latest) + len(self._aborted)

    def put_started(self, key: ChoiceKey, attempt: int) -> None:
        """An attempt is being worked on; older ones are stale from now on."""
        self._put(self._latest, key, max(attempt, self._latest.get(key, attempt)))

    def put_aborted(self, key: ChoiceKey, attempt: int) -> None:
        """Attempts up to this one are not wanted, of one choice or of `ALL_CHOICES`."""
        self._put(self._aborted, key, max(attempt, self._aborted.get(key, attempt)))

    def put_ended(self, key: ChoiceKey, attempt: int) -> None:
        """The terminal event of an attempt was sent."""
        self._put(self._ended, (key, attempt), None)

    def has_ended(self, key: ChoiceKey, attempt: int) -> bool:
        """Whether this very attempt had its terminal event."""
        return (key, attempt) in self._ended

    def is_aborted(self, key: ChoiceKey, attempt: int) -> bool:
        """Whether this attempt was aborted, by itself or with its whole request."""
        gateway_id, request_id, _ = key
        return any(
            attempt <= self._aborted.get(candidate, attempt - 1)
            for candidate in (key, (gateway_id, request_id, ALL_CHOICES))
        )

    def is_stale(self, key: ChoiceKey, attempt: int) -> bool:
        """Whether a newer attempt was started here before."""
        return attempt < self._latest.get(key, attempt)

    def forget_gateway(self, gateway_id: str) -> None:
        """Drop what belongs to a gateway that is gone."""
        for entries in (self._latest, self._aborted):
            for key in [key for key in entries if key[0] == gateway_id]:
                del entries[key]
        for entry in [entry for entry in self._ended if entry[0][0] == gateway_id]:
            del self._ended[entry]

    def _put(self, entries: OrderedDict[KeyT, ValueT], key: KeyT, value: ValueT) -> None:
        entries[key] = value
        entries.move_to_end(key)
        if len(entries) > self._max_entries:
            entries.popitem(last=False)
