"""Meters of which a hard one grants only what was committed beforehand, a slice at a time; pure.

`granted` is how far what counts and what is held together may grow, and the database knows it. So
a process that is killed leaves behind how much it may have granted at most; `unknown` is what of
that nobody has accounted for since, and it stays taken until all such requests must have ended.
The same holds for what is freed later by a lease that may have ended before the kill, which forgot
its end: others may have been granted just that.
"""

import math
from typing import Final, Protocol

from auth_worker.decisions.meters import Meter, SlidingMeter, SlotKeeper, steps_of, warn_at
from auth_worker.principals.limit_rules import Limit
from auth_worker.records.limit_usage import CounterRow

SLICE_SHARE: Final = 16
SLICE_REQUESTS: Final = 16
"""A slice is a sixteenth of the amount, or enough for sixteen requests like the current one."""
SLICE_OF_SLIDING: Final = -1
"""The `begins_at` of the row that keeps the slice of a sliding window; slots begin later."""
RESTORED_LATE_S: Final = 2.0
"""A slot that was restored leaves up to a second later than it would have before."""


class FixedMeter(Meter):
    """A window with a begin and an end: a day, a month, a custom span, or all time.

    Args:
        begins_s: On the wall clock, as `ends_s`.
        counter_id: Under which the database counts it.
        carried: What the window before left to this one.
        is_open: Whether anything may be used in it.
        keeper: Hears each time that its use passes a threshold.

    Attributes:
        left: What it has left to the next window, and grants no more.
    """

    __slots__ = (
        *("_keeper", "asked", "begins_s", "carried", "counter_id", "ends_s"),
        *("event_at", "granted", "has_refused", "is_open", "left", "unknown"),
    )

    def __init__(
        self,
        limit: Limit,
        end_user: str,
        amount: int,
        *,
        begins_s: float,
        ends_s: float,
        counter_id: int,
        carried: int = 0,
        is_open: bool = True,
        keeper: SlotKeeper | None = None,
    ) -> None:
        super().__init__(limit, end_user, amount)
        self._keeper = keeper
        self.has_refused = False
        self.begins_s = begins_s
        self.ends_s = ends_s
        self.counter_id = counter_id
        self.carried = carried
        self.is_open = is_open
        self.left = 0
        self.granted = 0
        self.asked = 0  # the slice on its way to the disk; 0 = none
        self.unknown = 0
        self.room = bound_of(self)
        self.event_at = _next_warning(limit, amount, 0)
        set_low(self, 0)

    @property
    def row(self) -> CounterRow:
        """What the database should remember of it, but for its use."""
        return CounterRow(
            self.counter_id,
            self.limit.limit_id,
            self.end_user,
            int(max(0.0, self.begins_s)),
            self.granted,
            self.carried,
        )

    @property
    def held(self) -> int:
        """What running requests hold, and what those of a killed process may have held."""
        return bound_of(self) - self.total - self.room

    def change(self, limit: Limit, amount: int) -> None:
        """See `Meter.change`."""
        before = bound_of(self)
        self.limit, self.amount = limit, amount
        self.room += bound_of(self) - before
        self.warn_at = warn_at(limit, amount)
        self.event_at = _next_warning(limit, amount, self.total)
        set_low(self, 0)

    def settle(self, now_s: float, num_held: int, num_used: int) -> None:
        """See `Meter.settle`."""
        self.total += num_used
        self.room += num_held - num_used
        if self.total >= self.event_at:
            self._note_crossing()

    def correct(self, num_more: int, *, were_unknown: bool = False) -> None:
        """So much more was used than was counted; less, where it is negative.

        Args:
            num_more: The difference.
            were_unknown: It was used by requests of a killed process: it comes out of what was
                kept for them.
        """
        if were_unknown:
            take_unknown(self, num_more)
        self.total += num_more
        self.room -= num_more
        if self.total >= self.event_at:
            self._note_crossing()

    def restore(self, used: int, granted: int) -> None:
        """What the database remembers of it."""
        self.total, self.granted = used, granted
        self.room = bound_of(self) - used
        self.event_at = _next_warning(self.limit, self.amount, used)
        set_low(self, 0)

    def leave(self, amount: int) -> None:
        """The next window may use so much of it."""
        before = bound_of(self)
        self.left += amount
        self.room += bound_of(self) - before
        set_low(self, 0)

    def hold_unknown(self, now_s: float, until_s: float) -> None:
        """After a restart: all of the slice that nobody accounts for may be in use."""
        self.unknown = max(0, self.room)
        self.room -= self.unknown
        self.due_s = until_s  # more may become unknown

    def refresh(self, now_s: float) -> None:
        """Every request of the killed process must have ended: nothing is kept for them now."""
        self.room += self.unknown
        self.unknown = 0
        self.due_s = math.inf

    def is_first_refusal(self, now_s: float) -> bool:
        """See `Meter.is_first_refusal`: once in a window."""
        is_first, self.has_refused = not self.has_refused, True
        return is_first

    def frees_s(self, now_s: float, wall_s: float, need: int) -> float | None:
        """See `Meter.frees_s`."""
        if self.is_open and grantable(self) - self.total >= need:
            return None
        may_fit = need <= self.amount or not self.is_open
        return max(0.0, self.ends_s - wall_s) if may_fit and self.renews else math.inf

    @property
    def renews(self) -> bool:
        """Whether there is another window after it."""
        return self.limit.auto_renews or not self.is_open

    def reset_s(self, now_s: float, wall_s: float) -> float:
        """See `Meter.reset_s`."""
        return max(0.0, self.ends_s - wall_s)

    def _note_crossing(self) -> None:
        self.event_at = _next_warning(self.limit, self.amount, self.total)
        if self._keeper is not None:
            self._keeper.note_crossing(self)


