"""What counts in one limit of one holder; `room` is kept up to date, so that asking is a compare.

A request is granted from the room of every meter that it concerns, holds that much of each until it
ends, and then counts with what it used. All times are arguments: `now_s` is monotonic, `wall_s` is
Unix time. Pure.
"""

import math
from collections.abc import Callable
from typing import Final

from auth_worker.principals.limit_rules import SLIDING_S, Limit

SLOTS_A_SPAN: Final = 60
"""A window of a minute has slots of a second, one of an hour of a minute, one of a day of 24."""
SLICE_SHARE: Final = 16
SLICE_REQUESTS: Final = 16
"""A slice is a sixteenth of the amount, or enough for sixteen requests like the current one."""


class Slot:
    """A piece of a sliding window: what was counted in it until it ends, on the monotonic clock."""

    __slots__ = ("amount", "counter_id", "ends_s")

    def __init__(self, ends_s: float, amount: int, counter_id: int) -> None:
        self.ends_s = ends_s
        self.amount = amount
        self.counter_id = counter_id


_NO_SLOT: Final = Slot(-math.inf, 0, 0)
"""Nothing is ever counted in it."""


class Meter:
    """One limit's count for one holder.

    Attributes:
        limit: As it is now.
        end_user: Whose count it is under a template; otherwise empty.
        amount: What may be used, with a raise and what was carried over.
        total: What was used and still counts.
        room: What may be granted: `amount` less `total` and what running requests hold.
        uncommitted: What else is free, once a slice of it is durable; see `FixedMeter`.
        due_s: From when on (monotonic) `refresh` has something to do.
        low: Below so much room a slice should be asked for; of a `FixedMeter` never below 0.
        warn_at: From so much used on, answers warn; infinite where nothing is to be said.
        is_gone: Whether it was released; another one counts in its place, if any.
    """

    __slots__ = (
        *("amount", "due_s", "end_user", "is_gone", "limit", "low", "room", "total"),
        *("uncommitted", "warn_at"),
    )

    def __init__(self, limit: Limit, end_user: str, amount: int) -> None:
        self.limit = limit
        self.end_user = end_user
        self.amount = amount
        self.total = 0
        self.room = amount
        self.uncommitted = 0
        self.due_s = math.inf
        self.low: float = -math.inf
        self.warn_at = _warn_at(limit, amount)
        self.is_gone = False

    @property
    def held(self) -> int:
        """What running requests hold."""
        return self.amount - self.total - self.room

    @property
    def free(self) -> int:
        """What is neither used nor held, whether its slice is committed or not."""
        return self.room + self.uncommitted

    def change(self, limit: Limit, amount: int) -> None:
        """The limit was changed; what was counted stays."""
        self.room += amount - self.amount
        self.limit, self.amount = limit, amount
        self.warn_at = _warn_at(limit, amount)

    def refresh(self, now_s: float) -> None:
        """Release what no longer counts."""

    def refresh_due(self, now_s: float) -> None:
        """The same, if there is anything to do."""
        if now_s >= self.due_s:
            self.refresh(now_s)

    def settle(self, now_s: float, num_held: int, num_used: int) -> None:
        """A request ends: what it held is free again, and what it used counts."""
        raise NotImplementedError

    def frees_s(self, now_s: float, wall_s: float, need: int) -> float | None:
        """Seconds until there is so much room by time alone; infinite = never.

        None: as soon as running requests have ended, whenever that is.
        """
        raise NotImplementedError

    def reset_s(self, now_s: float, wall_s: float) -> float:
        """Seconds until nothing of what was used counts any more."""
        raise NotImplementedError


