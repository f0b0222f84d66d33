"""A model of callers, limits, prices, time and deaths: at no moment is more promised than there is.

What was booked, and what running requests may still use, is kept apart from the authority, by the
answers that it gave; it is compared with the limits after every step.
"""

import math
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from auth_worker.decisions.authority import Authority, Rules
from auth_worker.decisions.plans import needs_of
from auth_worker.decisions.slices import Postponed
from auth_worker.decisions.windows import span_at
from auth_worker.principals.keys import StoredKey
from auth_worker.principals.limit_rules import SLIDING_S, Limit, Measure, Window
from auth_worker.records.operations import BookUsage, Result
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    Authorize,
    Denied,
    Granted,
    Renew,
    Settle,
)
from tests.fakes.auth_parts import FakeClock, authorize
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.limit_parts import HOUSE_PRICE
from tests.fakes.memory_store import MemoryStore
from tests.fakes.overspend_parts import (
    INDEX,
    KEYS,
    LEASE_S,
    SECRETS,
    WINDOWS,
    Run,
    another_price,
    limits,
    price_at,
    snapshot_of,
)

MAX_BACK_S = 3000.0
"""How far the wall clock is set back: into the window before, but no further."""


class NoOverspend(RuleBasedStateMachine):
    """Gateways, an authority and a database; each may die, only the database remembers.

    Administrators change limits, prices and keys meanwhile, and the wall clock is set.
    """

    @initialize(many=st.lists(limits(), min_size=1, max_size=6))
    def begin(self, many: list[Limit]) -> None:
        self.clock = FakeClock()
        self.limits = many
        self.prices = [HOUSE_PRICE]
        self.keys: dict[str, StoredKey] = {key.key_id: key for key in KEYS}
        self.most = {one.limit_id: one.amount for one in many}  # that ever held
        self.before: dict[str, set[str]] = {}  # runs that another window of a limit counts
        self.seen: dict[Any, int] = {}  # what was promised when it was looked at last
        self.latest_s = self.clock.wall
        self.was_set_back = self.was_set_ahead = self.slides_vaguely = False
        self.store = MemoryStore(snapshot_of(many))
        self.runs: dict[str, Run] = {}
        self.settles: dict[str, Settle] = {}  # not acknowledged
        self.epoch = 0
        self.has_forgotten = False
        self.restart()

    def restart(self) -> None:
        self.epoch += 1
        # What outlives the process is as old as the wall clock says, and that was set.
        self.slides_vaguely |= self.epoch > 1 and (self.was_set_ahead or self.was_set_back)
        self.started_s = self.clock.monotonic
        self.authority = Authority(
            epoch=self.epoch,
            snapshot=self.store.load(int((self.clock.wall - 60) * 1000)),
            rules=Rules(lease_duration_s=LEASE_S),
            clock=self.clock,
            emit=self.store.emit,
            commit=self.store.submit,
        )
        # As gateways do when an auth worker comes.
        self.renew_all()
        for settle in list(self.settles.values()):
            self.send(settle)

    # Requests.

    @rule(
        key_id=st.sampled_from(sorted(SECRETS)),
        model=st.sampled_from(["demo", "other"]),
        end_user=st.sampled_from(["", "ada", "bob"]),
        prompt=st.integers(1, 120),
        completion=st.integers(1, 120),
        number=st.sampled_from([1, 1, 3, 8]),
    )
    def ask(
        self, key_id: str, model: str, end_user: str, prompt: int, completion: int, number: int
    ) -> None:
        for _ in range(number):
            self.decide(
                key_id,
                authorize(
                    SECRETS[key_id],
                    model=model,
                    end_user=end_user,
                    prompt_tokens=prompt,
                    completion_tokens=completion,
                    scope="chat.completions",
                ),
                self.authority,
            )

    def decide(self, key_id: str, command: Authorize, authority: Authority) -> None:
        answer = authority.authorize(command)
        if isinstance(answer, Postponed):
            answer.then(lambda is_durable: self.decide(key_id, command, authority))
        elif isinstance(answer, Granted):
            is_trusted = key_id == "key_a"
            run = Run(
                key_id,
                command.model,
                command.end_user if is_trusted else "",
                self.clock.monotonic,
                self.clock.wall,
                command.prompt_tokens,
                command.completion_tokens,
                self.clock.monotonic,
                price_at(self.prices, self.clock.wall),
            )
            for one in self.limits:
                if not one.window.slides and one.measure != "parallel":
                    run.windows[one.limit_id] = span_at(one.window, run.wall_s).begins_s
            self.runs[answer.lease_id] = run
        else:
            assert isinstance(answer, Denied)
            is_suspended = self.keys[key_id].suspended_at is not None
            assert (answer.code is ErrorCode.INVALID_API_KEY) is is_suspended, answer
            assert is_suspended or answer.limit is not None, answer

    def open(self, *, abandoned: bool = False) -> list[str]:
        return [
            lease_id
            for lease_id, run in self.runs.items()
            if run.ended_s is None and run.is_abandoned == abandoned
        ]

    @precondition(lambda self: self.open())
    @rule(which=st.integers(0, 1000), more=st.integers(-60, 80))
    def adjust(self, which: int, more: int) -> None:
        lease_id = self.open()[which % len(self.open())]
        run = self.runs[lease_id]
        completion = max(run.used[1], run.completion + more)
        self.change(
            Adjust(
                request_id="a",
                lease_id=lease_id,
                prompt_tokens=run.prompt,
                completion_tokens=completion,
            ),
            self.authority,
        )

    def change(self, command: Adjust, authority: Authority) -> None:
        run = self.runs[command.lease_id]
        if run.ended_s is not None or run.is_abandoned or authority is not self.authority:
            return
        answer = authority.adjust(command)
        if isinstance(answer, Postponed):
            answer.then(lambda is_durable: self.change(command, authority))
        elif isinstance(answer, Adjusted):
            assert command.completion_tokens <= run.completion or not self.is_suspended(run)
            run.completion = command.completion_tokens

    @precondition(lambda self: self.open())
    @rule(which=st.integers(0, 1000), share=st.floats(0.0, 1.0), is_unused=st.booleans())
    def settle(self, which: int, share: float, is_unused: bool) -> None:
        lease_id = self.open()[which % len(self.open())]
        run = self.runs[lease_id]
        is_unused = is_unused and run.used == (0, 0) and share < 0.2
        completion = max(run.used[1], int(run.completion * share))
        run.used = (0, 0) if is_unused else (run.prompt, completion)
        run.ended_s = self.clock.monotonic
        self.settles[lease_id] = run.settlement(lease_id, is_unused=is_unused)
        self.send(self.settles[lease_id])

    def send(self, settle: Settle) -> None:
        booking = self.authority.settle(settle)
        assert isinstance(booking, BookUsage)
        authority = self.authority

        def on_done(result: Result) -> None:
            authority.booked(booking, result)
            self.settles.pop(settle.lease_id, None)

        self.store.submit(booking, on_done)

    @precondition(lambda self: self.settles)
    @rule()
    def repeat(self) -> None:
        """A gateway sends again what isn't acknowledged."""
        self.send(next(iter(self.settles.values())))

    @precondition(lambda self: self.open())
    @rule(which=st.integers(0, 1000), share=st.floats(0.0, 1.0))
    def stream(self, which: int, share: float) -> None:
        run = self.runs[self.open()[which % len(self.open())]]
        run.used = (run.prompt, max(run.used[1], int(run.completion * share)))
        self.renew_all()

    def renew_all(self) -> None:
        reports = []
        for lease_id in self.open():
            run = self.runs[lease_id]
            run.renewed_s = self.clock.monotonic
            reports.append(structs.replace(run.told, lease_id=lease_id))
        self.authority.renew(Renew(leases=tuple(reports)))

    # Administration; what is acknowledged is durable.

    @rule(which=st.integers(0, 1000), share=st.sampled_from([0.1, 0.5, 0.9, 1.5, 4.0]))
    def change_amount(self, which: int, share: float) -> None:
        one = self.limits[which % len(self.limits)]
        self.put(replace(one, amount=max(1, int(one.amount * share))))

    @rule(which=st.integers(0, 1000), window=WINDOWS)
    def change_window(self, which: int, window: Window) -> None:
        """Another count begins; what was let in by the old one goes on in that."""
        one = self.limits[which % len(self.limits)]
        if one.measure == "parallel" or one.window == window:
            return
        self.before[one.limit_id] = set(self.runs)
        self.seen = {
            where: total for where, total in self.seen.items() if one.limit_id not in where
        }
        self.put(replace(one, window=window, auto_renews=True, rolls_over=False))

    def put(self, changed: Limit) -> None:
        self.limits = [changed if one.limit_id == changed.limit_id else one for one in self.limits]
        self.most[changed.limit_id] = max(self.most[changed.limit_id], changed.amount)
        self.note(limits=tuple(self.limits))
        self.authority.limits.put(changed)

    @rule(prompt=st.integers(1, 3), completion=st.integers(1, 4))
    def change_price(self, prompt: int, completion: int) -> None:
        """From a moment on that the clock hasn't shown yet, whatever it is set to."""
        self.latest_s += 0.002
        self.clock.advance(self.latest_s - self.clock.wall)
        valid_from_ms = int(self.latest_s * 1000)
        self.prices.append(another_price(self.prices[-1], prompt, completion, valid_from_ms))
        self.note(prices=tuple(self.prices))
        self.authority.prices.put(self.prices[-1])

    @rule(key_id=st.sampled_from(sorted(SECRETS)))
    def suspend_or_reactivate(self, key_id: str) -> None:
        suspended_at = int(self.clock.wall) if self.keys[key_id].suspended_at is None else None
        self.keys[key_id] = replace(self.keys[key_id], suspended_at=suspended_at)
        self.note(keys=tuple(self.keys.values()))
        self.authority.keys.put(self.keys[key_id])

    def is_suspended(self, run: Run) -> bool:
        return self.keys[run.key_id].suspended_at is not None

    def note(self, **changed: Any) -> None:
        self.store.snapshot = replace(self.store.snapshot, **changed)

    # Time and deaths.

    @rule(seconds=st.sampled_from([-MAX_BACK_S, -61.0, -1.0, 1.0, 61.0, 5000.0, 100_000.0]))
    def set_clock(self, seconds: float) -> None:
        """Of the wall, not the one that measures."""
        oldest_s = max(self.latest_s - MAX_BACK_S, self.prices[-1].valid_from_ms / 1000 + 0.001)
        if seconds < 0 and self.clock.wall + seconds < oldest_s:
            return
        self.clock.wall += seconds
        self.latest_s = max(self.latest_s, self.clock.wall)
        self.was_set_back = self.was_set_back or seconds < 0
        self.was_set_ahead = self.was_set_ahead or seconds > 0

    @rule()
    def commit(self) -> None:
        self.store.commit()

    @rule(seconds=st.sampled_from([0.4, 7.0, 61.0, 240.0, 1500.0, 3700.0, 40_000.0, 90_000.0]))
    def advance(self, seconds: float) -> None:
        """Gateways renew meanwhile, and what they abandoned expires."""
        while seconds > 0:
            step = min(seconds, 300.0 if self.open() or self.open(abandoned=True) else seconds)
            self.clock.advance(step)
            self.latest_s = max(self.latest_s, self.clock.wall)
            seconds -= step
            self.renew_all()
            self.authority.expire()
            self.forget_expired()

    def forget_expired(self) -> None:
        for lease_id in self.open(abandoned=True):
            run = self.runs[lease_id]
            if self.clock.monotonic >= max(run.renewed_s, self.started_s) + LEASE_S:
                run.ended_s = self.clock.monotonic

    @precondition(lambda self: self.open())
    @rule(which=st.integers(0, 1000))
    def abandon(self, which: int) -> None:
        """A gateway dies with one of its requests."""
        run = self.runs[self.open()[which % len(self.open())]]
        run.used = (0, 0)  # what its lease was charged is what the authority heard of it
        run.is_abandoned = True

    @precondition(lambda self: self.open())
    @rule()
    def kill_with_gateways(self) -> None:
        """A machine goes down: nobody tells of what ran, and it may have used all that it might."""
        for lease_id in self.open():
            self.runs[lease_id].used = (0, 0)
            self.runs[lease_id].is_abandoned = True
        self.kill()

    @rule()
    def kill(self) -> None:
        """kill -9: what was not committed never happened, but gateways remember their part."""
        self.has_forgotten = self.has_forgotten or self.store.num_pending > 0
        self.store.lose()
        for lease_id, run in self.runs.items():
            is_known = lease_id in self.store.leases or lease_id in self.store.ledger
            run.is_forgotten = run.is_forgotten or not is_known
        self.restart()

    @precondition(lambda self: self.open())
    @rule(which=st.integers(0, 1000), number=st.integers(1, 4))
    def settle_grant_and_forget_both(self, which: int, number: int) -> None:
        """What a settlement freed is granted, and a machine goes down before either is durable."""
        lease_id = self.open()[which % len(self.open())]
        run = self.runs[lease_id]
        asked = (run.key_id, run.model, run.end_user, 1, max(1, run.completion - 1))
        self.ask(*asked, 8)  # until nothing is left
        self.store.commit()
        self.settle(self.open().index(lease_id), 0.0, False)
        self.ask(*asked, number)
        self.kill_with_gateways()
        self.ask(*asked, number)

    @rule()
    def stop(self) -> None:
        """A restart in good order: what is queued is committed, and nobody hears of it any more."""
        self.authority.close()
        self.store.commit(tells=False)
        self.restart()

    # What must hold.

    def is_within(self, most: int, one: Limit, *which: Any, total: int) -> bool:
        """Whether no more is promised than may be, or was before the amount was lowered."""
        where = (one.limit_id, *which)
        before, self.seen[where] = self.seen.get(where, 0), total
        return total <= max(most, before)

    def counted(self, one: Limit) -> list[tuple[str, Run]]:
        """What a limit counts, or holds, by the window that it has now."""
        before = self.before.get(one.limit_id, ())
        return [
            (lease_id, run)
            for lease_id, run in self.runs.items()
            if lease_id not in before and run.is_under(one)
        ]

    def charged(self, lease_id: str, run: Run, measure: Measure) -> int:
        """What counts of a request: its bound while it runs, then what was booked of it."""
        if run.ended_s is None:
            return run.bound(measure)
        booking = self.store.ledger.get(lease_id)
        if lease_id in self.settles or booking is None:
            settle = self.settles.get(lease_id)
            if settle is None or settle.is_unused:
                return 0
            prompt, completion = settle.prompt_tokens, settle.completion_tokens
        elif booking.outcome == "unused":
            return 0
        else:
            prompt, completion = booking.prompt_tokens, booking.completion_tokens
        return run.needs(prompt, completion, measure)

    @invariant()
    def no_fixed_window_is_overspent(self) -> None:
        for one in getattr(self, "limits", ()):
            if one.window.slides or one.measure == "parallel" or not one.is_hard:
                continue
            spent: dict[tuple[str, float], int] = {}
            for lease_id, run in self.counted(one):
                of = run.whose(one)
                # Without another window the amount is there once for all of time.
                window = (of, run.windows[one.limit_id] if one.auto_renews else 0.0)
                charged = self.charged(lease_id, run, one.measure)
                spent[window] = spent.get(window, 0) + charged
            most = one.amount + (self.most[one.limit_id] if one.rolls_over else 0)
            for window, total in spent.items():
                assert self.is_within(most, one, *window, total=total), (one, spent)

    @invariant()
    def no_sliding_window_is_overspent(self) -> None:
        if not hasattr(self, "limits"):
            return
        now_s = self.clock.monotonic
        for one in self.limits:
            if not one.window.slides or not one.is_hard or one.measure == "parallel":
                continue
            if self.slides_vaguely or (self.has_forgotten and one.measure != "money"):
                continue  # rates live in memory; only budgets and quotas survive a kill exactly
            span_s = SLIDING_S[one.window.kind]
            spent: dict[str, int] = {}
            for lease_id, run in self.counted(one):
                of = run.whose(one)
                counted_s = run.granted_s if one.measure == "requests" else run.ended_s
                if counted_s is None or counted_s > now_s - span_s:
                    charged = self.charged(lease_id, run, one.measure)
                    spent[of] = spent.get(of, 0) + charged
            for of in self.seen_of(one) | spent.keys():
                total = spent.get(of, 0)
                assert self.is_within(one.amount, one, of, total=total), (one, spent)

    def seen_of(self, one: Limit) -> set[str]:
        """For whom something was counted before, which may have left the window."""
        return {where[1] for where in self.seen if where[0] == one.limit_id}

    @invariant()
    def no_more_run_at_a_time_than_may(self) -> None:
        for one in getattr(self, "limits", ()):
            if one.measure != "parallel" or not one.is_hard:
                continue
            running: dict[str, int] = {}
            for _, run in self.counted(one):
                if run.ended_s is None:
                    of = run.whose(one)
                    running[of] = running.get(of, 0) + 1
            forgotten = len(self.runs) if self.has_forgotten else 0
            for of in self.seen_of(one) | running.keys():
                number = running.get(of, 0)
                assert self.is_within(one.amount + forgotten, one, of, total=number), running

    @invariant()
    def every_counter_is_the_sum_of_its_bookings(self) -> None:
        if not hasattr(self, "store"):
            return
        names = {one.limit_id: one for one in self.limits}
        for row in self.store.counters.values():
            one = names[row.limit_id]
            if one.window.slides or one.limit_id in self.before or self.was_set_back:
                continue  # what began in another window, or day, is booked in that one
            # What a kill forgot counts in the window in which its gateway told of it.
            if any(run.is_forgotten and run.is_under(one) for run in self.runs.values()):
                continue
            expected = 0
            for lease_id, booking in self.store.ledger.items():
                run = self.runs[lease_id]
                of = run.whose(one)
                begins_s = max(0.0, run.windows[one.limit_id])
                is_of_it = (of, begins_s) == (row.end_user, row.begins_at)
                if run.is_under(one) and is_of_it and booking.outcome != "unused":
                    tokens = (booking.prompt_tokens, booking.completion_tokens)
                    needs = needs_of(*tokens, booking.cost_micros)
                    expected += needs[INDEX[one.measure]]
            assert row.used == expected, (one, row)

    def teardown(self) -> None:
        """In the end nothing is held any more."""
        if not hasattr(self, "store"):
            return
        while self.store.num_pending:
            self.store.commit()  # which may let in who waited for a slice
        for lease_id in self.open():
            self.runs[lease_id].used = (0, 0)
            self.settle(0, 0.5, False)
        for _ in range(3):
            self.store.commit()
            self.advance(700.0)
        held: dict[Any, int] = {}
        meters = self.authority._meters
        for windows in meters._windows.values():
            for window in windows.values():
                window.refresh(math.inf)
                held[window.limit] = window.held
        for meter in meters._meters.values():
            meter.refresh(math.inf)
            held[meter.limit] = meter.held
        assert not any(held.values()), held
        assert not any(meter.asked for meter in meters._sliced())


TestNoOverspend = NoOverspend.TestCase
TestNoOverspend.settings = settings(max_examples=60 * EFFORT, stateful_step_count=40, deadline=None)
