"""Messages about what was used and what is left (since 1.4), for callers and for admins."""

from typing import Literal

from protocol.wire.messages.administration import Actor, KeyDetails
from protocol.wire.messages.base import Message, Part
from protocol.wire.messages.people import LimitSettings

UsageBucket = Literal["minute", "hour", "day", ""]
UsageGroup = Literal["key", "user", "team", "end_user", "model", "endpoint"]


class UsageRow(Part, frozen=True):
    """What was used within one bucket of time by one group.

    Attributes:
        begins_at: Unix seconds; 0 where all time is one bucket.
        key_id: Empty unless it was grouped by, as with the next five.
        prompt_tokens: With the cached ones.
        completion_tokens: With those of reasoning.
        cost_micros: By the prices of their time.
    """

    begins_at: int = 0
    key_id: str = ""
    user_id: str = ""
    team_id: str = ""
    end_user: str = ""
    model: str = ""
    endpoint: str = ""
    num_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_micros: int = 0


class ReadUsage(Message, frozen=True, tag="read_usage"):
    """What was used; of the reader's own key when no other is named.

    Attributes:
        key_id: Only with this key, as with the next four; empty = any, but for who may read no more
            than its own.
        is_of_all: Of everybody, for administrators.
        since_s: Unix seconds, inclusive, down to the full hour, or minute.
        until_s: Exclusive, up to the full hour, or minute.
        bucket: Rows by minute (since 1.5; as long as the ledger has its lines), by hour or by day
            (UTC); empty = one for all time.
        group_by: Rows of their own for each of these.
        skip: Rows that were read before.
    """

    request_id: str
    reader: Actor
    key_id: str = ""
    user_id: str = ""
    team_id: str = ""
    end_user: str = ""
    model: str = ""
    is_of_all: bool = False
    since_s: int = 0
    until_s: int = 0
    bucket: UsageBucket = ""
    group_by: tuple[UsageGroup, ...] = ()
    skip: int = 0
    limit: int = 100


class UsageFound(Message, frozen=True, tag="usage_found"):
    """The answer to `ReadUsage`: rows in the order of time."""

    request_id: str
    rows: tuple[UsageRow, ...]
    has_more: bool = False


class LimitStanding(Part, frozen=True):
    """How far a limit or budget is used at this moment.

    Attributes:
        amount: What may be used in this window: with a raise and what was carried over.
        used: What was used in it.
        reserved: What running requests hold besides.
        begins_at: Of the window, Unix seconds; None where it slides or has no begin.
        ends_at: None where it slides or never ends.
        daily_burn: What is used in a day at the pace of this window so far.
        projected: What will have been used at its end at that pace; None where it has no end.
        days_left: Until nothing is left at that pace; None when that is never.
        passed: The thresholds that it is beyond, in percent.
    """

    limit_id: str
    settings: LimitSettings
    amount: int
    used: int
    reserved: int = 0
    begins_at: int | None = None
    ends_at: int | None = None
    daily_burn: int = 0
    projected: int | None = None
    days_left: float | None = None
    passed: tuple[int, ...] = ()


class ReadStanding(Message, frozen=True, tag="read_standing"):
    """Which limits hold for a key, user or team, and how far each is used.

    Attributes:
        key_id: Of this key; without it and the next two of the reader's own.
        end_user: Under templates, of this end user of the key.
    """

    request_id: str
    reader: Actor
    key_id: str = ""
    user_id: str = ""
    team_id: str = ""
    end_user: str = ""


class Standing(Message, frozen=True, tag="standing"):
    """The answer to `ReadStanding`.

    Attributes:
        key: Its record, if it was asked for a key that the database knows.
        scopes: What the key may do, all in all.
        team_allowed_models: Globs that a model must fit besides those of the key; None = all.
    """

    request_id: str
    limits: tuple[LimitStanding, ...]
    key: KeyDetails | None = None
    scopes: tuple[str, ...] = ()
    team_allowed_models: tuple[str, ...] | None = None