class SlidingMeter(Meter):
    """The last minute, hour or day, wherever it begins, and never counted too short.

    Amounts are kept in slots of a sixtieth of the span, and a slot leaves once *all* of it is older
    than the span. So in no interval of the span's length can more than the amount pass; the price
    is that something counts up to a sixtieth of the span longer. At most 61 slots are held. (A
    token bucket, GCRA, would need one number only, but lets twice the amount pass in one span.)

    Args:
        open_slot: Called with this meter and the moment in which a slot begins; returns the id
            under which the slot outlives this process. None: its slots don't.
        close_slot: Called with the id of a slot that has left.
    """

    __slots__ = ("_close_slot", "_open_slot", "_slots", "last", "span_s", "writable_s")

    def __init__(
        self,
        limit: Limit,
        end_user: str,
        amount: int,
        *,
        open_slot: "Callable[[SlidingMeter, float], int] | None" = None,
        close_slot: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(limit, end_user, amount)
        self.span_s = SLIDING_S[limit.window.kind]
        self._slots: list[Slot] = []  # the oldest first; a deque takes six times as much memory
        self.last = _NO_SLOT
        self.writable_s = -math.inf  # until then amounts go into the last slot
        self._open_slot = open_slot
        self._close_slot = close_slot

    @property
    def is_durable(self) -> bool:
        """Whether its slots outlive this process."""
        return self._open_slot is not None

    @property
    def slot_s(self) -> float:
        """The length of a slot."""
        return self.span_s / SLOTS_A_SPAN

    @property
    def num_slots(self) -> int:
        """How many slots are held."""
        return len(self._slots)

    def start(self, now_s: float) -> None:
        """Count a request from its grant on, not from its end."""
        self.room -= 1
        if now_s < self.writable_s:
            self.total += 1
            self.last.amount += 1
        else:
            self._add(now_s, 1)

    def settle(self, now_s: float, num_held: int, num_used: int) -> None:
        """See `Meter.settle`."""
        self.room += num_held - num_used
        if now_s < self.writable_s:
            self.total += num_used
            self.last.amount += num_used
        elif num_used > 0:
            self._add(now_s, num_used)

    def refresh(self, now_s: float) -> None:
        """Let the slots go that are older than the span."""
        slots, span_s = self._slots, self.span_s
        while slots and slots[0].ends_s + span_s <= now_s:
            slot = slots.pop(0)
            self.total -= slot.amount
            self.room += slot.amount
            if self._close_slot is not None and slot.counter_id:
                self._close_slot(slot.counter_id)
        self.due_s = slots[0].ends_s + span_s if slots else math.inf

    def take_back(self, at_s: float, amount: int) -> None:
        """Uncount what was counted at a moment; nothing, when it has left already."""
        slot = self._slot_at(at_s)
        if slot is not None:
            taken = min(amount, slot.amount)
            slot.amount -= taken
            self.total -= taken
            self.room += taken

    def open(self, now_s: float) -> None:
        """See to it that there is a slot for what is counted now."""
        if now_s >= self.writable_s:
            self._add(now_s, 0)

    def correct_at(self, at_s: float, num_more: int) -> None:
        """So much more was used at a moment than was counted; nothing, when its slot has left."""
        slot = self._slot_at(at_s)
        if slot is not None:
            self._correct(slot, num_more)

    def correct_counter(self, counter_id: int, num_more: int) -> None:
        """The same of the slot of an id."""
        for slot in reversed(self._slots):
            if slot.counter_id == counter_id:
                self._correct(slot, num_more)
                return

    def _correct(self, slot: Slot, num_more: int) -> None:
        num_more = max(num_more, -slot.amount)
        slot.amount += num_more
        self.total += num_more
        self.room -= num_more

    def counter_at(self, at_s: float) -> int:
        """The id of the slot of a moment; 0 when there is none."""
        slot = self._slot_at(at_s)
        return 0 if slot is None else slot.counter_id

    def restore(self, at_s: float, amount: int) -> None:
        """Count what was counted before a restart; call in the order of time."""
        if amount <= 0:
            return
        ends_s = (at_s // self.slot_s + 1) * self.slot_s
        if self.last.ends_s == ends_s:
            self.last.amount += amount
        else:
            self._restore(Slot(ends_s, amount, 0))
        self._count_restored(amount)

    def restore_slot(self, begins_s: float, amount: int, counter_id: int) -> None:
        """A whole slot of before a restart; call in the order of time."""
        self._restore(Slot(begins_s + self.slot_s, amount, counter_id))
        self._count_restored(amount)

    def _restore(self, slot: Slot) -> None:
        self._slots.append(slot)
        self.last = slot

    def frees_s(self, now_s: float, wall_s: float, need: int) -> float | None:
        """See `Meter.frees_s`."""
        if need > self.amount:
            return math.inf
        excess = need - self.room
        for slot in self._slots:
            excess -= slot.amount
            if excess <= 0:
                return max(0.0, slot.ends_s + self.span_s - now_s)
        return None

    def reset_s(self, now_s: float, wall_s: float) -> float:
        """See `Meter.reset_s`."""
        return max(0.0, self.last.ends_s + self.span_s - now_s)

    def _count_restored(self, amount: int) -> None:
        self.total += amount
        self.room -= amount
        self.due_s = self._slots[0].ends_s + self.span_s

    def _add(self, now_s: float, amount: int) -> None:
        """Open a slot with an amount."""
        self.total += amount
        slot_s = self.span_s / SLOTS_A_SPAN
        ends_s = (now_s // slot_s + 1) * slot_s
        counter_id = 0 if self._open_slot is None else self._open_slot(self, ends_s - slot_s)
        self.last = Slot(ends_s, amount, counter_id)
        self._slots.append(self.last)
        self.writable_s = ends_s
        if len(self._slots) == 1:
            self.due_s = ends_s + self.span_s

    def _slot_at(self, at_s: float) -> Slot | None:
        found: Slot | None = None
        for slot in reversed(self._slots):
            if slot.ends_s <= at_s:
                break
            found = slot
        return found


class FixedMeter(Meter):
    """A window with a begin and an end: a day, a month, a custom span, or all time.

    Whatever it grants was committed beforehand: `granted` is the slice up to which this process
    may let `total` and what is held grow, and the database knows it. So a process that is killed
    leaves behind how much it may have granted at most; `unknown` is what of that nobody has
    accounted for since, and it stays taken until all such requests must have ended.

    Args:
        begins_s: On the wall clock, as `ends_s`.
        counter_id: Under which the database counts it.
        carried: What the window before left to this one.
        is_open: Whether anything may be used in it.
        crossed: Takes this meter each time that its use passes a threshold.
    """

    __slots__ = (
        *("_crossed", "asked", "begins_s", "carried", "counter_id", "ends_s"),
        *("event_at", "granted", "has_refused", "is_open", "unknown"),
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
        crossed: "list[FixedMeter] | None" = None,
    ) -> None:
        super().__init__(limit, end_user, amount)
        self._crossed = crossed
        self.has_refused = False
        self.begins_s = begins_s
        self.ends_s = ends_s
        self.counter_id = counter_id
        self.carried = carried
        self.is_open = is_open
        self.granted = 0
        self.asked = 0  # the slice on its way to the disk; 0 = none
        self.unknown = 0
        self.room = self._bound
        self.event_at = _next_warning(limit, amount, 0)
        self._set_low(0)

    @property
    def _bound(self) -> int:
        """What may be used as of now: with a hard limit no more than the slice."""
        return min(self.amount, self.granted) if self.limit.is_hard else self.amount

    @property
    def held(self) -> int:
        """What running requests hold, and what those of a killed process may have held."""
        return self._bound - self.total - self.room

    def change(self, limit: Limit, amount: int) -> None:
        """See `Meter.change`."""
        before = self._bound
        self.limit, self.amount = limit, amount
        self.room += self._bound - before
        self.warn_at = _warn_at(limit, amount)
        self.event_at = _next_warning(limit, amount, self.total)
        self._set_low(0)

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
            self.take_unknown(num_more)
        self.total += num_more
        self.room -= num_more
        if self.total >= self.event_at:
            self._note_crossing()

    def restore(self, used: int, granted: int) -> None:
        """What the database remembers of it."""
        self.total, self.granted = used, granted
        self.room = self._bound - used
        self.event_at = _next_warning(self.limit, self.amount, used)
        self._set_low(0)

    def hold_unknown(self, until_s: float) -> None:
        """After a restart: all of the slice that nobody accounts for may be in use."""
        self.unknown = max(0, self.room)
        self.room -= self.unknown
        self.due_s = until_s if self.unknown else math.inf

    def take_unknown(self, amount: int) -> None:
        """A request of the killed process turned up: its part is accounted for by itself now."""
        known = max(0, min(amount, self.unknown))
        self.unknown -= known
        self.room += known

    def refresh(self, now_s: float) -> None:
        """Every request of the killed process must have ended: nothing is kept for them now."""
        self.room += self.unknown
        self.unknown = 0
        self.due_s = math.inf

    def next_slice(self, need: int) -> int:
        """How far the next slice should reach for a request of that need, and for others."""
        ahead = max(self.amount // SLICE_SHARE, SLICE_REQUESTS * need)
        return min(self.amount, self._bound - self.room + need + ahead)

    def on_granted(self, granted: int, need: int) -> None:
        """A slice is durable."""
        before = self._bound
        self.granted = max(self.granted, granted)
        self.asked = 0
        self.room += self._bound - before
        self._set_low(need)

    def frees_s(self, now_s: float, wall_s: float, need: int) -> float | None:
        """See `Meter.frees_s`."""
        if self.is_open and self.amount - self.total >= need:
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
        if self._crossed is not None:
            self._crossed.append(self)

    def _set_low(self, need: int) -> None:
        self.uncommitted = self.amount - self._bound
        is_whole = not self.limit.is_hard or self.granted >= self.amount
        ahead = max(self.amount // SLICE_SHARE, SLICE_REQUESTS * need)
        self.low = 0 if is_whole else ahead // 2


class ParallelMeter(Meter):
    """Requests that run at a time."""

    __slots__ = ()

    def settle(self, now_s: float, num_held: int, num_used: int) -> None:
        """See `Meter.settle`."""
        self.room += num_held

    def frees_s(self, now_s: float, wall_s: float, need: int) -> float | None:
        """See `Meter.frees_s`."""
        return math.inf if need > self.amount else None

    def reset_s(self, now_s: float, wall_s: float) -> float:
        """Nothing that has ended counts."""
        return 0.0


def _warn_at(limit: Limit, amount: int) -> float:
    """From so much on there is something to say: the first threshold, or the end of a soft one."""
    first = -(-amount * min(limit.thresholds, default=100) // 100)
    return first if limit.thresholds or not limit.is_hard else math.inf


def _next_warning(limit: Limit, amount: int, total: int) -> float:
    """What is to be used for the next threshold to be passed; the whole amount is the last one."""
    steps = sorted({-(-amount * percent // 100) for percent in limit.thresholds})
    if steps or not limit.is_hard:
        steps = sorted({*steps, amount})
    return next((step for step in steps if step > total), math.inf)
