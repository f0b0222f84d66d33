"""What counts in one limit of one holder; `room` is kept up to date, so that asking is a compare.

A request is granted from the room of every meter that it concerns, holds that much of each until it
ends, and then counts with what it used. All times are arguments: `now_s` is monotonic, `wall_s` is
Unix time. Pure.
"""

import math
from typing import Final, Protocol

from auth_worker.principals.limit_rules import SLIDING_S, Limit

SLOTS_A_SPAN: Final = 60
"""A window of a minute has slots of a second, one of an hour of a minute, one of a day of 24."""


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
        uncommitted: What else is free, once a slice of it is durable; see `sliced_meters`.
        due_s: From when on (monotonic) `refresh` has something to do.
        low: Below so much room a slice should be asked for; of a sliced meter never below 0.
        warn_at: From so much used on, answers warn; infinite where nothing is to be said.
        is_gone: Whether it was released or replaced; another one counts in its place, if any, and
            the database remembers nothing of it.
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
        self.warn_at = warn_at(limit, amount)
        self.is_gone = False

    @property
    def held(self) -> int:
        """What running requests hold."""
        return self.amount - self.total - self.room

    @property
    def reserved(self) -> int:
        """What running requests hold beside `total`, as people are told it."""
        return max(0, self.held)

    @property
    def free(self) -> int:
        """What is neither used nor held, whether its slice is committed or not."""
        return self.room + self.uncommitted

    def change(self, limit: Limit, amount: int) -> None:
        """The limit was changed; what was counted stays."""
        self.room += amount - self.amount
        self.limit, self.amount = limit, amount
        self.warn_at = warn_at(limit, amount)

    def refresh(self, now_s: float) -> None:
        """Release what no longer counts."""

    def refresh_due(self, now_s: float) -> None:
        """The same, if there is anything to do."""
        if now_s >= self.due_s:
            self.refresh(now_s)

    def settle(self, now_s: float, num_held: int, num_used: int) -> None:
        """A request ends: what it held is free again, and what it used counts."""
        raise NotImplementedError

    def is_first_refusal(self, now_s: float) -> bool:
        """Whether a refusal, because all is used, is the first one that is to be told of."""
        return False

    def frees_s(self, now_s: float, wall_s: float, need: int) -> float | None:
        """Seconds until there is so much room by time alone; infinite = never.

        None: as soon as running requests have ended, whenever that is.
        """
        raise NotImplementedError

    def reset_s(self, now_s: float, wall_s: float) -> float:
        """Seconds until nothing of what was used counts any more."""
        raise NotImplementedError


class SlotKeeper(Protocol):
    """Makes slots outlive the process, and hears of what their meters have to tell."""

    def open_slot(self, meter: "SlidingMeter", begins_s: float) -> int:
        """A slot begins; the id under which it outlives this process, or 0."""
        ...

    def close_slot(self, counter_id: int) -> None:
        """A slot has left."""
        ...

    def note_crossing(self, meter: Meter) -> None:
        """The use of a meter has passed a threshold."""
        ...


class _Watch:
    """What of a sliding window is told once in its span: thresholds, and the first refusal."""

    __slots__ = ("event_at", "refused_s", "told_s")

    def __init__(self) -> None:
        self.event_at = math.inf  # what is to be used for the next threshold to be passed
        self.told_s: dict[int, float] = {}  # by percent
        self.refused_s = -math.inf

    def arm(self, meter: "SlidingMeter", now_s: float) -> None:
        """See which threshold is the next that is passed, and wasn't told of for a whole span."""
        self.event_at = min(
            (
                step
                for percent, step in steps_of(meter.limit, meter.amount).items()
                if step > meter.total
                and now_s - self.told_s.get(percent, -math.inf) >= meter.span_s
            ),
            default=math.inf,
        )

    def note(self, meter: "SlidingMeter", now_s: float) -> None:
        """One was passed."""
        for percent, step in steps_of(meter.limit, meter.amount).items():
            if self.event_at <= step <= meter.total:
                self.told_s[percent] = now_s
        self.arm(meter, now_s)


