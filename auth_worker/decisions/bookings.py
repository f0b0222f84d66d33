"""What is charged when a request ends, and what the ledger's answer means for the counts here."""

from collections import OrderedDict
from typing import Final, NamedTuple

from auth_worker.clock import Clock
from auth_worker.decisions.leases import Lease
from auth_worker.decisions.meter_table import MeterTable
from auth_worker.decisions.plans import NOTHING, Needs, Plan, difference, needs_of
from auth_worker.decisions.served_models import ServedModels
from auth_worker.principals.keys import ANONYMOUS, ANONYMOUS_KEY_ID, KeyDirectory, StoredKey
from auth_worker.principals.prices import Price, PriceTable, cost
from auth_worker.records.lease_names import LeaseName
from auth_worker.records.limit_usage import Booked, amounts_of
from auth_worker.records.operations import BookUsage, Outcome, Result
from protocol.wire.messages import Settle

MAX_EXPIRED_REMEMBERED: Final = 4096
"""Expired leases whose price and limits are known when their settlement comes late."""
MAX_LATE: Final = 4096
"""Late settlements on their way to the disk whose limits are known when they come back."""


class _Expired(NamedTuple):
    """What the settlement of an expired lease is priced by, and counts in.

    Attributes:
        plan: Where its last report was counted first; None when that was before a restart.
        counted_s: When that was, on the monotonic clock.
    """

    price: Price | None
    granted_at_ms: int
    plan: Plan | None = None
    counted_s: float = 0.0


class _Uncertain(NamedTuple):
    """Where the use of a lease counts that the ledger may know already.

    Attributes:
        plan: Its limits.
        at_s: When it counts, on the monotonic clock.
    """

    plan: Plan
    at_s: float


class BookLate(BookUsage):
    """A booking that may not be the first: it counts here once the ledger says that it is new."""

    __slots__ = ()