class SliceKeeper(SlotKeeper, Protocol):
    """Keeps the slices of sliding windows as well."""

    def save_slice(self, meter: "SlidingBudget") -> None:
        """A slice became smaller; nobody waits for it."""
        ...


class SlidingBudget(SlidingMeter):
    """Money in the last minute, hour or day.

    What counts in it becomes less as time goes by, and its slice is then made smaller, so that
    little is kept back after a kill. The unknown counts from when somebody tells of it, and is
    released only when its leases must have ended: both are later than it was used.

    Args:
        counter_id: Of the row that keeps its slice.
    """

    __slots__ = (
        *("_leaves_s", "_slices", "asked", "counter_id", "granted", "need"),
        *("unknown", "unknown_until_s"),
    )

    def __init__(
        self,
        limit: Limit,
        end_user: str,
        amount: int,
        *,
        keeper: SliceKeeper | None = None,
        counter_id: int = 0,
    ) -> None:
        super().__init__(limit, end_user, amount, keeper)
        self._leaves_s = -math.inf
        self._slices = keeper
        self.counter_id = counter_id
        self.granted = 0
        self.asked = 0  # the slice on its way to the disk; 0 = none
        self.need = 0  # of the request that asked last
        self.unknown = 0
        self.unknown_until_s = math.inf
        self.room = bound_of(self)
        set_low(self, 0)

    @property
    def row(self) -> CounterRow:
        """What the database should remember of it, besides its slots."""
        limit_id = self.limit.limit_id
        return CounterRow(self.counter_id, limit_id, self.end_user, SLICE_OF_SLIDING, self.granted)

    @property
    def held(self) -> int:
        """What running requests hold, and what those of a killed process may have held."""
        return bound_of(self) - self.total - self.room

    @property
    def reserved(self) -> int:
        """Without what `total` has as well: it may have left before a kill, and others hold it."""
        return max(0, self.held - self._leaving())

    def change(self, limit: Limit, amount: int) -> None:
        """See `Meter.change`."""
        before, room = bound_of(self), self.room
        super().change(limit, amount)
        self.room = room + bound_of(self) - before
        set_low(self, self.need)

    def restore_slice(self, granted: int, counter_id: int) -> None:
        """What the database remembers of its slice."""
        self.counter_id = counter_id
        on_granted(self, granted, 0)

    def hold_unknown(self, now_s: float, until_s: float) -> None:
        """As of a `FixedMeter`; what may have left before the kill made room for others then."""
        self._leaves_s = now_s + RESTORED_LATE_S - self.span_s
        self.unknown = max(0, self.room + self._leaving())
        self.room -= self.unknown
        self.unknown_until_s = until_s
        self.due_s = min(self.due_s, until_s)

    def refresh(self, now_s: float) -> None:
        """Let the slots go that are older than the span, and what is unknown when it has ended."""
        super().refresh(now_s)
        if now_s >= self.unknown_until_s:
            self.room += self.unknown
            self.unknown, self.unknown_until_s = 0, math.inf
        self.due_s = min(self.due_s, self.unknown_until_s)
        if self.limit.is_hard and not self.asked:
            self._shrink()

    def _leaving(self) -> int:
        """What still counts here and may have left before a kill."""
        return sum(slot.amount for slot in self._slots if slot.ends_s <= self._leaves_s)

    def _shrink(self) -> None:
        """Make the slice smaller here, then on the disk: what the disk says is never less."""
        ahead = slice_of(self.amount, self.need)
        enough = bound_of(self) - self.room + 2 * ahead
        if self.granted - enough > ahead:
            self._grant_up_to(enough)

    def release_if_idle(self, now_s: float) -> None:
        """Keep no slice where nothing counts or is held: a kill would hold all of it back.

        The next request waits for the disk, as the first one did.
        """
        self.refresh_due(now_s)
        is_used = self.total or self.held or self.asked
        if self.limit.is_hard and self.granted and not is_used:
            self._grant_up_to(0)

    def _grant_up_to(self, granted: int) -> None:
        before = bound_of(self)
        self.granted = granted
        self.room += bound_of(self) - before
        set_low(self, self.need)
        if self._slices is not None:
            self._slices.save_slice(self)


