"""How the use of limits outlives the process: counters, slices, and what a booking counts in."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from auth_worker.principals.limit_rules import Measure

CHARGE_LETTERS: Final[dict[Measure, str]] = {
    "requests": "r",
    "tokens": "t",
    "prompt_tokens": "p",
    "completion_tokens": "c",
    "money": "m",
    "parallel": "",  # counts nothing that lasts
}


class CounterRow(NamedTuple):
    """One counter of a limit: a fixed window of it, or a slot of a sliding one.

    Attributes:
        counter_id: Never used again.
        limit_id: Of the limit.
        end_user: Whose count it is under a template; otherwise empty.
        begins_at: Of the window or slot, in Unix seconds.
        granted: Of a window of a hard limit: up to here the authority may grant.
        carried: What the window before left to this one.
        used: What was booked; written by bookings alone.
    """

    counter_id: int
    limit_id: str
    end_user: str
    begins_at: int
    granted: int = 0
    carried: int = 0
    used: int = 0


class SaveCounter(NamedTuple):
    """Remember a counter, or how far its slice reaches; its `used` stays."""

    row: CounterRow


class DropCounters(NamedTuple):
    """Forget counters that no window needs any more."""

    counter_ids: tuple[int, ...]


class Booked(NamedTuple):
    """The answer to a booking that wasn't the first of its lease: what the ledger changed by it.

    Attributes:
        changes: By how much counters moved.
        more: Prompt tokens, completion tokens and money that the lease's line has more than before.
    """

    changes: tuple[tuple[int, int], ...]
    more: tuple[int, int, int] = (0, 0, 0)


class Charged(Protocol):
    """What of a booking may count in a limit."""

    @property
    def prompt_tokens(self) -> int:
        """Of the prompt."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Of the output."""
        ...

    @property
    def cost_micros(self) -> int:
        """In micro-units."""
        ...

    @property
    def outcome(self) -> str:
        """How it ended; `unused` counts nowhere."""
        ...

    @property
    def charges(self) -> str:
        """See `charge_text`."""
        ...


def amounts_of(booking: Charged) -> list[tuple[int, int]]:
    """By how much a booking moves which counters."""
    if not booking.charges or booking.outcome == "unused":
        return []
    used = (1, booking.prompt_tokens, booking.completion_tokens, booking.cost_micros)
    return amounts_by(booking.charges, *used)


def amounts_by(
    charges: str, num_requests: int, prompt_tokens: int, completion_tokens: int, cost_micros: int
) -> list[tuple[int, int]]:
    """By how much bookings of the same charges move which counters, by their sums."""
    by_letter = {
        "r": num_requests,
        "t": prompt_tokens + completion_tokens,
        "p": prompt_tokens,
        "c": completion_tokens,
        "m": cost_micros,
    }
    return [(counter_id, by_letter[letter]) for counter_id, letter in charges_of(charges)]


def charge_text(charges: Iterable[tuple[int, str]]) -> str:
    """Counters and what of a booking they count, as the ledger keeps them: `12m,57t`."""
    return ",".join(f"{counter_id}{letter}" for counter_id, letter in charges if letter)


@lru_cache(maxsize=4096)
def charges_of(text: str) -> tuple[tuple[int, str], ...]:
    """Counter ids and letters of a charge text."""
    return tuple((int(part[:-1]), part[-1]) for part in text.split(",") if part)
