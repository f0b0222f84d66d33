"""What an administrator says about users, teams, limits and prices, checked and taken apart."""

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from msgspec import structs

from auth_worker.errors import InvalidCommandError
from auth_worker.principals.checks import (
    LAST_SECOND,
    MAX_LIMIT,
    MAX_NAME_CHARS,
    Check,
    check_globs,
    check_limit,
    check_metadata,
    check_tags,
    require,
    text_of,
)
from auth_worker.principals.limit_rules import Limit, Window
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.prices import Price
from auth_worker.principals.webhooks import (
    MAX_SECRET_BYTES,
    MIN_SECRET_BYTES,
    SECRET_PREFIX,
    StoredWebhook,
    signing_key,
)
from protocol.wire.messages import (
    LimitSettings,
    LimitWindow,
    PriceSettings,
    Resource,
    ResourceKind,
    ResourceSettings,
    TeamSettings,
    UserSettings,
    WebhookSettings,
)

MAX_EVENTS: Final = 32
MAX_EVENT_CHARS: Final = 64
MAX_EMAIL_CHARS: Final = 254
MAX_THRESHOLDS: Final = 10
MIN_CUSTOM_S: Final = 60
MAX_CUSTOM_S: Final = 100 * 366 * 86_400
MAX_PRICE: Final = 10**12
"""A million units of the currency a million tokens: with it no sum of a request leaves 64 bits."""

SETTINGS_OF: Final[dict[ResourceKind, type[ResourceSettings]]] = {
    "user": UserSettings,
    "team": TeamSettings,
    "limit": LimitSettings,
    "budget": LimitSettings,
    "price": PriceSettings,
    "webhook": WebhookSettings,
}
PERSONAL_FIELDS: Final = frozenset({"name", "email", "tags", "metadata"})
"""What may tell of people: the audit log, which can't forget, says only that they changed."""
FIXED_FIELDS: Final = frozenset({"holder", "holder_id", "measure"})
"""Of a limit: what was counted so far would mean something else."""

_RAISING: Final = frozenset({"raised_by", "raised_until"})
_CALENDAR: Final[frozenset[LimitWindow]] = frozenset(
    {"calendar_day", "calendar_week", "calendar_month", "calendar_year"}
)


def checked(
    kind: ResourceKind, settings: ResourceSettings, *, wall_s: float, fields: Iterable[str] = ()
) -> ResourceSettings:
    """The settings in the form in which they are kept, if they are within bounds.

    Args:
        kind: Of the resource.
        settings: All of it, with what changes.
        wall_s: Unix seconds.
        fields: What is new; without names everything is.

    Raises:
        InvalidCommandError: A value is out of bounds; `param` names the field.
    """
    if not isinstance(settings, SETTINGS_OF[kind]):
        raise InvalidCommandError(f"These are no settings of a {kind}.", param="settings")
    new = frozenset(fields) or frozenset(type(settings).__struct_fields__)
    if isinstance(settings, UserSettings | TeamSettings | LimitSettings | WebhookSettings):
        settings = structs.replace(settings, name=settings.name.strip())
    for name in type(settings).__struct_fields__:
        check = _CHECKS.get(name)
        if check is not None:
            check(name, getattr(settings, name))
    if isinstance(settings, LimitSettings):
        _check_limit(kind, settings, wall_s, new)
    if isinstance(settings, PriceSettings) and "valid_from" in new:
        require(
            settings.valid_from is None or wall_s < settings.valid_from <= LAST_SECOND,
            "valid_from",
            "must be a time in the future and before year 10000, in Unix seconds: what was paid"
            " stays paid",
        )
    return settings


def check_names(kind: ResourceKind, fields: Iterable[str]) -> None:
    """Refuse changes of fields that there aren't, or that stay as they were made.

    Raises:
        InvalidCommandError: `param` names the field.
    """
    for name in fields:
        known = name in SETTINGS_OF[kind].__struct_fields__
        require(known, name[:100], f"is no field of a {kind}")
        is_fixed = kind in ("limit", "budget") and name in FIXED_FIELDS
        require(not is_fixed, name, f"stays as it was made; make another {kind}")


