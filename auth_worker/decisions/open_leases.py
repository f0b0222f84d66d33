"""What running requests hold and what is charged when they end; pure, time is injected."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Final

from auth_worker.clock import Clock
from auth_worker.decisions.bookings import Bookings
from auth_worker.decisions.leases import Lease, LeaseTable
from auth_worker.decisions.limit_refusals import Refusal, refuse, refuse_parallel
from auth_worker.decisions.meter_table import MeterTable
from auth_worker.decisions.plans import NOTHING, Needs, Plan, Short, difference, needs_of
from auth_worker.decisions.restoring import Restoring, principal_of
from auth_worker.decisions.served_models import ServedModels
from auth_worker.decisions.sliced_meters import FixedMeter, SlidingBudget
from auth_worker.decisions.slices import Commit, Postponed, Slices
from auth_worker.principals.keys import ANONYMOUS_KEY_ID, KeyDirectory, StoredKey
from auth_worker.principals.prices import PriceTable, highest_cost
from auth_worker.records.lease_names import MAX_LEASE_ID_CHARS, LeaseName, lease_id_of
from auth_worker.records.operations import (
    BookUsage,
    LeaseRow,
    Operation,
    Result,
    SaveLease,
    Snapshot,
)
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, LeaseReport, Settle, StreamUsage

ORPHAN_TERM_S = 30.0
"""Time for every engine, and for the outbox of a gateway that restarts, to say what they know."""
MAX_SETTLED_REMEMBERED = 4096
"""Settled leases about which engines may still report; beyond it a report reads the ledger."""

_COUNTED: Final[Needs] = needs_of(0, 0, 0)


class OpenLeases:
    """The open leases and the limits they draw on.

    It is long because whatever can happen to a lease is a method.

    Restarts err on the safe side: open leases come back with their reservations and a full new
    term, what was granted and settled lately counts in the windows again, and what else a killed
    process may have granted of a hard budget or quota stays taken for as long as its leases lasted.

    Args:
        epoch: Of the store; makes the lease ids of this process unlike any other's.
        keys: All keys; looked at, never changed.
        meters: What the limits count.
        prices: What tokens cost.
        served: Models by whose names bookings are kept.
        slices: Makes room in hard budgets and quotas.
        snapshot: What the store remembered.
        duration_s: The term of a lease.
        clock: Both clocks.
        emit: Takes operations that nobody waits for.
        commit: Makes operations durable and says so.
    """

    def __init__(
        self,
        *,
        epoch: int,
        keys: KeyDirectory,
        meters: MeterTable,
        prices: PriceTable,
        served: ServedModels,
        slices: Slices,
        snapshot: Snapshot,
        duration_s: float,
        clock: Clock,
        emit: Callable[[Operation], None],
        commit: Commit,
    ) -> None:
        self._epoch = epoch
        self._keys = keys
        self._meters = meters
        self._prices = prices
        self._slices = slices
        self._clock = clock
        self._emit = emit
        self._commit = commit
        self._served = served
        self._bookings = Bookings(keys, meters, prices, served, clock)
        self._leases = LeaseTable(duration_s, min(duration_s, ORPHAN_TERM_S))
        self._settled: OrderedDict[str, None] = OrderedDict()
        self._num_open: dict[str, int] = {}
        self._num_open_for: dict[str, int] = {}  # by end user
        meters.watch_running(self._num_open_for.__contains__)
        self._num_granted = 0
        restoring = Restoring(keys, meters, clock)
        restoring.count_recent(snapshot)
        for row in snapshot.leases:
            if row.prompt_tokens or row.completion_tokens:
                lease = self._reopen(row, restoring.on_monotonic(row.granted_at_ms))
            else:  # nothing is granted without a bound: an engine's report opened it
                lease = self._reopen(row, may_be_booked=True)
            lease.may_have_ended = True
        self._unknown_until_s = clock.monotonic_s() + duration_s
        meters.hold_unknown(self._unknown_until_s)

    def __len__(self) -> int:
        return len(self._leases)

    def num_open(self, key_id: str) -> int:
        """Open leases of a key."""
        return self._num_open.get(key_id, 0)

    def forget(self, key_id: str) -> None:
        """A key was deleted; its open leases end by themselves."""
        self._meters.forget_key(key_id)

    def plan_of(self, key: StoredKey, command: Authorize, wall_s: float) -> Plan | Refusal | None:
        """The limits that a request counts in; None when none holds for it.

        A refusal when there are too many end users to count another one.
        """
        end_user = command.end_user if key.may_name_end_users else ""
        if end_user:
            refusal = self._meters.admit(key, end_user)
            if refusal is not None:
                return refusal
        return self._meters.plan_for(key, command.model, command.endpoint, end_user, wall_s)

    def grant(
        self, key: StoredKey, command: Authorize, plan: Plan | None, wall_s: float
    ) -> Lease | Refusal | Postponed:
        """A lease over the command's bound, if every limit has room.

        Returns:
            Postponed when a limit has room, but its slice of it must be committed first.
        """
        now_s = self._clock.monotonic_s()
        rules = key.rules
        most_parallel = rules.max_parallel_requests
        if most_parallel is not None and self.num_open(key.key_id) >= most_parallel:
            return refuse_parallel(key.key_id, most_parallel, self.num_open(key.key_id))
        prompt_tokens, completion_tokens = command.prompt_tokens, command.completion_tokens
        if rules.max_tokens_per_request is not None:
            completion_tokens = min(completion_tokens, rules.max_tokens_per_request)
        lease = Lease(  # by position, which takes half the time of so many names
            "",
            command.request_id,
            key.key_id,
            command.model,
            self._prices.moment(int(wall_s * 1000)),
            prompt_tokens,
            completion_tokens,
            now_s + self._leases.duration_s,
            plan,
            now_s,
            NOTHING,
            None,
            command.endpoint,
            command.end_user if key.may_name_end_users else "",
            key.user_id,
            key.team_id,
        )
        if plan is not None:
            unfit = self._reserve(lease, plan, now_s, wall_s)
            if unfit is not None:
                return unfit
        lease.lease_id = self._new_lease_id(key, command.model, lease.granted_at_ms)
        self._open(lease)
        self._emit(SaveLease(lease.row()))
        return lease

    def _reserve(
        self, lease: Lease, plan: Plan, now_s: float, wall_s: float
    ) -> Refusal | Postponed | None:
        if plan.has_money:
            lease.price = self._prices.price_of(lease.model, lease.granted_at_ms)
            if lease.price is None:
                return _refuse_unpriced(lease.model)
        needs = self._needs(lease, lease.prompt_tokens, lease.completion_tokens)
        while shorts := plan.reserve(now_s, needs):
            unfit = self._make_room(shorts, now_s, wall_s)
            if unfit is not None:
                return unfit
        lease.held = needs
        if plan.thirsty:
            self._replenish(plan, needs)
        return None

    def _make_room(
        self, shorts: Iterable[Short], now_s: float, wall_s: float
    ) -> Refusal | Postponed | None:
        """Refuse, or have slices committed; None when they are already, so that it fits now."""
        for_ever = [short for short in shorts if not _is_only_uncommitted(short)]
        if for_ever:
            return refuse(for_ever, now_s, wall_s)
        pending: Postponed | None = None
        for meter, need in shorts:
            if isinstance(meter, FixedMeter | SlidingBudget):
                pending = self._slices.ask(meter, need) or pending
        return pending

    def _replenish(self, plan: Plan, needs: Needs) -> None:
        for meter, need in plan.thirsty_meters(needs):
            self._slices.ask(meter, need)

    def count(
        self, key: StoredKey, command: Authorize, plan: Plan | None, wall_s: float
    ) -> Refusal | Postponed | None:
        """Count a request that uses no tokens, if every limit of requests has room.

        Its line in the ledger is under a lease id that nobody ever gets, so that totals and the
        windows after a restart follow from the ledger alone.
        """
        now_s = self._clock.monotonic_s()
        charges = ""
        if plan is not None:
            while shorts := plan.reserve(now_s, _COUNTED):
                unfit = self._make_room(shorts, now_s, wall_s)
                if unfit is not None:
                    return unfit
            plan.settle(now_s, _COUNTED, _COUNTED)
            charges = plan.charges_at(now_s, now_s)
            if plan.thirsty:
                self._replenish(plan, _COUNTED)
        now_ms = int(wall_s * 1000)
        self._emit(
            BookUsage(
                lease_id=self._new_lease_id(key, command.model, now_ms),
                request_id=command.request_id,
                key_id=key.key_id,
                model=self._served.booked(command.model, 0),
                prompt_tokens=0,
                completion_tokens=0,
                cached_tokens=0,
                reasoning_tokens=0,
                outcome="finished",
                granted_at_ms=now_ms,
                settled_at_ms=now_ms,
                user_id=key.user_id,
                team_id=key.team_id,
                end_user=command.end_user if key.may_name_end_users else "",
                endpoint=command.endpoint,
                charges=charges,
            )
        )
        return None

    def find(self, lease_id: str, request_id: str = "") -> Lease | None:
        """An open lease, or one of an earlier epoch that a kill forgot right after its grant.

        If that lease was in fact settled, the ledger ignores whatever comes of it here.
        """
        return self._leases.get(lease_id) or self._find_forgotten(lease_id, request_id)

    def _find_forgotten(
        self, lease_id: str, request_id: str, *, by_engine: bool = False
    ) -> Lease | None:
        name = self._forgotten_name(lease_id, of_this_epoch=by_engine)
        if name is None:
            return None
        row = LeaseRow(
            lease_id=lease_id,
            request_id=request_id,
            key_id=name.key_id,
            model=name.model,
            granted_at_ms=name.granted_by(self._wall_ms()),
            prompt_tokens=0,
            completion_tokens=0,
            reported_prompt_tokens=0,
            reported_completion_tokens=0,
        )
        lease = self._reopen(row, may_be_booked=by_engine)
        # One of this epoch has only expired: what it counted in is counted here already.
        lease.is_forgotten = name.epoch < self._epoch
        return lease

    def _forgotten_name(self, lease_id: str, *, of_this_epoch: bool = False) -> LeaseName | None:
        """What the id of a lease of an earlier epoch says, if its key still acts."""
        if len(lease_id) > MAX_LEASE_ID_CHARS:
            return None
        name = LeaseName.parse(lease_id)
        if name is None or name.epoch >= self._epoch + of_this_epoch:
            return None
        is_known = name.key_id == ANONYMOUS_KEY_ID or self._keys.principal(name.key_id) is not None
        return name if is_known else None

    def resize(
        self, lease: Lease, prompt_tokens: int, completion_tokens: int
    ) -> Refusal | Postponed | None:
        """Replace a lease's bound and begin a new term; growth needs room in every limit."""
        now_s = self._clock.monotonic_s()
        unfit: Refusal | Postponed | None = self._follow_limits(lease, now_s)
        if unfit is None and lease.plan is not None:
            unfit = self._resize(lease, lease.plan, (prompt_tokens, completion_tokens), now_s)
        if unfit is not None:
            return unfit
        lease.prompt_tokens = prompt_tokens
        lease.completion_tokens = completion_tokens
        self._leases.renew(lease, now_s)
        self._emit(SaveLease(lease.row()))
        return None

    def _follow_limits(self, lease: Lease, now_s: float) -> Refusal | None:
        """Somebody may have changed the key or a limit since the grant: what holds now counts."""
        key = self._keys.principal(lease.key_id)
        if key is None:
            return None
        plan = self._meters.plan_for(
            key, lease.model, lease.endpoint, lease.end_user, self._clock.wall_s()
        )
        before = lease.plan
        if plan is None or before is None:
            if plan is before:
                return None
        elif plan.origin is before.origin:
            return None
        else:
            plan = plan.joined(before)
        held = lease.held
        if plan is not None:
            if plan.has_money and lease.price is None:
                lease.price = self._prices.price_of(lease.model, lease.granted_at_ms)
                if lease.price is None:
                    return _refuse_unpriced(lease.model)
            held = self._needs(lease, lease.prompt_tokens, lease.completion_tokens)
        if before is not None:
            before.take_back(lease.held, None)
        if plan is not None:
            plan.take(now_s, held, starts=False)
        lease.plan, lease.held = plan, held
        return None

    def _needs(self, lease: Lease, prompt_tokens: int, completion_tokens: int) -> Needs:
        price, money = lease.price, 0
        if price is not None:
            money = highest_cost(price, prompt_tokens, completion_tokens, lease.endpoint)
        return (1, prompt_tokens + completion_tokens, prompt_tokens, completion_tokens, money)

    def _resize(
        self, lease: Lease, plan: Plan, tokens: tuple[int, int], now_s: float
    ) -> Refusal | Postponed | None:
        after = self._needs(lease, *tokens)
        while shorts := plan.grow(now_s, lease.held, after):
            unfit = self._make_room(shorts, now_s, self._clock.wall_s())
            if unfit is not None:
                return unfit
        if lease.may_have_ended:
            self._keep_unknown(plan, lease.held, after)
        lease.held = after
        if plan.thirsty:
            self._replenish(plan, after)
        return None

    def renew(self, report: LeaseReport) -> None:
        """Begin a new term and note what was used so far; reports never run backwards."""
        lease = self._leases.get(report.lease_id)
        if lease is None or lease.may_be_booked:
            lease = self._find_reported(report, lease) or lease
        if lease is None:
            return
        self._leases.renew(lease, self._clock.monotonic_s())
        if lease.may_have_ended:
            self._confirm(lease, report)
        before = (lease.reported_prompt_tokens, lease.reported_completion_tokens)
        lease.note_totals(report.prompt_tokens, report.completion_tokens)
        if report.streams:
            lease.note_streams(report.streams)
        if before != (lease.reported_prompt_tokens, lease.reported_completion_tokens):
            self._emit(SaveLease(lease.row()))

    def _confirm(self, lease: Lease, report: LeaseReport) -> None:
        """The gateway of a lease of before a kill says that it runs, and what it still holds.

        It may hold less than the disk knows, and a kill forgot that: then the rest may be held by
        others.
        """
        lease.may_have_ended = False
        plan = lease.plan
        prompt_tokens = min(lease.prompt_tokens, report.max_prompt_tokens)
        completion_tokens = min(lease.completion_tokens, report.max_completion_tokens)
        is_same = (prompt_tokens, completion_tokens) == (
            lease.prompt_tokens,
            lease.completion_tokens,
        )
        if plan is None or is_same or not report.endpoint:  # older gateways don't say
            return
        before, lease.held = lease.held, self._needs(lease, prompt_tokens, completion_tokens)
        lease.prompt_tokens, lease.completion_tokens = prompt_tokens, completion_tokens
        plan.take(self._clock.monotonic_s(), difference(lease.held, before), starts=False)
        self._keep_unknown(plan, before, lease.held)
        self._emit(SaveLease(lease.row()))

    def _keep_unknown(self, plan: Plan, before: Needs, after: Needs) -> None:
        """What a lease of before a kill gave back just now stays taken until all have ended."""
        if self._clock.monotonic_s() < self._unknown_until_s:
            plan.keep_unknown(difference(before, after), self._unknown_until_s)

    def _find_reported(self, report: LeaseReport, told: Lease | None) -> Lease | None:
        """A lease that a kill forgot; what it holds is said by its gateway, if that knows to.

        An engine that lost sight of the gateway may have opened it before, as one that ended.
        """
        if not report.endpoint:
            return told or self._find_forgotten(report.lease_id, "")
        name = self._forgotten_name(report.lease_id)
        if name is None:
            return None
        key = self._keys.principal(name.key_id)
        is_trusted = key is not None and key.may_name_end_users
        row = LeaseRow(
            lease_id=report.lease_id,
            request_id="",
            key_id=name.key_id,
            model=name.model,
            granted_at_ms=name.granted_by(self._wall_ms()),
            prompt_tokens=report.max_prompt_tokens,
            completion_tokens=report.max_completion_tokens,
            reported_prompt_tokens=0,
            reported_completion_tokens=0,
            endpoint=report.endpoint,
            end_user=report.end_user if is_trusted else "",
        )
        lease = self._reopen(row)
        if told is not None:
            lease.note_totals(told.reported_prompt_tokens, told.reported_completion_tokens)
            lease.streams = told.streams
        if lease.plan is not None:
            # It was among what the killed process may have granted, and holds its part itself now.
            lease.plan.take_unknown(NOTHING, lease.held)
        self._emit(SaveLease(lease.row()))
        return lease

    def note_orphans(self, usages: Iterable[StreamUsage]) -> list[SaveLease]:
        """Engines say what they did for a gateway that is gone; what is to be remembered of it.

        The leases expire soon and are charged then, unless a gateway renews or settles them first.
        What was settled is settled; a lease that has expired meanwhile, or that a restart forgot,
        is opened once more, so that the ledger gets the greater count. It may have been settled
        long ago, and its engine has ended it, so it takes no place of those that run.
        """
        by_lease: dict[str, list[StreamUsage]] = {}
        for usage in usages:
            by_lease.setdefault(usage.lease_id, []).append(usage)
        operations: list[SaveLease] = []
        for lease_id, streams in by_lease.items():
            if lease_id in self._settled:
                continue
            request_id = streams[0].stream.partition("/")[0]
            lease = self._leases.get(lease_id)
            if lease is None:
                lease = self._find_forgotten(lease_id, request_id, by_engine=True)
            if lease is not None:
                lease.note_streams(streams)
                self._leases.orphan(lease, self._clock.monotonic_s())
                operations.append(SaveLease(lease.row()))
        return operations

    def settle(self, command: Settle) -> BookUsage:
        """Release a lease; what to book for it.

        A lease that isn't open is booked anyway, on the key and model that its id names: it
        was settled before (the ledger then changes nothing), it expired (the ledger corrects it),
        or a kill forgot it. An id that is none of ours is booked on no key, so that the gateway's
        outbox can't get stuck and the tokens can still be seen.
        A grant that came too late for anybody goes back whole. One that has expired before is
        taken out of the totals; only its request stays in the window, for the rest of its time.
        """
        lease = self._leases.close(command.lease_id)
        if lease is not None:
            self._count_closed(lease)
        self._settled[command.lease_id] = None
        if len(self._settled) > MAX_SETTLED_REMEMBERED:
            self._settled.popitem(last=False)
        if lease is None:
            return self._bookings.of_unknown(command)
        plan, held = lease.plan, lease.held
        booking = self._bookings.of_open(lease, command)
        if lease.may_have_ended and plan is not None:
            self._keep_unknown(plan, held, _used_of(booking, lease, plan))
        return booking

    def booked(self, booking: BookUsage, result: Result) -> None:
        """A booking is durable: where the ledger counted other than was counted here, follow it."""
        self._bookings.booked(booking, result)

    def expire(self, at_most: int | None = None) -> int:
        """Charge leases whose term is over with their last report; how many there were."""
        num_expired = 0
        for lease in islice(self._leases.pop_expired(self._clock.monotonic_s()), at_most):
            num_expired += 1
            self._count_closed(lease)
            plan, held = lease.plan, lease.held
            booking = self._bookings.of_expired(lease)
            if lease.may_have_ended and plan is not None:
                self._keep_unknown(plan, held, _used_of(booking, lease, plan))
            if booking.charges or lease.is_forgotten or lease.may_be_booked:
                self._commit(booking, partial(self.booked, booking))
            else:
                self._emit(booking)
        return num_expired

    def _new_lease_id(self, key: StoredKey, model: str, granted_at_ms: int) -> str:
        self._num_granted += 1
        return lease_id_of(self._epoch, self._num_granted, granted_at_ms, key.key_id, model)

    def _reopen(
        self, row: LeaseRow, counted_s: float | None = None, *, may_be_booked: bool = False
    ) -> Lease:
        """Open a lease of an earlier epoch for a full new term, without asking for room."""
        key = principal_of(self._keys, row)
        plan = self._meters.plan_for(
            key, row.model, row.endpoint, row.end_user, row.granted_at_ms / 1000
        )
        lease = Lease(
            lease_id=row.lease_id,
            request_id=row.request_id,
            key_id=row.key_id,
            model=row.model,
            granted_at_ms=row.granted_at_ms,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            expires_s=self._clock.monotonic_s() + self._leases.duration_s,
            plan=plan,
            counted_s=counted_s,
            reported_prompt_tokens=row.reported_prompt_tokens,
            reported_completion_tokens=row.reported_completion_tokens,
            endpoint=row.endpoint,
            end_user=row.end_user,
            user_id=key.user_id,
            team_id=key.team_id,
            may_be_booked=may_be_booked,
        )
        if plan is not None:
            if plan.has_money:
                lease.price = self._prices.price_of(row.model, row.granted_at_ms)
            if not may_be_booked:
                lease.held = self._needs(lease, row.prompt_tokens, row.completion_tokens)
                if plan.readmit(self._clock.monotonic_s(), lease.held) and counted_s is not None:
                    lease.counted_s = self._clock.monotonic_s()
        self._open(lease)
        return lease

    def _open(self, lease: Lease) -> None:
        if not lease.may_be_booked:
            self._num_open[lease.key_id] = self._num_open.get(lease.key_id, 0) + 1
        if lease.end_user:
            self._num_open_for[lease.end_user] = self._num_open_for.get(lease.end_user, 0) + 1
        self._leases.open(lease)

    def _count_closed(self, lease: Lease) -> None:
        if not lease.may_be_booked:
            num_open = self._num_open.pop(lease.key_id) - 1
            if num_open:
                self._num_open[lease.key_id] = num_open
        if lease.end_user:
            num_open = self._num_open_for.pop(lease.end_user) - 1
            if num_open:
                self._num_open_for[lease.end_user] = num_open

    def _wall_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


def _is_only_uncommitted(short: Short) -> bool:
    """Whether there is room, and only its slice isn't committed."""
    meter, need = short
    if isinstance(meter, FixedMeter) and not meter.is_open:
        return False
    return isinstance(meter, FixedMeter | SlidingBudget) and meter.free >= need


def _used_of(booking: BookUsage, lease: Lease, plan: Plan) -> Needs:
    """What of a lease stays counted in the limits that it was granted by."""
    if booking.outcome == "unused" or lease.plan is not plan:
        return NOTHING
    return needs_of(booking.prompt_tokens, booking.completion_tokens, booking.cost_micros)


def _refuse_unpriced(model: str) -> Refusal:
    return Refusal(
        ErrorCode.PERMISSION_DENIED,
        f"The model '{model}' has no price, so a budget can't be held to. Ask an administrator for"
        " a price of this model, or for a default price.",
        is_unpriced=True,
    )
