"""All meters, found by limit and end user, and the plan of each caller; pure, time is injected."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Final

from auth_worker.clock import Clock
from auth_worker.decisions.limit_refusals import Refusal
from auth_worker.decisions.meters import Meter, ParallelMeter, SlidingMeter
from auth_worker.decisions.named_users import NamedUsers
from auth_worker.decisions.plans import Plan
from auth_worker.decisions.served_models import ServedModels
from auth_worker.decisions.sliced_meters import (
    SLICE_OF_SLIDING,
    FixedMeter,
    SlicedMeter,
    SlidingBudget,
    take_unknown,
)
from auth_worker.decisions.slices import Slices
from auth_worker.decisions.windows import Span, span_at
from auth_worker.principals.keys import StoredKey
from auth_worker.principals.limit_directory import LimitDirectory
from auth_worker.principals.limit_rules import Limit, Measure, Window
from auth_worker.records.limit_usage import CounterRow, DropCounters, SaveCounter
from auth_worker.records.operations import Flush, Operation

MAX_PLANS_A_KEY: Final = 4096
"""Callers choose routes and end users; beyond so many plans they are made again."""
MAX_SPANS: Final = 1024
"""Calendars in as many time zones, and custom windows, as are remembered."""
SWEPT_A_TURN: Final = 256
"""Meters that one `sweep` looks at: some milliseconds, in which no decision is made."""
COUNTERS_AN_EPOCH: Final = 1 << 32
"""The ledger names counters that were dropped long ago: no later process may use their numbers."""
MAX_OTHERS: Final = 16_384
"""Users and teams whose limits together are remembered for all their keys."""
MINUTE: Final = Window("minute")

_OWN_LIMITS: Final[tuple[tuple[str, Measure], ...]] = (
    ("requests_per_minute", "requests"),
    ("tokens_per_minute", "tokens"),
)


class _Others:
    """The limits of a user, a team and the deployment, which all keys of both are under.

    Attributes:
        version: Of the limits.
        limits: The narrowest holder first.
        is_filtered: Whether one of them holds for some models or routes only.
        meters: As of a moment, where they are the same for every request; with the span of time in
            which they are.
    """

    __slots__ = ("is_filtered", "limits", "meters", "since_s", "until_s", "version")

    def __init__(self, version: int, limits: tuple[Limit, ...]) -> None:
        self.version = version
        self.limits = limits
        self.is_filtered = any(map(_is_filtered, limits))
        self.meters: list[Meter] = []
        self.since_s, self.until_s = math.inf, -math.inf


class _Caller:
    """The limits that hold for one key, and the plans made of them so far."""

    __slots__ = (
        *("bounds", "has_templates", "is_filtered", "is_free", "key", "others", "own", "plain"),
        *("plans", "templates", "version"),
    )

    def __init__(
        self,
        key: StoredKey,
        bounds: object,
        templates: tuple[Limit, ...],
        own: tuple[Limit, ...],
        others: _Others,
    ) -> None:
        self.key = key
        self.bounds = bounds
        self.version = others.version
        self.templates = templates
        self.own = own
        self.others = others
        self.is_free = not (templates or own or others.limits)
        self.is_filtered = others.is_filtered or any(map(_is_filtered, (*templates, *own)))
        self.has_templates = bool(templates)
        self.plain: Plan | None = None
        self.plans: dict[tuple[str, str, str], Plan] | None = None  # of some models or end users

    @property
    def limits(self) -> tuple[Limit, ...]:
        """All of them, the narrowest holder first."""
        return (*self.templates, *self.own, *self.others.limits)


class MeterTable:
    """What every limit counts at the moment.

    It has many methods because making, finding, restoring and dropping meters change the same few
    tables of them, which nobody else may see half-changed.

    Args:
        limits: All of them; looked at, never changed.
        counters: What the database remembers.
        epoch: Of this process; no other one numbers its counters as it does.
        clock: Both clocks.
        emit: Takes operations that nobody waits for.
        slices: Makes room in hard budgets and quotas.
        served: Models by whose names plans are kept; for other names they are made each time.

    Attributes:
        crossed: Meters whose use has passed another threshold, with what was used then; whoever
            tells of them empties it.
    """

    def __init__(
        self,
        *,
        limits: LimitDirectory,
        counters: Iterable[CounterRow],
        epoch: int,
        clock: Clock,
        emit: Callable[[Operation], None],
        slices: Slices,
        served: ServedModels,
    ) -> None:
        self.limits = limits
        self._served = served
        self.crossed: list[tuple[Meter, int]] = []
        self._clock = clock
        self._emit = emit
        self._slices = slices
        self._callers: dict[str, _Caller] = {}
        self._others: dict[tuple[str, str], _Others] = {}
        self._meters: dict[tuple[str, str], SlidingMeter | ParallelMeter] = {}
        # The windows of a limit and end user by their begin, in the order of time.
        self._windows: dict[tuple[str, str], dict[float, FixedMeter]] = {}
        self._by_counter: dict[int, FixedMeter] = {}
        self._of_slot: dict[int, SlidingMeter] = {}  # by the counter of the slot
        self._budgets: deque[SlidingBudget] = deque()  # those of no end user, swept in turn
        self._spans: dict[Window, Span] = {}
        self._next_counter = epoch * COUNTERS_AN_EPOCH
        self._unknown_until_s = math.inf
        self._gone: deque[str] = deque()  # limits that were removed, while something counts in them
        limits.on_removed = self._gone.append
        self._named = NamedUsers(self._let_go_if_idle)
        self._runs_for: Callable[[str], bool] = lambda _end_user: False
        self._restore(counters)

    def __len__(self) -> int:
        return len(self._meters) + len(self._windows)

    def plan_for(
        self, key: StoredKey, model: str, endpoint: str, end_user: str, wall_s: float
    ) -> Plan | None:
        """The meters that a request concerns; None when no limit holds for it."""
        caller = self._callers.get(key.key_id)
        if caller is None or caller.key is not key or caller.version != self.limits.version:
            caller = self._caller_of(key, caller)
        if caller.is_free:
            return None
        if not caller.is_filtered:
            if not (caller.has_templates and end_user):
                plan = caller.plain
                if plan is None or not plan.since_s <= wall_s < plan.until_s:
                    plan = caller.plain = self._build(caller, "", "", "", wall_s)
                return plan
            model = endpoint = ""
        which = (model, endpoint, end_user if caller.has_templates else "")
        plans = caller.plans
        if plans is None:
            plans = caller.plans = {}
        found = plans.get(which)
        if found is None or found.is_stale or not found.since_s <= wall_s < found.until_s:
            found = self._build(caller, *which, wall_s)
            if model and model not in self._served:
                return found
            if len(plans) >= MAX_PLANS_A_KEY:
                plans.clear()
            plans[which] = found
        return found

    def watch_running(self, runs_for: Callable[[str], bool]) -> None:
        """From now on, what is counted for an end user stays as long as this says that he runs."""
        self._runs_for = runs_for

    def admit(self, key: StoredKey, end_user: str) -> Refusal | None:
        """Make sure that an end user can be counted; why he can't, when there are too many.

        Whoever is counted already goes on. For a new name those are released that nothing counts
        for any more; a name of which something was used, or runs, keeps its place.
        """
        if not end_user:
            return None
        caller = self._callers.get(key.key_id)
        if caller is None or caller.key is not key or caller.version != self.limits.version:
            caller = self._caller_of(key, caller)
        for limit in caller.templates:
            refusal = self._named.admit(limit, end_user)
            if refusal is not None:
                return refusal
        return None

    def forget_key(self, key_id: str) -> None:
        """A key was deleted."""
        self._callers.pop(key_id, None)
        for name, _ in _OWN_LIMITS:
            self._meters.pop((_own_id(key_id, name), ""), None)

    def correct(self, changes: Iterable[tuple[int, int]], *, were_unknown: bool = False) -> None:
        """Counters in the database moved by more, or less, than was counted here.

        See `FixedMeter.correct`. Of a sliding window it counts in the slot that it is of, as long
        as that counts at all.
        """
        for counter_id, num_more in changes:
            meter = self._by_counter.get(counter_id)
            sliding = self._of_slot.get(counter_id)
            if meter is not None:
                meter.correct(num_more, were_unknown=were_unknown)
            elif sliding is not None:
                if were_unknown and isinstance(sliding, SlidingBudget):
                    take_unknown(sliding, num_more)
                sliding.correct_counter(counter_id, num_more)

    def limits_of(self, key: StoredKey) -> tuple[Limit, ...]:
        """Every limit that holds for a key, those of its own row and templates among them."""
        caller = self._callers.get(key.key_id)
        if caller is None or caller.key is not key or caller.version != self.limits.version:
            caller = self._caller_of(key, caller)
        return caller.limits

    def window_of(self, limit: Limit, end_user: str, wall_s: float) -> Meter:
        """The meter of a limit at a moment, for whoever wants to know how far it is used.

        Of an end user who isn't counted it is one that nobody keeps: to be asked about must not
        make a name known. Nor must it begin the only window of a limit that doesn't renew.
        """
        which = (limit.limit_id, end_user)
        is_known = which in self._meters or which in self._windows
        if is_known or (limit.auto_renews and not end_user):
            return self._meter(limit, end_user, wall_s)[0]
        if limit.measure == "parallel" or limit.window.slides:
            return self._new_meter(limit, end_user, limit.amount_at(wall_s), counter_id=0)
        span = _renewed(limit, {}, span_at(limit.window, wall_s))
        if not span.is_open:
            return self._closed(limit, end_user, span)
        return FixedMeter(
            limit,
            end_user,
            limit.amount_at(wall_s),
            begins_s=span.begins_s,
            ends_s=span.ends_s,
            counter_id=0,
        )

    def hold_unknown(self, until_s: float) -> None:
        """The leases of before a restart are open again: what else was granted is held back."""
        now_s = self._clock.monotonic_s()
        self._unknown_until_s = until_s
        for meter in self._sliced():
            meter.hold_unknown(now_s, until_s)

    def _release_unknown(self, now_s: float) -> None:
        """All leases of before the restart have ended, of meters that nobody asks as well."""
        self._unknown_until_s = math.inf
        for meter in self._sliced():
            meter.refresh_due(now_s)

    def release_slices(self) -> None:
        """This process ends cleanly: nothing beyond what is held needs to be kept back.

        What counts in a sliding budget leaves it while nothing runs, so any slice that was kept
        would look as if somebody held what has left. Its leases and slots say all that counts, once
        they are on the disk; only what an earlier kill left unknown needs a slice.
        """
        now_s = self._clock.monotonic_s()
        needless: list[int] = []
        for meter in self._sliced():
            meter.refresh_due(now_s)
            if not meter.granted and not meter.asked:
                continue
            if isinstance(meter, SlidingBudget) and not meter.unknown:
                needless.append(meter.counter_id)
            else:
                meter.granted = meter.total + meter.held
                self._emit(SaveCounter(meter.row))
        if needless:
            self._emit(Flush())  # leases may linger: they must be written before
            self._emit(DropCounters(tuple(needless)))

    def _sliced(self) -> Iterator[SlicedMeter]:
        """Every meter that grants from slices."""
        for windows in self._windows.values():
            yield from (meter for meter in windows.values() if meter.limit.is_hard)
        for meter in self._meters.values():
            if isinstance(meter, SlidingBudget) and meter.limit.is_hard:
                yield meter

    def sweep(self) -> None:
        """Release some of what no limit needs any more; to be called about every second.

        Those of end users and the slices of sliding budgets are looked at all the time, in turn,
        and those of limits that are gone until nothing counts in them any more; the rest, however
        many they are, isn't looked at.
        """
        gone = self._gone
        for _ in range(min(SWEPT_A_TURN, len(gone))):
            if self._let_go_if_idle(gone[0], ""):
                gone.popleft()
            else:
                gone.rotate(-1)
        for limit_id, end_user in self._named.take_turn(SWEPT_A_TURN):
            self._let_go_if_idle(limit_id, end_user)
        now_s, budgets = self._clock.monotonic_s(), self._budgets
        if now_s >= self._unknown_until_s:
            self._release_unknown(now_s)
        for _ in range(min(SWEPT_A_TURN, len(budgets))):
            budget = budgets.popleft()
            if not budget.is_gone:
                budget.release_if_idle(now_s)
                budgets.append(budget)

    def _let_go_if_idle(self, limit_id: str, end_user: str) -> bool:
        """Forget what is counted of a limit for an end user, if that changes nothing."""
        which, is_known = (limit_id, end_user), self._is_known(limit_id)
        limit = self.limits.get(limit_id)
        if limit is not None:
            self._drop_other_kind(limit, end_user)
        if is_known and self._runs_for(end_user):
            return False  # its settlement will be counted
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        meter = self._meters.get(which)
        if meter is not None:
            meter.refresh(now_s)
            if meter.total or meter.held or meter.due_s != math.inf:
                return False
            if not self._let_slice_go(meter):
                return False
            meter.is_gone = True
            del self._meters[which]
        windows = self._windows.get(which)
        if windows:
            if is_known and not all(_is_idle(one, wall_s) for one in windows.values()):
                return False
            self._drop(windows.values())
        self._windows.pop(which, None)
        self._named.remove(limit_id, end_user)
        return True

    def _let_slice_go(self, meter: Meter) -> bool:
        """Forget how far a meter may grant that has nothing left; not while it waits for more."""
        if not isinstance(meter, SlidingBudget):
            return True
        if meter.granted and not meter.asked:
            self._emit(DropCounters((meter.counter_id,)))
        return not meter.asked

    def _is_known(self, limit_id: str) -> bool:
        return "/" in limit_id or self.limits.get(limit_id) is not None

    def _caller_of(self, key: StoredKey, before: _Caller | None) -> _Caller:
        bounds = _bounds(key)
        is_current = before is not None and before.version == self.limits.version
        if before is not None and is_current and before.bounds == bounds:
            before.key = key  # what changed about it is nothing that limits it
            return before
        of = self.limits.of
        templates = of("end_user", key.key_id)
        if key.team_id:
            templates += of("end_user", key.team_id)
        own = (*_own_limits(key), *of("key", key.key_id))
        caller = _Caller(key, bounds, templates, own, self._others_of(key))
        self._callers[key.key_id] = caller
        return caller

    def _others_of(self, key: StoredKey) -> _Others:
        which = (key.user_id, key.team_id)
        found = self._others.get(which)
        if found is None or found.version != self.limits.version:
            of = self.limits.of
            limits = (
                *(of("user", key.user_id) if key.user_id else ()),
                *(of("team", key.team_id) if key.team_id else ()),
                *of("house", ""),
            )
            if len(self._others) >= MAX_OTHERS:
                self._others.clear()
            found = self._others[which] = _Others(self.limits.version, limits)
        return found

    def _build(
        self, caller: _Caller, model: str, endpoint: str, end_user: str, wall_s: float
    ) -> Plan:
        templates = caller.templates if end_user else ()
        asked = (model, endpoint)
        meters, since_s, until_s = self._meters_of(templates, end_user, asked, wall_s)
        own, own_since_s, own_until_s = self._meters_of(caller.own, "", asked, wall_s)
        others = caller.others
        if others.is_filtered:
            more, more_since_s, more_until_s = self._meters_of(others.limits, "", asked, wall_s)
        else:
            if not others.since_s <= wall_s < others.until_s:
                others.meters, others.since_s, others.until_s = self._meters_of(
                    others.limits, "", asked, wall_s
                )
            more, more_since_s, more_until_s = others.meters, others.since_s, others.until_s
        return Plan(
            [*meters, *own, *more],
            max(since_s, own_since_s, more_since_s),
            min(until_s, own_until_s, more_until_s),
            caller,
        )

    def _meters_of(
        self, limits: Iterable[Limit], end_user: str, asked: tuple[str, str], wall_s: float
    ) -> tuple[list[Meter], float, float]:
        """The meters of limits that fit a model and route, and the span in which they are these."""
        since_s, until_s = -math.inf, math.inf
        meters: list[Meter] = []
        for limit in limits:
            if not _fits(limit, *asked):
                continue
            meter, span = self._meter(limit, end_user, wall_s)
            meters.append(meter)
            since_s, until_s = max(since_s, span.begins_s), min(until_s, span.ends_s)
            if limit.raised_until is not None and wall_s < limit.raised_until:
                until_s = min(until_s, limit.raised_until)
        # A clock that was set back may lie before every window that is known.
        return meters, min(since_s, wall_s), until_s

    def _meter(self, limit: Limit, end_user: str, wall_s: float) -> tuple[Meter, Span]:
        if limit.measure != "parallel" and not limit.window.slides:
            return self._fixed(limit, end_user, wall_s)
        which = (limit.limit_id, end_user)
        meter = self._meters.get(which)
        amount = self._amount(limit, wall_s)
        if meter is None or not _is_same_kind(meter.limit, limit):
            self._drop_other_kind(limit, end_user)
            counter_id = self._take_counter() if limit.measure == "money" else 0
            meter = self._new_meter(limit, end_user, amount, counter_id)
            self._meters[which] = meter
            if isinstance(meter, SlidingBudget) and not end_user:
                self._budgets.append(meter)
            self._named.add(limit, end_user)
        elif meter.limit is not limit or meter.amount != amount:
            meter.change(limit, amount)
        return meter, Span(-math.inf, math.inf)

    def _drop_other_kind(self, limit: Limit, end_user: str) -> None:
        """Another count begins: the database forgets what a limit counted by another window.

        Leases may go on in it.
        """
        which = (limit.limit_id, end_user)
        meter, windows = self._meters.get(which), self._windows.get(which)
        if meter is not None and not _is_same_kind(meter.limit, limit):
            self._replace(meter)
            del self._meters[which]
        if windows is not None and not all(
            _is_same_kind(window.limit, limit) for window in windows.values()
        ):
            self._drop(windows.values())
            del self._windows[which]

    def _replace(self, meter: SlidingMeter | ParallelMeter) -> None:
        meter.is_gone = True
        counter_ids = meter.counter_ids if isinstance(meter, SlidingMeter) else ()
        for counter_id in counter_ids:
            self._of_slot.pop(counter_id, None)
        if isinstance(meter, SlidingBudget):
            counter_ids += (meter.counter_id,)
        if counter_ids:
            self._emit(DropCounters(counter_ids))

    def _new_meter(
        self, limit: Limit, end_user: str, amount: int, counter_id: int
    ) -> SlidingMeter | ParallelMeter:
        if limit.measure == "parallel":
            return ParallelMeter(limit, end_user, amount)
        if limit.measure == "money":
            return SlidingBudget(limit, end_user, amount, keeper=self, counter_id=counter_id)
        return SlidingMeter(limit, end_user, amount, self)

    # What meters tell.

    def note_crossing(self, meter: Meter) -> None:
        """See `SlotKeeper`."""
        self.crossed.append((meter, meter.total))

    def save_slice(self, meter: SlidingBudget) -> None:
        """See `SliceKeeper`."""
        if not meter.is_gone:
            self._emit(SaveCounter(meter.row))

    def open_slot(self, meter: SlidingMeter, begins_s: float) -> int:
        """See `SlotKeeper`."""
        if meter.is_gone:
            return 0  # what ran when its limit was removed: nobody would close the slot
        age_s = self._clock.monotonic_s() - begins_s
        row = CounterRow(
            self._take_counter(),
            meter.limit.limit_id,
            meter.end_user,
            math.ceil(self._clock.wall_s() - age_s),  # never sooner than it was
        )
        self._emit(SaveCounter(row))
        self._of_slot[row.counter_id] = meter
        return row.counter_id

    def close_slot(self, counter_id: int) -> None:
        """See `SlotKeeper`."""
        self._of_slot.pop(counter_id, None)
        self._emit(DropCounters((counter_id,)))

    # Fixed windows.

    def _fixed(self, limit: Limit, end_user: str, wall_s: float) -> tuple[FixedMeter, Span]:
        windows = self._windows.get((limit.limit_id, end_user), {})
        if not windows or not _is_same_kind(next(iter(windows.values())).limit, limit):
            self._drop_other_kind(limit, end_user)
            windows = {}
            # What was let in before anything counted must not begin, and end, the only window; nor
            # may the first one carry over what was left of a time in which there was no limit.
            wall_s = max(wall_s, self._clock.wall_s())
        span = _renewed(limit, windows, self._span_at(limit.window, wall_s))
        if not span.is_open:
            return self._closed(limit, end_user, span), span
        meter = windows.get(span.begins_s)
        if meter is None and windows:
            newest = next(reversed(windows.values()))
            if span.begins_s < newest.begins_s:
                # The clock was set back to a window whose count is not known any more: what is
                # used now counts in the newest one, so that nothing is granted twice.
                meter, span = newest, Span(-math.inf, newest.ends_s)
        amount = self._amount(limit, wall_s)
        if meter is None:
            return self._open_window(windows, limit, end_user, span, amount), span
        if meter.limit is not limit or meter.amount != amount + meter.carried:
            meter.change(limit, amount + meter.carried)
        return meter, span

    def _amount(self, limit: Limit, wall_s: float) -> int:
        """What may be used now: others share the meter of a lease that is opened late."""
        return limit.amount_at(max(wall_s, self._clock.wall_s()))

    def _span_at(self, window: Window, wall_s: float) -> Span:
        """As `span_at`, which has to look into a calendar, once for all that share a window."""
        span = self._spans.get(window)
        if span is None or not span.begins_s <= wall_s < span.ends_s:
            if len(self._spans) >= MAX_SPANS:
                self._spans.clear()
            span = self._spans[window] = span_at(window, wall_s)
        return span

    def _open_window(
        self,
        windows: dict[float, FixedMeter],
        limit: Limit,
        end_user: str,
        span: Span,
        amount: int,
    ) -> FixedMeter:
        before = _before(windows, span)
        carried = _carried(limit, before, span)
        meter = FixedMeter(
            limit,
            end_user,
            amount + carried,
            begins_s=span.begins_s,
            ends_s=span.ends_s,
            counter_id=self._take_counter(),
            carried=carried,
            keeper=self,
        )
        _hand_over(before, meter)
        self._emit(SaveCounter(meter.row))
        self._add_window(windows, meter)
        if limit.auto_renews:
            # The one before is kept for a clock that is set back, and for its last requests.
            for begins_s in list(windows)[:-2]:
                self._drop([windows.pop(begins_s)])
        return meter

    def _closed(self, limit: Limit, end_user: str, span: Span) -> FixedMeter:
        """A window in which nothing may be used; it counts nothing, so nobody remembers it."""
        return FixedMeter(
            limit,
            end_user,
            0,
            begins_s=span.begins_s,
            ends_s=span.ends_s,
            counter_id=0,
            is_open=False,
        )

    def _add_window(self, windows: dict[float, FixedMeter], meter: FixedMeter) -> None:
        windows[meter.begins_s] = meter
        self._windows[meter.limit.limit_id, meter.end_user] = windows
        self._by_counter[meter.counter_id] = meter
        self._named.add(meter.limit, meter.end_user)

    def _drop(self, meters: Iterable[FixedMeter]) -> None:
        counter_ids: tuple[int, ...] = ()
        for meter in meters:
            meter.is_gone = True
            self._by_counter.pop(meter.counter_id, None)
            counter_ids += (meter.counter_id,)
        if counter_ids:
            self._emit(DropCounters(counter_ids))

    def _take_counter(self) -> int:
        self._next_counter += 1
        return self._next_counter - 1

    # A restart.

    def _restore(self, counters: Iterable[CounterRow]) -> None:
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        stale: list[int] = []
        rows = sorted(counters, key=lambda row: (row.begins_at, row.counter_id))
        # Earlier releases left some of meters that were replaced: the newest meter's is right.
        newest = {(row.limit_id, row.end_user): row for row in rows if _is_slice(row)}
        for row in rows:
            limit = self.limits.get(row.limit_id)
            is_replaced = _is_slice(row) and newest[row.limit_id, row.end_user] is not row
            if limit is None or is_replaced or not self._restore_row(limit, row, now_s, wall_s):
                stale.append(row.counter_id)
        if stale:
            self._emit(DropCounters(tuple(stale)))

    def _restore_row(self, limit: Limit, row: CounterRow, now_s: float, wall_s: float) -> bool:
        """Count a row again; False when the limit is not of that kind any more."""
        if limit.window.slides:
            meter = self._meter(limit, row.end_user, wall_s)[0]
            if _is_slice(row):
                return _restore_slice(meter, row)
            if not isinstance(meter, SlidingMeter) or not meter.is_durable:
                return False
            # A wall clock that was set back must not make an age negative.
            meter.restore_slot(now_s - max(0.0, wall_s - row.begins_at), row.used, row.counter_id)
            self._of_slot[row.counter_id] = meter
            return True
        span = span_at(limit.window, row.begins_at)
        if not span.is_open or max(0.0, span.begins_s) != row.begins_at:
            return False
        meter = FixedMeter(
            limit,
            row.end_user,
            limit.amount_at(wall_s) + row.carried,
            begins_s=span.begins_s,
            ends_s=span.ends_s,
            counter_id=row.counter_id,
            carried=row.carried,
            keeper=self,
        )
        meter.restore(row.used, row.granted)
        windows = self._windows.get((limit.limit_id, row.end_user), {})
        _hand_over(_before(windows, span), meter)
        self._add_window(windows, meter)
        return True


def _is_slice(row: CounterRow) -> bool:
    return row.begins_at == SLICE_OF_SLIDING


def _restore_slice(meter: Meter, row: CounterRow) -> bool:
    """How far a meter could grant before; False when nobody needs to know that any more."""
    if not isinstance(meter, SlidingBudget) or not row.granted:
        return False
    meter.restore_slice(row.granted, row.counter_id)
    return True


def _bounds(key: StoredKey) -> object:
    """What of a key says which limits hold for it."""
    return (key.user_id, key.team_id, key.requests_per_minute, key.tokens_per_minute)


def _own_id(key_id: str, name: str) -> str:
    return f"{key_id}/{name}"


def _own_limits(key: StoredKey) -> list[Limit]:
    """The limits of a key that stand in its own row."""
    return [
        Limit(_own_id(key.key_id, name), name, "key", key.key_id, measure, amount, MINUTE)
        for name, measure in _OWN_LIMITS
        if (amount := getattr(key, name)) is not None
    ]


def _is_filtered(limit: Limit) -> bool:
    return limit.models is not None or limit.endpoints is not None


def _fits(limit: Limit, model: str, endpoint: str) -> bool:
    return _matches(limit.models, model) and _matches(limit.endpoints, endpoint)


def _matches(globs: tuple[str, ...] | None, text: str) -> bool:
    return globs is None or any(fnmatchcase(text, glob) for glob in globs)


def _is_idle(meter: FixedMeter, wall_s: float) -> bool:
    """Whether a window would be missed by nobody.

    One that is over is missed where no other one follows; where what it leaves is added to the next
    one, until that is over as well. One that runs is missed once something was used or is held.
    """
    limit = meter.limit
    if meter.ends_s > wall_s:
        is_unused = not meter.total and not meter.held and not meter.asked
        return is_unused and not limit.rolls_over
    kept_s = meter.ends_s - meter.begins_s if limit.rolls_over else 0.0
    return limit.auto_renews and meter.ends_s + kept_s <= wall_s


def _is_same_kind(before: Limit, after: Limit) -> bool:
    return before is after or (before.window == after.window and before.measure == after.measure)


def _renewed(limit: Limit, windows: dict[float, FixedMeter], span: Span) -> Span:
    """The same window, or none for a limit that doesn't renew and whose only one is over."""
    if limit.auto_renews or not span.is_open:
        return span
    only_s = float(limit.window.starts_at or 0)
    if limit.window.kind != "custom":
        # The newest: while it still renewed, others may have gone before.
        only_s = next(reversed(windows), span.begins_s)
    if span.begins_s > only_s:
        return Span(span.begins_s, math.inf, is_open=False)
    return span


def _before(windows: dict[float, FixedMeter], span: Span) -> FixedMeter | None:
    """The last window before a span of which anything is known."""
    earlier = (meter for begins_s, meter in windows.items() if begins_s < span.begins_s)
    return next(reversed(list(earlier)), None)


def _carried(limit: Limit, before: FixedMeter | None, span: Span) -> int:
    """What the window before left to this one, at most one amount; nothing of a raise for a while.

    It may have lapsed since the window was looked at, or have come after its end.
    """
    if not limit.rolls_over or before is None:
        return 0
    if before.ends_s < span.begins_s:
        return limit.amount  # nothing at all was used in the window before
    lasting = min(before.amount, limit.amount_at(math.inf) + before.carried)
    # What still runs counts as used: it may be.
    return max(0, min(limit.amount, lasting - before.total - before.held))


def _hand_over(before: FixedMeter | None, after: FixedMeter) -> None:
    """What a window left to the next one is no longer there when the clock is set back to it."""
    if before is not None and before.ends_s >= after.begins_s:
        before.leave(after.carried)
