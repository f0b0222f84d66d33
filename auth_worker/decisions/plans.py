"""The meters that one request concerns, and what it takes from all of them or from none; pure."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

from auth_worker.decisions.meters import Meter, ParallelMeter, SlidingMeter
from auth_worker.decisions.sliced_meters import (
    FixedMeter,
    SlicedMeter,
    SlidingBudget,
    keep_unknown,
    take_unknown,
)
from auth_worker.principals.limit_rules import Measure
from auth_worker.records.limit_usage import CHARGE_LETTERS, charge_text
from protocol.wire.messages import LimitState

Needs = tuple[int, int, int, int, int]
"""Of one request: 1, its tokens, prompt tokens, completion tokens, and money in micro-units."""

_INDEX: Final[dict[Measure, int]] = {
    "requests": 0,
    "tokens": 1,
    "prompt_tokens": 2,
    "completion_tokens": 3,
    "money": 4,
    "parallel": 0,
}
_MeterT = TypeVar("_MeterT", bound=Meter)
NOTHING: Final[Needs] = (0, 0, 0, 0, 0)


def needs_of(prompt_tokens: int, completion_tokens: int, money: int) -> Needs:
    """What one request takes of each measure."""
    total = prompt_tokens + completion_tokens
    return (1, total, prompt_tokens, completion_tokens, money)


class Short(NamedTuple):
    """A meter without room for a request, and how much that needs."""

    meter: Meter
    need: int


class Plan:
    """The meters of one caller, model, route and end user, as long as their windows last.

    A lease keeps the plan that it was granted by, so it is settled in the windows it began in.

    Args:
        meters: The narrowest holder first.
        since_s: On the wall clock: it may be used from then on, and before `until_s`.
        origin: Stays the same object while nobody changes the caller or a limit.

    Attributes:
        has_money: Whether a budget is among them, so that a price is needed.
        gives_back: Whether tokens or money are held, so that what isn't needed should come back
            early.
        charges: What a booking counts in, as far as that is the same for all of them.
    """

    __slots__ = (
        *("_bounds", "_parallel", "_sliced", "_sliding", "_slotted", "_soft", "_started"),
        *("_due_s", "_meters", "_named", "_request_meters", "_token_meters", "_warners"),
        *("charges", "gives_back", "has_money", "origin", "since_s", "thirsty", "until_s"),
    )

    def __init__(
        self, meters: Sequence[Meter], since_s: float, until_s: float, origin: object = None
    ) -> None:
        self.since_s, self.until_s, self.origin = since_s, until_s, origin
        self._meters = tuple(meters)
        self._due_s = -math.inf
        started, slotted = list[SlidingMeter](), list[tuple[SlidingMeter, int]]()
        sliding, sliced = dict[int, list[SlidingMeter]](), dict[int, list[SlicedMeter]]()
        parallel, soft = list[ParallelMeter](), list[tuple[Meter, int]]()
        charges = list[tuple[int, str]]()
        self.has_money = self.gives_back = self.thirsty = False
        for meter in meters:  # one after another: each key makes a plan of all that it is under
            limit = meter.limit
            measure, index = limit.measure, _INDEX[limit.measure]
            if isinstance(meter, SlidingMeter):
                if meter.is_durable:
                    slotted.append((meter, index))
                if measure == "requests":
                    started.append(meter)
                    continue
            elif isinstance(meter, FixedMeter):
                charges.append((meter.counter_id, CHARGE_LETTERS[measure]))
            if measure == "money":
                self.has_money = True
            if not limit.is_hard:
                soft.append((meter, index))
                continue
            self.gives_back = self.gives_back or index > 0
            if isinstance(meter, FixedMeter | SlidingBudget):
                sliced.setdefault(index, []).append(meter)
            elif isinstance(meter, SlidingMeter):
                sliding.setdefault(index, []).append(meter)
            elif isinstance(meter, ParallelMeter):
                parallel.append(meter)
        self._started, self._slotted = tuple(started), tuple(slotted)
        bounds = tuple(starter for starter in started if starter.limit.is_hard)
        # By kind and measure: a loop over meters of one class, with one need, takes half as long.
        self._sliding, self._sliced = _grouped(sliding), _grouped(sliced)
        self._parallel, self._soft = tuple(parallel), tuple(soft)
        self._warners = tuple(
            meter for meter in meters if meter.limit.thresholds or not meter.limit.is_hard
        )
        # Mostly the same: one object takes less memory, and is read sooner.
        self._bounds = self._started if bounds == self._started else bounds
        shown, counted = _shown(meters, "requests"), _shown(meters, "tokens")
        self._request_meters = self._bounds if shown == self._bounds else shown
        self._token_meters = next((some for _, some in self._sliding if some == counted), counted)
        self.charges = charge_text(charges)
        self._named = tuple(meter for meter in meters if meter.end_user)

    @property
    def is_stale(self) -> bool:
        """Whether a meter of its end user was released, so that it is to be made again."""
        return any(meter.is_gone for meter in self._named)

    def reserve(self, now_s: float, needs: Needs) -> Sequence[Short]:
        """Take a request from every meter, or none of it from any.

        Afterwards `thirsty` says whether a slice runs low.

        Returns:
            The meters without room; empty when it was taken.
        """
        if now_s >= self._due_s:
            self._refresh(now_s)
        for starter in self._bounds:
            if starter.room < 1:
                return self._short(needs)
        for index, sliding in self._sliding:
            need = needs[index]
            if need:  # asking for nothing needs no room
                for slider in sliding:
                    room = slider.room = slider.room - need
                    if room < 0:
                        return self._short_after(slider, needs)
        for index, sliced in self._sliced:
            need = needs[index]
            if need:
                for meter in sliced:
                    room = meter.room = meter.room - need
                    if room < meter.low:
                        if room < 0:
                            return self._short_after(meter, needs)
                        self.thirsty = True
        for runs in self._parallel:
            runs.room -= 1
            if runs.room < 0:
                return self._short_after(runs, needs)
        for starter in self._started:
            if now_s < starter.writable_s:  # as in `start`, in half the time
                starter.room -= 1
                starter.total += 1
                starter.last.amount += 1
            else:
                starter.start(now_s)
        return ()

    def take(self, now_s: float, needs: Needs, *, starts: bool = True) -> None:
        """Take a request from every meter, whether there is room or not."""
        if starts:
            for starter in self._started:
                starter.start(now_s)
        for meter, index in self._held():
            meter.room -= needs[index]
            if meter.room < meter.low:
                self.thirsty = True

    def grow(self, now_s: float, before: Needs, after: Needs) -> Sequence[Short]:
        """Hold something else for a request that runs; what shrinks always fits.

        Returns:
            The meters without room; empty when it was changed.
        """
        if now_s >= self._due_s:
            self._refresh(now_s)
        more = difference(after, before)
        short = [
            Short(meter, more[index])
            for meter, index in self._held()
            if more[index] > 0 and meter.room < more[index]
        ]
        if not short:
            self.take(now_s, more, starts=False)
        return short

    def joined(self, before: "Plan") -> "Plan":
        """The limits of now for a request that was granted by those of before.

        Where a limit is still there, the request goes on in the window that it began in.
        """
        kept = {(meter.limit.limit_id, meter.end_user): meter for meter in before._meters}
        meters = [kept.get((meter.limit.limit_id, meter.end_user), meter) for meter in self._meters]
        return Plan(meters, self.since_s, self.until_s, self.origin)

    def settle(self, now_s: float, held: Needs, used: Needs) -> None:
        """A request ends: what it held is free again, and what it used counts."""
        for index, sliding in self._sliding:
            num_held, num_used = held[index], used[index]
            num_free = num_held - num_used
            for slider in sliding:
                if now_s < slider.writable_s:  # as in its own `settle`, in half the time
                    slider.room += num_free
                    slider.total += num_used
                    slider.last.amount += num_used
                else:
                    slider.settle(now_s, num_held, num_used)
        for index, sliced in self._sliced:
            num_held, num_used = held[index], used[index]
            for meter in sliced:
                meter.settle(now_s, num_held, num_used)
        for runs in self._parallel:
            runs.room += held[0]
        for other, index in self._soft:
            other.settle(now_s, 0, used[index])
        for warner in self._warners:
            if isinstance(warner, SlidingMeter):
                warner.note_use(now_s)

    def take_back(self, held: Needs, started_s: float | None) -> None:
        """A request is taken back whole, as if it had never been.

        Args:
            held: What it held.
            started_s: When it was counted; None when it wasn't.
        """
        for meter, index in self._held():
            meter.room += held[index]
        if started_s is not None:
            for starter in self._started:
                starter.take_back(started_s, 1)

    def charges_at(self, now_s: float, started_s: float | None) -> str:
        """What a booking of this moment counts in; to be asked for right after `settle`."""
        if not self._slotted:
            return self.charges
        slots = []
        for meter, index in self._slotted:
            at_s = now_s if index or meter not in self._started else started_s
            counter_id = 0 if at_s is None else meter.counter_at(at_s)
            if counter_id:
                slots.append((counter_id, CHARGE_LETTERS[meter.limit.measure]))
        return ",".join(filter(None, (self.charges, charge_text(slots))))

    def open_slots(self, now_s: float) -> None:
        """See to it that each sliding window has a slot of now, in which more may count later."""
        for meter in self._meters:
            if isinstance(meter, SlidingMeter):
                meter.open(now_s)

    def correct_minutes(self, at_s: float, more: Needs) -> None:
        """More was used than was counted at a moment, in windows whose slots have no counters."""
        for meter, index in (*self._held(), *self._soft):
            if isinstance(meter, SlidingMeter) and not meter.is_durable:
                meter.correct_at(at_s, more[index])

    def count_minutes(self, now_s: float, used: Needs) -> None:
        """A request that wasn't counted before counts in these windows now."""
        for starter in self._started:
            if not starter.is_durable:
                starter.start(now_s)
        for meter, index in (*self._held(), *self._soft):
            if isinstance(meter, SlidingMeter) and not meter.is_durable:
                if isinstance(meter, SlidingBudget):
                    take_unknown(meter, used[index])
                meter.settle(now_s, 0, used[index])

    def thirsty_meters(self, needs: Needs) -> list[tuple[SlicedMeter, int]]:
        """The meters whose slice runs low and is not asked for yet, and what a request needs."""
        self.thirsty = False
        return [
            (meter, needs[index])
            for index, sliced in self._sliced
            for meter in sliced
            if meter.room < meter.low and not meter.asked
        ]

    def take_unknown(self, held: Needs, used: Needs) -> None:
        """A request of a killed process ends; what it doesn't hold itself was kept for it."""
        for index, sliced in self._sliced:
            for meter in sliced:
                take_unknown(meter, used[index] - held[index])

    def keep_unknown(self, freed: Needs, until_s: float) -> None:
        """What a lease of a killed process gave back may be somebody's of whom nobody knows."""
        for index, sliced in self._sliced:
            if freed[index] > 0:
                for meter in sliced:
                    keep_unknown(meter, freed[index], until_s)

    def restore_start(self, at_s: float) -> None:
        """Count a request of before a restart in the windows that don't outlive it."""
        for starter in self._started:
            if not starter.is_durable:
                starter.restore(at_s, 1)

    def restore_use(self, at_s: float, needs: Needs) -> None:
        """Count what was settled before a restart in the windows that don't outlive it."""
        for meter, index in (*self._held(), *self._soft):
            if isinstance(meter, SlidingMeter) and not meter.is_durable:
                meter.restore(at_s, needs[index])

    def readmit(self, now_s: float, needs: Needs) -> bool:
        """Take a lease of before a restart, whether there is room or not.

        Returns:
            Whether its request counts from now on, in windows whose slots outlive a restart.
        """
        self.take(now_s, needs, starts=False)
        durable = [starter for starter in self._started if starter.is_durable]
        for starter in durable:
            starter.start(now_s)
        return bool(durable)

    def warned(self) -> list[Meter]:
        """The meters whose use has passed a threshold, or the amount of a soft limit."""
        if not self._warners:
            return []
        return [meter for meter in self._warners if meter.total >= meter.warn_at]

    @property
    def warns(self) -> bool:
        """Whether any of its meters has something to warn of."""
        return bool(self._warners)

    def state(self, now_s: float, wall_s: float) -> LimitState:
        """Where the caller stands in the tightest windows of requests and of tokens."""
        if not self._request_meters and not self._token_meters:
            return UNLIMITED
        if now_s >= self._due_s:
            self._refresh(now_s)
        limit_requests, remaining_requests, reset_requests_s = _tightest(
            self._request_meters, now_s, wall_s
        )
        limit_tokens, remaining_tokens, reset_tokens_s = _tightest(
            self._token_meters, now_s, wall_s
        )
        return LimitState(
            limit_requests=limit_requests,
            remaining_requests=remaining_requests,
            reset_requests_s=reset_requests_s,
            limit_tokens=limit_tokens,
            remaining_tokens=remaining_tokens,
            reset_tokens_s=reset_tokens_s,
        )

    def _held(self) -> list[tuple[Meter, int]]:
        """The meters that a request holds something of, and which of its needs."""
        held: list[tuple[Meter, int]] = []
        for index, meters in (*self._sliding, *self._sliced, (0, self._parallel)):
            held += [(meter, index) for meter in meters]
        return held

    def _refresh(self, now_s: float) -> None:
        """Release what no longer counts; whatever is counted from now on counts for a while."""
        due_s = math.inf
        for meter in self._meters:
            meter.refresh_due(now_s)
            soonest_s = now_s + meter.span_s if isinstance(meter, SlidingMeter) else math.inf
            due_s = min(due_s, meter.due_s, soonest_s)
        self._due_s = due_s

    def _short_after(self, last: Meter, needs: Needs) -> list[Short]:
        """Give back what `reserve` took, up to a meter; every meter without room."""
        for meter, index in self._held():
            meter.room += needs[index]
            if meter is last:
                break
        return self._short(needs)

    def _short(self, needs: Needs) -> list[Short]:
        """Every meter without room, those first that count a request from its start."""
        short = [Short(starter, 1) for starter in self._bounds if starter.room < 1]
        held = dict(self._held())
        for meter in self._meters:
            need = needs[held[meter]] if meter in held else 0
            if need and meter.room < need:
                short.append(Short(meter, need))
        return short