class Bookings:
    """Turns the ends of leases into bookings.

    Args:
        keys: All keys.
        meters: What the limits count.
        prices: What tokens cost.
        served: Models by whose names bookings are kept.
        clock: Both clocks.
    """

    def __init__(
        self,
        keys: KeyDirectory,
        meters: MeterTable,
        prices: PriceTable,
        served: ServedModels,
        clock: Clock,
    ) -> None:
        self._served = served
        self._keys = keys
        self._meters = meters
        self._prices = prices
        self._clock = clock
        self._expired: OrderedDict[str, _Expired] = OrderedDict()
        self._uncertain: OrderedDict[str, _Uncertain] = OrderedDict()

    def of_open(self, lease: Lease, command: Settle) -> BookUsage:
        """The settlement of a lease that is open, counted at once."""
        if command.is_unused:
            return self._of_unused(lease, command)
        if command.has_begun:
            self._served.note(command.model or lease.model)
        if lease.is_forgotten:
            self._find_limits(lease, command)
        if command.model not in ("", lease.model):
            self._move(lease, command.model)
        return self._counted(
            lease,
            command.prompt_tokens,
            command.completion_tokens,
            cached_tokens=command.cached_tokens,
            reasoning_tokens=command.reasoning_tokens,
            outcome=command.outcome,
            request_id=command.request_id,
            has_begun=command.has_begun,
        )

    def of_expired(self, lease: Lease) -> BookUsage:
        """The last report of a lease that nobody settled, counted at once.

        Nobody has said that nothing was computed, so it costs the price of a request until somebody
        does.
        """
        booking = self._counted(
            lease,
            lease.reported_prompt_tokens,
            lease.reported_completion_tokens,
            cached_tokens=0,
            reasoning_tokens=0,
            outcome="expired",
            request_id=lease.request_id,
        )
        if not isinstance(booking, BookLate):
            self._expired[lease.lease_id] = _Expired(
                lease.price, lease.granted_at_ms, lease.plan, self._clock.monotonic_s()
            )
        else:
            self._expired.setdefault(lease.lease_id, _Expired(lease.price, lease.granted_at_ms))
        if len(self._expired) > MAX_EXPIRED_REMEMBERED:
            self._expired.popitem(last=False)
        return booking

    def of_unknown(self, command: Settle) -> BookUsage:
        """The settlement of a lease that isn't open; what it counts in is said by `booked`."""
        now_ms = int(self._clock.wall_s() * 1000)
        name = LeaseName.parse(command.lease_id)
        key_id, model = ("", "") if name is None else (name.key_id, name.model)
        granted_at_ms = now_ms if name is None else name.granted_by(now_ms)
        is_of_another = command.model not in ("", model)
        model = command.model or model
        is_used = not command.is_unused
        if command.has_begun:
            self._served.note(model)
        key = self._key(key_id)
        expired = self._expired.get(command.lease_id, _Expired(None, granted_at_ms))
        price = None if is_of_another else expired.price
        # A key that is gone, or a token that isn't known any more, doesn't make it free.
        price = price or self._prices.price_of(model, expired.granted_at_ms)
        charges = ""
        if key is not None:
            end_user = command.end_user if key.may_name_end_users else ""
            # In the windows that it was let in by, which a limit may have no more of.
            plan = self._meters.plan_for(
                key, model, command.endpoint, end_user, granted_at_ms / 1000
            )
            if plan is not None:
                now_s = self._clock.monotonic_s()
                plan.open_slots(now_s)
                charges = plan.charges_at(now_s, now_s)
                self._note_uncertain(command.lease_id, plan, now_s)
        return BookLate(
            lease_id=command.lease_id,
            request_id=command.request_id,
            key_id=key_id,
            model=self._served.booked(
                model, (command.prompt_tokens + command.completion_tokens) * is_used, price
            ),
            prompt_tokens=command.prompt_tokens * is_used,
            completion_tokens=command.completion_tokens * is_used,
            cached_tokens=command.cached_tokens * is_used,
            reasoning_tokens=command.reasoning_tokens * is_used,
            outcome=command.outcome if is_used else "unused",
            granted_at_ms=None if name is None or name.granted_at_ms is None else granted_at_ms,
            settled_at_ms=now_ms,
            user_id="" if key is None else key.user_id,
            team_id="" if key is None else key.team_id,
            end_user=command.end_user if key is not None and key.may_name_end_users else "",
            endpoint=command.endpoint,
            cost_micros=_cost(price, command, command.endpoint) * is_used,
            price_id="" if price is None else price.price_id,
            price_version=0 if price is None else price.version,
            charges=charges,
        )

    def booked(self, booking: BookUsage, result: Result) -> None:
        """Follow the ledger where it counted other than was counted here."""
        is_late = isinstance(booking, BookLate)
        uncertain = self._uncertain.pop(booking.lease_id, None)
        if isinstance(result, Booked):
            # They name the counters of the first booking, whatever this one counts in.
            changes = dict(result.changes)
            if not is_late:
                for counter_id, amount in amounts_of(booking):
                    changes[counter_id] = changes.get(counter_id, 0) - amount
            self._meters.correct(changes.items())
            self._correct_minutes(booking, needs_of(*result.more), uncertain, is_late=is_late)
        elif is_late and result is None:
            expired = self._expired.get(booking.lease_id)
            # What expired here was never among what a killed process may have granted.
            were_unknown = expired is None or expired.plan is None
            self._meters.correct(amounts_of(booking), were_unknown=were_unknown)
            if uncertain is not None and booking.outcome != "unused":
                now_s = self._clock.monotonic_s()
                uncertain.plan.count_minutes(now_s, _used_by(booking))
                if expired is not None:
                    counted = expired._replace(plan=uncertain.plan, counted_s=now_s)
                    self._expired[booking.lease_id] = counted

    def _correct_minutes(
        self, booking: BookUsage, more: Needs, uncertain: _Uncertain | None, *, is_late: bool
    ) -> None:
        """Windows of a minute have no counters: what the ledger changed is counted here.

        What another process counted first may have left its window: then it is only ever more.
        """
        expired = self._expired.get(booking.lease_id)
        if uncertain is not None and not is_late:
            uncertain.plan.correct_minutes(uncertain.at_s, difference(NOTHING, _used_by(booking)))
            if expired is not None and expired.plan is uncertain.plan:
                expired = self._expired[booking.lease_id] = expired._replace(plan=None)
        if expired is not None and expired.plan is not None:
            expired.plan.correct_minutes(expired.counted_s, more)
        elif uncertain is not None:
            _, total, prompt, completion, money = (max(0, amount) for amount in more)
            uncertain.plan.correct_minutes(uncertain.at_s, (0, total, prompt, completion, money))

    def _note_uncertain(self, lease_id: str, plan: Plan, now_s: float) -> None:
        self._uncertain[lease_id] = _Uncertain(plan, now_s)
        if len(self._uncertain) > MAX_LATE:
            self._uncertain.popitem(last=False)

    def _of_unused(self, lease: Lease, command: Settle) -> BookUsage:
        if lease.plan is not None:
            lease.plan.take_back(lease.held, lease.counted_s)
        return self._booking(
            lease, 0, 0, outcome="unused", request_id=command.request_id, charges=""
        )

    def _find_limits(self, lease: Lease, command: Settle) -> None:
        """A kill forgot what a lease counted in; its settlement knows."""
        key = self._key(lease.key_id)
        if key is None or (lease.endpoint, lease.end_user) == (command.endpoint, command.end_user):
            return
        if lease.plan is not None:
            lease.plan.take_back(lease.held, None)
        lease.held = NOTHING
        lease.endpoint = command.endpoint
        lease.end_user = command.end_user if key.may_name_end_users else ""
        lease.plan = self._meters.plan_for(
            key, lease.model, lease.endpoint, lease.end_user, lease.granted_at_ms / 1000
        )

    def _move(self, lease: Lease, model: str) -> None:
        """Another model answered than the one of the lease: its price and its limits count."""
        if lease.plan is not None:
            lease.plan.take_back(lease.held, lease.counted_s)
        lease.plan, lease.held, lease.counted_s = None, NOTHING, None
        lease.model, lease.price = model, None
        key = self._key(lease.key_id)
        if key is None:
            return
        lease.plan = self._meters.plan_for(
            key, model, lease.endpoint, lease.end_user, lease.granted_at_ms / 1000
        )
        if lease.plan is not None:
            # What was used was used: it counts whether there is room or not.
            lease.held, lease.counted_s = needs_of(0, 0, 0), self._clock.monotonic_s()
            lease.plan.take(lease.counted_s, lease.held, starts=True)

    def _counted(
        self,
        lease: Lease,
        prompt_tokens: int,
        completion_tokens: int,
        *,
        cached_tokens: int,
        reasoning_tokens: int,
        outcome: Outcome,
        request_id: str,
        has_begun: bool = True,
    ) -> BookUsage:
        if lease.price is None:
            lease.price = self._prices.price_of(lease.model, lease.granted_at_ms)
        price, money, charges, is_late = lease.price, 0, "", False
        if price is not None:
            money = cost(
                price,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                cached_tokens=cached_tokens,
                reasoning_tokens=reasoning_tokens,
                endpoint=lease.endpoint,
                has_begun=has_begun,
            )
        plan = lease.plan
        if plan is not None:
            now_s = self._clock.monotonic_s()
            used = (1, prompt_tokens + completion_tokens, prompt_tokens, completion_tokens, money)
            # What holds nothing but its place can wait until the ledger says that it is new.
            is_late = lease.may_be_booked and not lease.held[1] and lease.counted_s is None
            if lease.is_forgotten or lease.may_be_booked:
                self._note_uncertain(lease.lease_id, plan, now_s)
            if is_late:
                plan.take_back(lease.held, None)
            else:
                if lease.is_forgotten:
                    plan.take_unknown(lease.held, used)
                plan.settle(now_s, lease.held, used)
            if is_late or outcome == "expired":
                plan.open_slots(now_s)
            charges = plan.charges_at(now_s, now_s if is_late else lease.counted_s)
        booking = self._booking(
            lease,
            prompt_tokens,
            completion_tokens,
            cached_tokens=cached_tokens,
            reasoning_tokens=reasoning_tokens,
            outcome=outcome,
            request_id=request_id,
            charges=charges,
            cost_micros=money,
        )
        return BookLate._make(booking) if is_late else booking

    def _booking(
        self,
        lease: Lease,
        prompt_tokens: int,
        completion_tokens: int,
        *,
        outcome: Outcome,
        request_id: str,
        charges: str,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
        cost_micros: int = 0,
    ) -> BookUsage:
        price = lease.price
        return BookUsage._make(  # takes half the time of a call of the class
            (
                lease.lease_id,
                request_id,
                lease.key_id,
                self._served.booked(lease.model, prompt_tokens + completion_tokens, price),
                prompt_tokens,
                completion_tokens,
                cached_tokens,
                reasoning_tokens,
                outcome,
                lease.granted_at_ms,
                int(self._clock.wall_s() * 1000),
                lease.user_id,
                lease.team_id,
                lease.end_user,
                lease.endpoint,
                cost_micros,
                "" if price is None else price.price_id,
                0 if price is None else price.version,
                charges,
                0,
            )
        )

    def _key(self, key_id: str) -> StoredKey | None:
        return ANONYMOUS if key_id == ANONYMOUS_KEY_ID else self._keys.principal(key_id)


def _used_by(booking: BookUsage) -> Needs:
    return needs_of(booking.prompt_tokens, booking.completion_tokens, booking.cost_micros)


def _cost(price: Price | None, command: Settle, endpoint: str) -> int:
    if price is None:
        return 0
    return cost(
        price,
        prompt_tokens=command.prompt_tokens,
        completion_tokens=command.completion_tokens,
        cached_tokens=command.cached_tokens,
        reasoning_tokens=command.reasoning_tokens,
        endpoint=endpoint,
        has_begun=command.has_begun,
    )