def merged(
    known: ResourceSettings, settings: ResourceSettings, fields: Iterable[str]
) -> ResourceSettings:
    """The known settings with the named ones in place of their own.

    Raises:
        InvalidCommandError: They are of another kind.
    """
    if type(known) is not type(settings):
        raise InvalidCommandError("The settings are of another kind.", param="settings")
    return structs.replace(known, **{name: getattr(settings, name) for name in fields})


def audited(settings: ResourceSettings, fields: Iterable[str]) -> dict[str, Any]:
    """What the audit log says of the named settings: values, but of personal ones just `…`."""
    # The name of a limit is nobody's; that of a user is.
    is_of_people = isinstance(settings, UserSettings | TeamSettings)
    if isinstance(settings, WebhookSettings):
        # The path of an address is a secret as often as not.
        shown = {"url": urlsplit(settings.url).netloc, "secret": "…"}
        return {name: shown.get(name, getattr(settings, name)) for name in sorted(fields)}
    return {
        name: "…" if is_of_people and name in PERSONAL_FIELDS else getattr(settings, name)
        for name in sorted(fields)
    }


def user_of(resource: Resource) -> StoredUser:
    """A user as the authority knows it."""
    settings = resource.settings
    assert isinstance(settings, UserSettings)  # noqa: S101 - its kind says so
    return StoredUser(
        user_id=resource.resource_id,
        name=settings.name,
        email=settings.email,
        role=settings.role,
        kind=settings.kind,
        suspended_at=resource.suspended_at,
    )


def webhook_of(resource: Resource) -> StoredWebhook:
    """A new webhook as the auth worker knows it, with its secret."""
    settings = resource.settings
    assert isinstance(settings, WebhookSettings)  # noqa: S101 - its kind says so
    return StoredWebhook(
        webhook_id=resource.resource_id,
        url=settings.url,
        events=settings.events,
        secret=settings.secret,
        after_seq=0 if resource.webhook is None else resource.webhook.after_seq,
    )


def team_of(resource: Resource) -> StoredTeam:
    """A team as the authority knows it."""
    settings = resource.settings
    assert isinstance(settings, TeamSettings)  # noqa: S101 - its kind says so
    return StoredTeam(
        team_id=resource.resource_id,
        name=settings.name,
        tenant_is_shared=settings.tenant_is_shared,
        allowed_models=settings.allowed_models,
        suspended_at=resource.suspended_at,
        members={member.user_id: member.role for member in resource.members},
    )


def limit_of(limit_id: str, settings: LimitSettings, counts_since: int) -> Limit:
    """A limit as the authority knows it."""
    window = Window(
        kind=settings.window,
        time_zone=settings.time_zone,
        starts_at=settings.starts_at,
        length_s=settings.length_s,
    )
    same = {
        name: getattr(settings, name)
        for name in LimitSettings.__struct_fields__
        if name not in ("window", "time_zone", "starts_at", "length_s")
    }
    return Limit(limit_id=limit_id, window=window, counts_since=counts_since, **same)


def limit_settings(limit: Limit) -> LimitSettings:
    """What was said about a limit."""
    return LimitSettings(
        window=limit.window.kind,
        time_zone=limit.window.time_zone,
        starts_at=limit.window.starts_at,
        length_s=limit.window.length_s,
        **{
            name: getattr(limit, name)
            for name in LimitSettings.__struct_fields__
            if name not in ("window", "time_zone", "starts_at", "length_s")
        },
    )


def price_of(
    price_id: str,
    version: int,
    settings: PriceSettings,
    *,
    valid_from_ms: int,
    is_ended: bool = False,
) -> Price:
    """A version of a price as the authority knows it, with what was left open filled in."""

    def given(amount: int | None, otherwise: int) -> int:
        return otherwise if amount is None else amount

    return Price(
        price_id=price_id,
        version=version,
        models=settings.models,
        valid_from_ms=valid_from_ms,
        prompt=settings.prompt,
        cached_prompt=given(settings.cached_prompt, settings.prompt),
        completion=settings.completion,
        reasoning=given(settings.reasoning, settings.completion),
        embedding=given(settings.embedding, settings.prompt),
        request=settings.request,
        is_ended=is_ended,
    )