SlicedMeter = FixedMeter | SlidingBudget


def grantable(meter: SlicedMeter) -> int:
    """What may be used at most."""
    return meter.amount - meter.left if isinstance(meter, FixedMeter) else meter.amount


def bound_of(meter: SlicedMeter) -> int:
    """What may be used as of now: with a hard limit no more than the slice."""
    most = grantable(meter)
    return min(most, meter.granted) if meter.limit.is_hard else most


def slice_of(amount: int, need: int) -> int:
    """How large a slice should be for requests of such a need."""
    return max(amount // SLICE_SHARE, SLICE_REQUESTS * need)


def next_slice(meter: SlicedMeter, need: int) -> int:
    """How far the next slice should reach for a request of that need, and for others."""
    used_or_held = bound_of(meter) - meter.room
    return min(grantable(meter), used_or_held + need + slice_of(meter.amount, need))


def on_granted(meter: SlicedMeter, granted: int, need: int) -> None:
    """A slice is durable."""
    before = bound_of(meter)
    meter.granted = max(meter.granted, granted)
    meter.asked = 0
    meter.room += bound_of(meter) - before
    if isinstance(meter, SlidingBudget):
        meter.need = need
    set_low(meter, need)


def take_unknown(meter: SlicedMeter, amount: int) -> None:
    """A request of the killed process turned up: its part is accounted for by itself now."""
    known = max(0, min(amount, meter.unknown))
    meter.unknown -= known
    meter.room += known


def keep_unknown(meter: SlicedMeter, freed: int, until_s: float) -> None:
    """What was just freed may have been granted by the killed process to somebody unknown.

    Never more than there is room now: what is known to be held counts already. A meter that came
    after the start was not told until when, as `hold_unknown` tells.
    """
    kept = min(freed, max(0, meter.room))
    meter.unknown += kept
    meter.room -= kept
    meter.due_s = min(meter.due_s, until_s)
    if isinstance(meter, SlidingBudget):
        meter.unknown_until_s = until_s


def set_low(meter: SlicedMeter, need: int) -> None:
    """See from which room on the next slice is asked for."""
    meter.uncommitted = grantable(meter) - bound_of(meter)
    is_whole = not meter.limit.is_hard or meter.granted >= grantable(meter)
    meter.low = 0 if is_whole else slice_of(meter.amount, need) // 2


def _next_warning(limit: Limit, amount: int, total: int) -> float:
    """What is to be used for the next threshold to be passed."""
    steps = steps_of(limit, amount).values()
    return next((step for step in steps if step > total), math.inf)
