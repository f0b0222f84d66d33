"""How a stream has told its response: its events in order, and where it has cut the texts."""

from collections.abc import Iterator
from typing import Any

import orjson

Event = dict[str, Any]


class StreamScript:
    """Written beside a stream; with the response it is enough to tell the same events again.

    An entry is the type of an event, with the place of its item where it belongs to one. One entry
    stands for deltas in a row, with the characters of each, or with those and the number of its log
    probabilities.
    """

    def __init__(self) -> None:
        self._entries: list[list[Any]] = []

    def note(self, event: Event) -> None:
        """One more event."""
        kind, place = event["type"], event.get("output_index")
        if "delta" in event:
            length, logprobs = len(event["delta"]), event.get("logprobs")
            cut = [length, len(logprobs)] if logprobs else length
            last = self._entries[-1] if self._entries else []
            if len(last) == 3 and last[0] == kind and last[1] == place:
                last[2].append(cut)
            else:
                self._entries.append([kind, place, [cut]])
        elif kind == "error":
            told = {name: event[name] for name in ("code", "message", "param")}
            self._entries.append([kind, None, told])
        else:
            self._entries.append([kind] if place is None else [kind, place])

    def drop_end(self) -> None:
        """The last event, which is no delta, was told to nobody."""
        self._entries.pop()

    def as_json(self) -> bytes:
        """For the store."""
        return orjson.dumps(self._entries)


def cut_again(event: Event, cuts: list[Any], told: list[int]) -> Iterator[Event]:
    """The deltas of a text as a stream has cut it.

    Args:
        event: With the whole text as its delta.
        cuts: Of an entry of the script.
        told: Characters and log probabilities that came before; those of these deltas are added.
    """
    for cut in cuts:
        num_characters, num_logprobs = cut if isinstance(cut, list) else (cut, 0)
        begin, first = told
        told[:] = begin + num_characters, first + num_logprobs
        piece = {**event, "delta": event["delta"][begin : told[0]]}
        if "logprobs" in event:
            piece["logprobs"] = event["logprobs"][first : told[1]]
        yield piece
