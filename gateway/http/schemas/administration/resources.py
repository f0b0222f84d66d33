"""The bodies of the routes of users, teams, limits, budgets and prices."""

from typing import Annotated

from pydantic import Field

from gateway.http.schemas.administration.settings import (
    LAST_SECOND,
    MAX_LIMIT,
    Amount,
    Globs,
    Id,
    Metadata,
    Name,
    SettingsModel,
    Tags,
)
from gateway.http.schemas.base.core_schemas import NullIsDefault
from protocol.wire.messages import (
    LimitHolder,
    LimitMeasure,
    LimitWindow,
    MemberRole,
    PrincipalRole,
    UserKind,
)

MAX_PRICE = 10**12

_WebhookUrl = Annotated[str, Field(min_length=1, max_length=2048)]
_Events = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=32)]
_Secret = Annotated[str, Field(max_length=128)]
_Time = Annotated[int, Field(ge=1, le=LAST_SECOND)]
_Price = Annotated[int, Field(ge=0, le=MAX_PRICE)]
_Model = Annotated[str, Field(min_length=1, max_length=200)]
_Thresholds = Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(max_length=10)]


class UserFields(SettingsModel):
    """Everything about a user that may be set."""

    email: Annotated[str, Field(max_length=254)] | None = None
    role: PrincipalRole | None = None
    kind: UserKind | None = None
    tags: Tags | None = None
    metadata: Metadata | None = None


class CreateUserRequest(UserFields):
    """A user, or a service account, to be made."""

    name: Name


class ChangeUserRequest(UserFields):
    """What is to be different about a user; what isn't sent stays, and null clears."""

    name: Name = ""


class TeamFields(SettingsModel):
    """Everything about a team that may be set."""

    tenant_is_shared: bool | None = None
    allowed_models: Globs | None = None
    tags: Tags | None = None
    metadata: Metadata | None = None


class CreateTeamRequest(TeamFields):
    """A team to be made."""

    name: Name


class ChangeTeamRequest(TeamFields):
    """What is to be different about a team; what isn't sent stays, and null clears."""

    name: Name = ""


class SetMemberRequest(SettingsModel):
    """A user's part in a team."""

    role: Annotated[MemberRole, NullIsDefault()] = "member"


class WindowFields(SettingsModel):
    """What a limit and a budget have in common and may be changed."""

    time_zone: Annotated[str, Field(max_length=64)] | None = None
    starts_at: _Time | None = None
    length_s: Annotated[int, Field(ge=1, le=MAX_LIMIT)] | None = None
    models: Globs | None = None
    endpoints: Globs | None = None
    is_hard: bool | None = None
    thresholds: _Thresholds | None = None
    rolls_over: bool | None = None
    auto_renews: bool | None = None
    raised_by: Amount | None = None
    raised_until: _Time | None = None


class CreateLimitRequest(WindowFields):
    """A limit to be made."""

    name: Name
    holder: LimitHolder
    holder_id: Id | None = None
    measure: LimitMeasure
    amount: Amount
    window: LimitWindow


class CreateBudgetRequest(WindowFields):
    """A budget to be made; its amount is in micro-units, 1 USD = 1,000,000."""

    name: Name
    holder: LimitHolder
    holder_id: Id | None = None
    amount: Amount
    window: LimitWindow


class ChangeLimitRequest(WindowFields):
    """What is to be different about a limit or a budget; what isn't sent stays, and null clears."""

    name: Name = ""
    amount: Amount = 0
    window: LimitWindow = "total"


class RaiseBudgetRequest(SettingsModel):
    """More for a while: micro-units on top of the amount, until a time in Unix seconds."""

    by: Amount
    until: _Time | None = None


class PriceFields(SettingsModel):
    """Micro-units a million tokens, if nothing else; 1 USD = 1,000,000."""

    cached_prompt: _Price | None = None
    reasoning: _Price | None = None
    embedding: _Price | None = None
    request: _Price | None = None
    valid_from: _Time | None = None


class CreatePriceRequest(PriceFields):
    """A price to be set for some models."""

    models: _Model
    prompt: _Price
    completion: _Price


class ChangePriceRequest(PriceFields):
    """A new version of a price: what isn't sent stays, and null clears."""

    models: _Model = ""
    prompt: _Price = 0
    completion: _Price = 0


class CreateWebhookRequest(SettingsModel):
    """A webhook to be made; without a `secret` one is made for it."""

    name: Name
    url: _WebhookUrl
    events: _Events
    secret: _Secret | None = None


class ChangeWebhookRequest(SettingsModel):
    """What is to be different about a webhook; what isn't sent stays."""

    name: Name = ""
    url: _WebhookUrl = ""
    events: _Events = Field(default_factory=list)
    secret: _Secret = ""
