"""A model of callers, limits, prices, time and deaths: at no moment is more promised than there is.

What was booked, and what running requests may still use, is kept apart from the authority, by the
answers that it gave; it is compared with the limits after every step.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from auth_worker.decisions.authority import Authority, Rules
from auth_worker.decisions.plans import needs_of
from auth_worker.decisions.slices import Postponed
from auth_worker.decisions.windows import span_at
from auth_worker.principals.limit_rules import SLIDING_S, Holder, Limit, Measure, Window
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.records.operations import BookUsage, Result, Snapshot
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    Authorize,
    Denied,
    Granted,
    LeaseReport,
    Renew,
    Settle,
)
from tests.fakes.auth_parts import FakeClock, authorize, stored_key
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.limit_parts import HOUSE_PRICE, limit
from tests.fakes.memory_store import MemoryStore

LEASE_S = 600.0
SECRETS = {"key_a": "psk-a", "key_b": "psk-b", "key_c": "psk-c"}
KEYS = (
    stored_key(
        "key_a", SECRETS["key_a"], user_id="user_1", team_id="team_1", may_name_end_users=True
    ),
    stored_key("key_b", SECRETS["key_b"], user_id="user_1"),
    stored_key("key_c", SECRETS["key_c"], requests_per_minute=20, tokens_per_minute=4000),
)
USERS = (StoredUser("user_1", "Ada"),)
TEAMS = (StoredTeam("team_1", "search", members={"user_1": "member"}),)
HOLDERS: dict[Holder, tuple[str, ...]] = {
    "end_user": ("key_a", "team_1"),
    "key": ("key_a", "key_b"),
    "user": ("user_1",),
    "team": ("team_1",),
    "house": ("",),
}
INDEX = {"requests": 0, "tokens": 1, "prompt_tokens": 2, "completion_tokens": 3, "money": 4}
AMOUNTS: dict[Measure, st.SearchStrategy[int]] = {
    "requests": st.integers(1, 12),
    "tokens": st.integers(100, 2000),
    "prompt_tokens": st.integers(50, 1000),
    "completion_tokens": st.integers(50, 1000),
    "money": st.integers(200, 4000),
    "parallel": st.integers(1, 4),
}
WINDOWS = st.sampled_from(
    [
        *(Window(kind) for kind in ("minute", "hour", "day", "total")),
        Window("calendar_day", "America/Havana"),
        Window("calendar_week"),
        Window("calendar_month", "Europe/Berlin"),
        Window("custom", starts_at=1_749_990_000, length_s=5000),
    ]
)


@st.composite
def limits(draw: st.DrawFn) -> Limit:
    holder = draw(st.sampled_from(sorted(HOLDERS)))
    measure = draw(st.sampled_from(sorted(AMOUNTS)))
    window = Window("total") if measure == "parallel" else draw(WINDOWS)
    return limit(
        measure,
        draw(AMOUNTS[measure]),
        window,
        holder,
        draw(st.sampled_from(HOLDERS[holder])),
        models=draw(st.sampled_from([None, ("demo",)])),
        is_hard=draw(st.sampled_from([True, True, True, False])),
        rolls_over=draw(st.booleans()) and not window.slides,
        auto_renews=draw(st.booleans()) or window.slides or window.kind == "total",
        thresholds=draw(st.sampled_from([(), (50, 90)])),
    )


@dataclass
class Run:
    """A request as its gateway knows it."""

    key_id: str
    model: str
    end_user: str
    granted_s: float
    wall_s: float
    prompt: int
    completion: int
    renewed_s: float
    used: tuple[int, int] = (0, 0)
    is_abandoned: bool = False
    ended_s: float | None = None
    is_forgotten: bool = False
    windows: dict[str, float] = field(default_factory=dict)

    def bound(self, measure: Measure) -> int:
        money = self.prompt + 2 * self.completion
        return needs_of(self.prompt, self.completion, money)[INDEX[measure]]


class NoOverspend(RuleBasedStateMachine):
    """Gateways, an authority and a database; each may die, only the database remembers."""

    @initialize(many=st.lists(limits(), min_size=1, max_size=6))
    def begin(self, many: list[Limit]) -> None:
        self.clock = FakeClock()
        self.limits = many
        self.store = MemoryStore(
            Snapshot(
                keys=KEYS,
                leases=(),
                recent=(),
                users=USERS,
                teams=TEAMS,
                limits=tuple(many),
                prices=(HOUSE_PRICE,),
            )
        )
        self.runs: dict[str, Run] = {}
        self.settles: dict[str, Settle] = {}  # not acknowledged
        self.epoch = 0
        self.has_forgotten = False
        self.restart()

    def restart(self) -> None:
        self.epoch += 1
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
            )
            for one in self.limits:
                if not one.window.slides and one.measure != "parallel":
                    run.windows[one.limit_id] = span_at(one.window, run.wall_s).begins_s
            self.runs[answer.lease_id] = run
        else:
            assert isinstance(answer, Denied)
            assert answer.limit is not None, answer

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
        self.settles[lease_id] = Settle(
            lease_id=lease_id,
            request_id="r",
            prompt_tokens=run.used[0],
            completion_tokens=run.used[1],
            is_unused=is_unused,
            endpoint="/v1/chat/completions",
            end_user=run.end_user,
        )
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
            reports.append(
                LeaseReport(
                    lease_id=lease_id,
                    prompt_tokens=run.used[0],
                    completion_tokens=run.used[1],
                    max_prompt_tokens=run.prompt,
                    max_completion_tokens=run.completion,
                    endpoint="/v1/chat/completions",
                    end_user=run.end_user,
                )
            )
        self.authority.renew(Renew(leases=tuple(reports)))

    # Time and deaths.

    @rule()
    def commit(self) -> None:
        self.store.commit()

    @rule(seconds=st.sampled_from([0.4, 7.0, 61.0, 240.0, 1500.0, 3700.0, 40_000.0, 90_000.0]))
    def advance(self, seconds: float) -> None:
        """Gateways renew meanwhile, and what they abandoned expires."""
        while seconds > 0:
            step = min(seconds, 300.0 if self.open() or self.open(abandoned=True) else seconds)
            self.clock.advance(step)
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

    @rule()
    def stop(self) -> None:
        """A restart in good order: what is queued is committed, and nobody hears of it any more."""
        self.authority.close()
        self.store.commit(tells=False)
        self.restart()

    # What must hold.

    def concerns(self, one: Limit, run: Run) -> bool:
        if one.models is not None and run.model not in one.models:
            return False
        key = next(key for key in KEYS if key.key_id == run.key_id)
        ids = {"key": key.key_id, "user": key.user_id, "team": key.team_id, "house": ""}
        if one.holder == "end_user":
            return bool(run.end_user) and one.holder_id in (key.key_id, key.team_id)
        return one.holder_id == ids[one.holder]

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
        return needs_of(prompt, completion, prompt + 2 * completion)[INDEX[measure]]

    @invariant()
    def no_fixed_window_is_overspent(self) -> None:
        for one in getattr(self, "limits", ()):
            if one.window.slides or one.measure == "parallel" or not one.is_hard:
                continue
            spent: dict[tuple[str, float], int] = {}
            for lease_id, run in self.runs.items():
                if self.concerns(one, run):
                    of = run.end_user if one.holder == "end_user" else ""
                    # Without another window the amount is there once for all of time.
                    window = (of, run.windows[one.limit_id] if one.auto_renews else 0.0)
                    charged = self.charged(lease_id, run, one.measure)
                    spent[window] = spent.get(window, 0) + charged
            most = one.amount * (2 if one.rolls_over else 1)
            assert all(total <= most for total in spent.values()), (one, spent)

    @invariant()
    def no_sliding_window_is_overspent(self) -> None:
        if not hasattr(self, "limits"):
            return
        now_s = self.clock.monotonic
        for one in self.limits:
            if not one.window.slides or not one.is_hard or one.measure == "parallel":
                continue
            if self.has_forgotten and one.measure != "money":
                continue  # rates live in memory; only budgets and quotas survive a kill exactly
            span_s = SLIDING_S[one.window.kind]
            spent: dict[str, int] = {}
            for lease_id, run in self.runs.items():
                if not self.concerns(one, run):
                    continue
                of = run.end_user if one.holder == "end_user" else ""
                counted_s = run.granted_s if one.measure == "requests" else run.ended_s
                if counted_s is None or counted_s > now_s - span_s:
                    charged = self.charged(lease_id, run, one.measure)
                    spent[of] = spent.get(of, 0) + charged
            assert all(total <= one.amount for total in spent.values()), (one, spent)

    @invariant()
    def no_more_run_at_a_time_than_may(self) -> None:
        for one in getattr(self, "limits", ()):
            if one.measure != "parallel" or not one.is_hard:
                continue
            running: dict[str, int] = {}
            for run in self.runs.values():
                if self.concerns(one, run) and run.ended_s is None:
                    of = run.end_user if one.holder == "end_user" else ""
                    running[of] = running.get(of, 0) + 1
            forgotten = len(self.runs) if self.has_forgotten else 0
            assert all(number <= one.amount + forgotten for number in running.values())

    @invariant()
    def every_counter_is_the_sum_of_its_bookings(self) -> None:
        if not hasattr(self, "store"):
            return
        names = {one.limit_id: one for one in self.limits}
        for row in self.store.counters.values():
            one = names[row.limit_id]
            if one.window.slides:
                continue
            # What a kill forgot counts in the window in which its gateway told of it.
            if any(run.is_forgotten and self.concerns(one, run) for run in self.runs.values()):
                continue
            expected = 0
            for lease_id, booking in self.store.ledger.items():
                run = self.runs[lease_id]
                of = run.end_user if one.holder == "end_user" else ""
                begins_s = max(0.0, run.windows[one.limit_id])
                is_of_it = (of, begins_s) == (row.end_user, row.begins_at)
                if self.concerns(one, run) and is_of_it and booking.outcome != "unused":
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