UNLIMITED: Final = LimitState()


def _grouped(meters: dict[int, list[_MeterT]]) -> tuple[tuple[int, tuple[_MeterT, ...]], ...]:
    return tuple((index, tuple(some)) for index, some in meters.items())


def _shown(meters: Sequence[Meter], measure: Measure) -> tuple[Meter, ...]:
    return tuple(
        meter for meter in meters if meter.limit.measure == measure and meter.limit.is_hard
    )


def difference(after: Needs, before: Needs) -> Needs:
    """What came to a need, or went from it where it is negative."""
    return (
        after[0] - before[0],
        after[1] - before[1],
        after[2] - before[2],
        after[3] - before[3],
        after[4] - before[4],
    )


def _tightest(
    meters: tuple[Meter, ...], now_s: float, wall_s: float
) -> tuple[int | None, int | None, float | None]:
    """Amount, rest and seconds until it is whole again, of the meter with the least room.

    There are no such seconds where a window never ends.
    """
    if not meters:
        return (None, None, None)
    tightest = meters[0]
    least = tightest.room + tightest.uncommitted
    for meter in meters:
        free = meter.room + meter.uncommitted
        if free < least:
            tightest, least = meter, free
    reset_s = tightest.reset_s(now_s, wall_s)
    rest = least if least > 0 else 0
    return (tightest.amount, rest, None if reset_s == math.inf else reset_s)
