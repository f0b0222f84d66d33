"""Parts that say where a caller stands: its windows, the limit that refused it, and warnings."""

from typing import Literal

from protocol.wire.messages.base import Part


class LimitState(Part, frozen=True):
    """Where a caller stands in its windows, for the `x-ratelimit-*` headers; None = no limit."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None


class LimitRefusal(Part, frozen=True):
    """The limit that refused a request: the tightest of all that had no room.

    Attributes:
        limit_id: `lim_…` or `bud_…`; of a key's own limits its id, a slash and the field.
        name: As people called it.
        holder: `end_user`, `key`, `user`, `team` or `house`.
        measure: `requests`, `tokens`, `prompt_tokens`, `completion_tokens`, `money`, `parallel`.
        window: `minute`, `hour`, `day`, `calendar_day` … `calendar_year`, `custom`, `total`.
        amount: What may be used; of money in micro-units of the one currency, as all amounts.
        used: What counts as used.
        reserved: What running requests hold.
        asked: What this request needed.
        source: `request`: it is over the whole amount alone; `used`: so much was used;
            `in_flight`: only running requests hold what is left.
        frees_s: Seconds until there is room by time alone; None = never, or nobody knows.
    """

    limit_id: str
    name: str
    holder: str
    measure: str
    window: str
    amount: int
    used: int
    reserved: int
    asked: int
    source: Literal["request", "used", "in_flight"]
    frees_s: float | None = None


class LimitWarning(Part, frozen=True):
    """A limit whose use has passed a threshold, or a soft one that is used up.

    Attributes:
        percent: The threshold that was passed; 100 or more = used up.
        used: What was settled, without what running requests hold.
        resets_s: Seconds until its window ends; None = never.
    """

    limit_id: str
    name: str
    holder: str
    measure: str
    window: str
    amount: int
    used: int
    percent: int
    is_hard: bool = True
    resets_s: float | None = None