def _check_limit(
    kind: ResourceKind, settings: LimitSettings, wall_s: float, new: frozenset[str]
) -> None:
    """The rules of a limit between its fields."""
    is_money = settings.measure == "money"
    require(
        is_money is (kind == "budget"),
        "measure",
        "must be money in a budget, and is not in a limit: make a budget for that",
    )
    require(
        bool(settings.holder_id) is (settings.holder != "house"),
        "holder_id",
        "is the id of a key, a user or a team (for end users of a key or team); `house` has none",
    )
    window, is_calendar = settings.window, settings.window in _CALENDAR
    if settings.measure == "parallel":
        require(window == "total", "window", "of parallel requests must be total")
    _check_time_zone(settings.time_zone)
    require(is_calendar or settings.time_zone == "UTC", "time_zone", "is for calendar windows only")
    is_custom = window == "custom"
    for name in ("starts_at", "length_s"):
        is_given = getattr(settings, name) is not None
        rule = "is needed by a custom window" if is_custom else "is for custom windows only"
        require(is_given is is_custom, name, rule)
    renews = is_calendar or is_custom
    require(settings.auto_renews or renews, "auto_renews", f"must be true in a window {window}")
    require(not settings.rolls_over or renews, "rolls_over", f"has no meaning in a window {window}")
    require(
        settings.raised_until is None or bool(settings.raised_by),
        "raised_until",
        "needs a 'raised_by'",
    )
    if settings.raised_until is not None and not new.isdisjoint(_RAISING):
        # One that stays from an earlier raise would end the next one at once.
        require(settings.raised_until > wall_s, "raised_until", "must be a time in the future")


def _check_time_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # unknown, a folder, or no path of a zone at all
        raise InvalidCommandError(
            "'time_zone' must be an IANA time zone such as UTC or Europe/Berlin.", param="time_zone"
        ) from None


def _check_models(name: str, value: str | tuple[str, ...] | None) -> None:
    """Globs of a limit, or the one of a price."""
    if isinstance(value, str):
        require(bool(value), name, "is needed: a model's name or a pattern")
        value = (value,)
    check_globs(name, value)


def _check_amount(name: str, value: int) -> None:
    require(0 <= value <= MAX_LIMIT, name, f"must be 0 to {MAX_LIMIT}")


def _check_thresholds(name: str, value: tuple[int, ...]) -> None:
    require(
        len(value) <= MAX_THRESHOLDS
        and all(1 <= percent <= 100 for percent in value)
        and list(value) == sorted(set(value)),
        name,
        f"takes at most {MAX_THRESHOLDS} percentages from 1 to 100, rising",
    )


def _check_price(name: str, value: int | None) -> None:
    require(
        value is None or 0 <= value <= MAX_PRICE,
        name,
        f"must be 0 to {MAX_PRICE} micro-units",
    )


def _check_length_s(name: str, value: int | None) -> None:
    require(
        value is None or MIN_CUSTOM_S <= value <= MAX_CUSTOM_S,
        name,
        f"must be {MIN_CUSTOM_S} to {MAX_CUSTOM_S} seconds",
    )


def _check_events(name: str, value: tuple[str, ...]) -> None:
    require(
        0 < len(value) <= MAX_EVENTS
        and all(0 < len(glob) <= MAX_EVENT_CHARS and glob.isprintable() for glob in value),
        name,
        f"takes 1 to {MAX_EVENTS} patterns of actions of the audit log, such as budget_*",
    )


def _check_secret(name: str, value: str) -> None:
    require(
        signing_key(value) is not None,
        name,
        f"must be {SECRET_PREFIX} and {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes in base64",
    )


_CHECKS: Final[dict[str, Check]] = {
    "name": text_of(MAX_NAME_CHARS, is_needed=True),
    "email": text_of(MAX_EMAIL_CHARS),
    "tags": check_tags,
    "metadata": check_metadata,
    "allowed_models": check_globs,
    "models": _check_models,
    "amount": _check_amount,
    "starts_at": check_limit,
    "length_s": _check_length_s,
    "endpoints": check_globs,
    "thresholds": _check_thresholds,
    "raised_by": _check_amount,
    "raised_until": check_limit,
    "prompt": _check_price,
    "cached_prompt": _check_price,
    "completion": _check_price,
    "reasoning": _check_price,
    "embedding": _check_price,
    "request": _check_price,
    "events": _check_events,
    "secret": _check_secret,
}
