"""Messages about users, teams, limits, budgets and prices, from administrators (since 1.4).

They are all resources: made, changed, listed and deleted by the same few commands, each with
settings of its own kind.
"""

from typing import Literal

import msgspec

from protocol.wire.messages.administration import Actor, MemberRole, PrincipalRole, UserKind
from protocol.wire.messages.base import Message, Part

ResourceKind = Literal["user", "team", "limit", "budget", "price", "webhook"]
ResourceAction = Literal["suspend", "reactivate", "delete"]
LimitHolder = Literal["end_user", "key", "user", "team", "house"]
LimitMeasure = Literal[
    "requests", "tokens", "prompt_tokens", "completion_tokens", "money", "parallel"
]
LimitWindow = Literal[
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


class UserSettings(Part, frozen=True, tag="user"):
    """What an administrator says about a user.

    Attributes:
        role: No key of this user does more than this role.
        kind: A person, or a service account.
        metadata: Texts that mean nothing to Penstock, as in every resource.
    """

    name: str
    email: str = ""
    role: PrincipalRole = "user"
    kind: UserKind = "person"
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


class TeamSettings(Part, frozen=True, tag="team"):
    """What an administrator says about a team.

    Attributes:
        tenant_is_shared: Its keys share cached prompts and one fair share of the server.
        allowed_models: Globs that a model must fit besides those of the key; None = every model.
    """

    name: str
    tenant_is_shared: bool = False
    allowed_models: tuple[str, ...] | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


class LimitSettings(Part, frozen=True, tag="limit"):
    """What an administrator says about a limit, or about a budget, which is a limit of money.

    Attributes:
        holder_id: Of the key, user or team; empty for `house`. For end users the key or team each
            of whose end users gets this limit.
        amount: Of money in micro-units, 1 USD = 1,000,000.
        window: What the amount counts in: `minute`, `hour` and `day` slide.
        time_zone: IANA; of calendar windows.
        starts_at: Unix seconds; of custom windows, as is the next.
        length_s: Seconds.
        models: Globs of the models that count; None = all.
        endpoints: Globs of route templates, the same.
        is_hard: Whether requests are refused beyond it; otherwise it only warns.
        thresholds: In percent of the amount, where warnings begin.
        rolls_over: What a window leaves is added to the next one.
        auto_renews: Whether a new window begins when one has ended.
        raised_by: On top of the amount, until `raised_until` (Unix seconds; None = for good).
    """

    name: str
    holder: LimitHolder
    measure: LimitMeasure
    amount: int
    window: LimitWindow
    holder_id: str = ""
    time_zone: str = "UTC"
    starts_at: int | None = None
    length_s: int | None = None
    models: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None
    is_hard: bool = True
    thresholds: tuple[int, ...] = ()
    rolls_over: bool = False
    auto_renews: bool = True
    raised_by: int = 0
    raised_until: int | None = None


class PriceSettings(Part, frozen=True, tag="price"):
    """What an administrator says about a price: micro-units a million tokens, if nothing else.

    Attributes:
        models: A model's name, an alias or a glob of such; `*` is for all that have no other price.
        cached_prompt: None = as `prompt`.
        reasoning: None = as `completion`.
        embedding: None = as `prompt`.
        request: Micro-units a request.
        valid_from: Unix seconds, not in the past; None = from now on.
    """

    models: str
    prompt: int
    completion: int
    cached_prompt: int | None = None
    reasoning: int | None = None
    embedding: int | None = None
    request: int = 0
    valid_from: int | None = None


class WebhookSettings(Part, frozen=True, tag="webhook"):
    """What an administrator says about a webhook.

    Attributes:
        url: Where events are sent.
        events: Globs of actions of the audit log.
        secret: Signs what is sent, `whsec_` and base64; empty wherever it isn't being set.
    """

    name: str
    url: str
    events: tuple[str, ...]
    secret: str = ""

    def __repr__(self) -> str:
        """Without the secret, and the address, which may hold one."""
        return f"WebhookSettings(name={self.name!r}, …)"


ResourceSettings = UserSettings | TeamSettings | LimitSettings | PriceSettings | WebhookSettings


class WebhookState(Part, frozen=True):
    """How a webhook fares.

    Attributes:
        after_seq: Of the audit log: everything up to here was sent, or concerns it not.
        num_failed: Attempts for the next entry that failed.
        last_delivered_at: Unix seconds; None before the first.
        last_error: Why the last attempt failed; empty after a good one.
    """

    after_seq: int = 0
    num_failed: int = 0
    last_delivered_at: int | None = None
    last_error: str = ""


class Member(Part, frozen=True):
    """A user of a team.

    Attributes:
        role: An owner may read what the team uses and has left.
        added_at: Unix seconds.
    """

    user_id: str
    role: MemberRole
    added_at: int


class Resource(Part, frozen=True):
    """A user, team, limit, budget or version of a price, as people may see it.

    Attributes:
        created_at: Unix seconds, as are all times.
        created_by: The id of the key that made it.
        suspended_at: Of users and teams.
        version: Of prices, from 1; 0 of everything else.
        is_ended: Of prices: from `valid_from` on there is none.
        members: Of a team that was asked for by its id.
        team_ids: Of a user: the teams that it is a member of.
        webhook: Of a webhook: how it fares.
    """

    resource_id: str
    settings: ResourceSettings
    created_at: int
    created_by: str = ""
    suspended_at: int | None = None
    version: int = 0
    is_ended: bool = False
    members: tuple[Member, ...] = ()
    team_ids: tuple[str, ...] = ()
    webhook: WebhookState | None = None


class MakeResource(Message, frozen=True, tag="make_resource"):
    """Make a user, team, limit, budget or price."""

    request_id: str
    actor: Actor
    kind: ResourceKind
    settings: ResourceSettings


class UpdateResource(Message, frozen=True, tag="update_resource"):
    """Change a resource; of a price this makes a new version.

    Attributes:
        fields: Names of the settings that change; a name at its default clears.
        settings: Their new values; what isn't named in `fields` is not looked at.
    """

    request_id: str
    actor: Actor
    kind: ResourceKind
    resource_id: str
    fields: tuple[str, ...]
    settings: ResourceSettings


class ChangeResource(Message, frozen=True, tag="change_resource"):
    """Suspend, reactivate or delete a resource; the answer to `delete` is what was deleted."""

    request_id: str
    actor: Actor
    kind: ResourceKind
    resource_id: str
    action: ResourceAction


class SetMember(Message, frozen=True, tag="set_member"):
    """Make a user a member of a team, or change its role there; the answer is the team.

    Attributes:
        role: Empty = no member any more.
    """

    request_id: str
    actor: Actor
    team_id: str
    user_id: str
    role: MemberRole | Literal[""]


class FindResources(Message, frozen=True, tag="find_resources"):
    """The resource of an id, or a page of those that fit, newest first.

    Attributes:
        resource_id: That one alone, a price with all its versions; not found is a failure.
        status: Of users and teams; empty = any, as with all that follow.
        tag: Of users and teams.
        member: Teams of this user, or users of this team.
        holder: Of limits and budgets, as is the next.
        after_id: The last id of the page before.
    """

    request_id: str
    actor: Actor
    kind: ResourceKind
    resource_id: str = ""
    status: Literal["active", "suspended", ""] = ""
    tag: str = ""
    member: str = ""
    holder: LimitHolder | Literal[""] = ""
    holder_id: str = ""
    after_id: str = ""
    limit: int = 100


class ResourcesFound(Message, frozen=True, tag="resources_found"):
    """The answer to every command on resources: those concerned."""

    request_id: str
    resources: tuple[Resource, ...]
    has_more: bool = False