class SlidingMeter(Meter):
    """The last minute, hour or day, wherever it begins, and never counted too short.

    Amounts are kept in slots of a sixtieth of the span, and a slot leaves once *all* of it is older
    than the span. So in no interval of the span's length can more than the amount pass; the price
    is that something counts up to a sixtieth of the span longer. At most 61 slots are held. (A
    token bucket, GCRA, would need one number only, but lets twice the amount pass in one span.)

    Args:
        keeper: Keeps the slots of an hour and of a day; those of a minute come back by the ledger.
    """

    __slots__ = ("_keeper", "_slots", "_watch", "last", "span_s", "writable_s")

    def __init__(
        self,
        limit: Limit,
        end_user: str,
        amount: int,
        keeper: SlotKeeper | None = None,
    ) -> None:
        super().__init__(limit, end_user, amount)
        self.span_s = SLIDING_S[limit.window.kind]
        self._slots: list[Slot] = []  # the oldest first; a deque takes six times as much memory
        self.last = _NO_SLOT
        self.writable_s = -math.inf  # until then amounts go into the last slot
        self._keeper = keeper
        self._watch: _Watch | None = None  # most rates have nothing to tell
        self._follow_limit()

    @property
    def is_durable(self) -> bool:
        """Whether its slots outlive this process."""
        return self._keeper is not None and self.limit.window.kind != "minute"

    @property
    def slot_s(self) -> float:
        """The length of a slot."""
        return self.span_s / SLOTS_A_SPAN

    @property
    def num_slots(self) -> int:
        """How many slots are held."""
        return len(self._slots)

    @property
    def counter_ids(self) -> tuple[int, ...]:
        """The ids of the slots that outlive this process."""
        return tuple(slot.counter_id for slot in self._slots if slot.counter_id)

    def change(self, limit: Limit, amount: int) -> None:
        """See `Meter.change`."""
        super().change(limit, amount)
        self._follow_limit()

    def note_use(self, now_s: float) -> None:
        """Something was settled: tell of a threshold that was passed by it."""
        watch = self._watch
        if watch is not None and self.total >= watch.event_at:
            watch.note(self, now_s)
            if self._keeper is not None:
                self._keeper.note_crossing(self)

    def is_first_refusal(self, now_s: float) -> bool:
        """See `Meter.is_first_refusal`; of a rate that has nothing to tell no refusal is."""
        watch = self._watch
        if watch is None or now_s - watch.refused_s < self.span_s:
            return False
        watch.refused_s = now_s
        return True

    def _follow_limit(self) -> None:
        limit = self.limit
        is_told = limit.thresholds or not limit.is_hard or limit.measure == "money"
        if self._watch is None and is_told:
            self._watch = _Watch()
        if self._watch is not None:
            self._watch.arm(self, math.inf)

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
            if self._keeper is not None and slot.counter_id:
                self._keeper.close_slot(slot.counter_id)
        self.due_s = slots[0].ends_s + span_s if slots else math.inf
        if self._watch is not None:
            self._watch.arm(self, now_s)

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
        excess = need - self.free
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
        if self._watch is not None and self.total >= self._watch.event_at:
            self._watch.arm(self, math.inf)  # what was passed before was told of then

    def _add(self, now_s: float, amount: int) -> None:
        """Open a slot with an amount."""
        self.total += amount
        slot_s = self.span_s / SLOTS_A_SPAN
        ends_s = (now_s // slot_s + 1) * slot_s
        counter_id = 0
        if self._keeper is not None and self.is_durable:
            counter_id = self._keeper.open_slot(self, ends_s - slot_s)
        self.last = Slot(ends_s, amount, counter_id)
        self._slots.append(self.last)
        self.writable_s = ends_s
        if len(self._slots) == 1:
            self.due_s = min(self.due_s, ends_s + self.span_s)

    def _slot_at(self, at_s: float) -> Slot | None:
        found: Slot | None = None
        for slot in reversed(self._slots):
            if slot.ends_s <= at_s:
                break
            found = slot
        return found


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


def warn_at(limit: Limit, amount: int) -> float:
    """From so much on there is something to say: the first threshold, or the end of a soft one."""
    first = -(-amount * min(limit.thresholds, default=100) // 100)
    return first if limit.thresholds or not limit.is_hard else math.inf


def steps_of(limit: Limit, amount: int) -> dict[int, int]:
    """What is to be used for each threshold to be passed, by percent; the amount is the last."""
    if not limit.thresholds and limit.is_hard:
        return {}
    percents = sorted({*limit.thresholds, 100})
    return {percent: -(-amount * percent // 100) for percent in percents}
