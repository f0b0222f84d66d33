"""What the model of no overspending is made of: callers, limits, prices, and a request as its
gateway knows it."""

from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from auth_worker.decisions.plans import needs_of
from auth_worker.principals.limit_rules import Holder, Limit, Measure, Window
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.prices import Price
from auth_worker.records.operations import Snapshot
from protocol.wire.messages import LeaseReport, Settle
from tests.fakes.auth_parts import stored_key
from tests.fakes.limit_parts import HOUSE_PRICE, limit

LEASE_S = 600.0
TOKENS_PER_PRICE = 1_000_000
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
    price: Price = HOUSE_PRICE
    used: tuple[int, int] = (0, 0)
    is_abandoned: bool = False
    ended_s: float | None = None
    is_forgotten: bool = False
    windows: dict[str, float] = field(default_factory=dict)

    @property
    def told(self) -> LeaseReport:
        """As its gateway tells of it, but for the name of its lease."""
        return LeaseReport(
            lease_id="",
            prompt_tokens=self.used[0],
            completion_tokens=self.used[1],
            max_prompt_tokens=self.prompt,
            max_completion_tokens=self.completion,
            endpoint="/v1/chat/completions",
            end_user=self.end_user,
        )

    def settlement(self, lease_id: str, *, is_unused: bool) -> Settle:
        """Of what it used."""
        return Settle(
            lease_id=lease_id,
            request_id="r",
            prompt_tokens=self.used[0],
            completion_tokens=self.used[1],
            is_unused=is_unused,
            endpoint="/v1/chat/completions",
            end_user=self.end_user,
        )

    def is_under(self, one: Limit) -> bool:
        """Whether it concerns a limit."""
        if one.models is not None and self.model not in one.models:
            return False
        key = next(key for key in KEYS if key.key_id == self.key_id)
        ids = {"key": key.key_id, "user": key.user_id, "team": key.team_id, "house": ""}
        if one.holder == "end_user":
            return bool(self.end_user) and one.holder_id in (key.key_id, key.team_id)
        return one.holder_id == ids[one.holder]

    def whose(self, one: Limit) -> str:
        """For whom it counts in a limit; empty where that is the same for all."""
        return self.end_user if one.holder == "end_user" else ""

    def bound(self, measure: Measure) -> int:
        return self.needs(self.prompt, self.completion, measure)

    def needs(self, prompt: int, completion: int, measure: Measure) -> int:
        """What so many tokens count, at the price of its grant."""
        money = prompt * self.price.prompt + completion * self.price.completion
        return needs_of(prompt, completion, money // TOKENS_PER_PRICE)[INDEX[measure]]


def another_price(before: Price, prompt: int, completion: int, valid_from_ms: int) -> Price:
    """The next version of a price: so many micro-units a token."""
    return replace(
        before,
        version=before.version + 1,
        valid_from_ms=valid_from_ms,
        prompt=prompt * TOKENS_PER_PRICE,
        completion=completion * TOKENS_PER_PRICE,
        reasoning=completion * TOKENS_PER_PRICE,
    )


def price_at(versions: list[Price], wall_s: float) -> Price:
    """The one of a moment; the newest stands last."""
    return next(one for one in reversed(versions) if one.valid_from_ms <= int(wall_s * 1000))


def snapshot_of(many: list[Limit]) -> Snapshot:
    """What a database holds before anything is asked."""
    return Snapshot(
        keys=KEYS,
        leases=(),
        recent=(),
        users=USERS,
        teams=TEAMS,
        limits=tuple(many),
        prices=(HOUSE_PRICE,),
    )
