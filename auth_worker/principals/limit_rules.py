"""What a limit says: how much of what, for whom and how long; a budget is a limit of money."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

Holder = Literal["end_user", "key", "user", "team", "house"]
"""Whose use counts, the narrowest first."""

Measure = Literal["requests", "tokens", "prompt_tokens", "completion_tokens", "money", "parallel"]
"""What is counted; `parallel` are requests that run, `money` is in micro-units."""

WindowKind = Literal[
    "minute",
    "hour",
    "day",
    "calendar_day",
    "calendar_week",
    "calendar_month",
    "calendar_year",
    "custom",
    "total",
]

HOLDERS: Final[tuple[Holder, ...]] = get_args(Holder)
MEASURES: Final[tuple[Measure, ...]] = get_args(Measure)

SLIDING_S: Final[dict[WindowKind, float]] = {"minute": 60.0, "hour": 3600.0, "day": 86_400.0}
"""The windows that slide; what they hold frees little by little."""

MICROS_PER_UNIT: Final = 1_000_000
"""Micro-units of one unit of the deployment's currency."""


@dataclass(frozen=True, slots=True)
class Window:
    """How long an amount counts.

    Attributes:
        kind: `minute`, `hour` and `day` slide; calendar windows begin at midnight of their time
            zone (weeks on Monday); `custom` begins at `starts_at`; `total` never ends.
        time_zone: An IANA name; only of calendar windows.
        starts_at: Unix seconds; only of custom windows.
        length_s: Of a custom window, which is repeated when the limit renews itself.
    """

    kind: WindowKind
    time_zone: str = "UTC"
    starts_at: int | None = None
    length_s: int | None = None

    @property
    def slides(self) -> bool:
        """Whether it has no fixed begin."""
        return self.kind in SLIDING_S


@dataclass(frozen=True, slots=True)
class Limit:
    """How much of one measure a holder may use in a window.

    Attributes:
        limit_id: `lim_…`, or `bud_…` where the measure is money.
        holder_id: The id of a key, user or team; empty for the deployment. For end users the key or
            team whose every end user gets a limit of its own by this template.
        amount: Of money in micro-units of the deployment's currency (1 USD = 1,000,000).
        models: Globs; None = all models.
        endpoints: Globs; None = all endpoints.
        is_hard: Whether requests are refused beyond it; otherwise it only warns.
        thresholds: In percent of the amount: from there on answers and webhooks warn.
        rolls_over: What one window leaves is added to the next one (never more than one amount).
        auto_renews: Whether a new window begins when one ends; otherwise the limit has no room
            after its first one.
        raised_by: Added to the amount until `raised_until`, Unix seconds; None = without end.
        counts_since: When its count began, Unix seconds: it was made or given another window then.
    """

    limit_id: str
    name: str
    holder: Holder
    holder_id: str
    measure: Measure
    amount: int
    window: Window
    models: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None
    is_hard: bool = True
    thresholds: tuple[int, ...] = ()
    rolls_over: bool = False
    auto_renews: bool = True
    raised_by: int = 0
    raised_until: int | None = None
    counts_since: int = 0

    def amount_at(self, wall_s: float) -> int:
        """What may be used in one window at that Unix second, with a raise as long as it lasts."""
        if self.raised_by and (self.raised_until is None or wall_s < self.raised_until):
            return self.amount + self.raised_by
        return self.amount
