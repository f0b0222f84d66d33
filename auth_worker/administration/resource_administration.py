"""Turns commands on users, teams, limits and prices into operations, after checking them."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, Literal, cast

from msgspec import structs

from auth_worker.administration.actors import (
    acting_key,
    check_holder_reach,
    check_page,
    check_role,
    check_stays,
    entry_of,
)
from auth_worker.clock import Clock
from auth_worker.errors import (
    ActorNotAllowedError,
    InvalidCommandError,
    OutboundError,
    ResourceNotFoundError,
)
from auth_worker.outbound.targets import TargetGuard, target_of
from auth_worker.principals.definitions import (
    audited,
    check_names,
    checked,
    limit_of,
    limit_settings,
    merged,
    price_of,
    team_of,
    user_of,
    webhook_of,
)
from auth_worker.principals.keys import KeyDirectory, StoredKey
from auth_worker.principals.limit_directory import LimitDirectory
from auth_worker.principals.limit_rules import Limit
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.prices import PriceTable, begin_of
from auth_worker.principals.webhooks import StoredWebhook
from auth_worker.records.operations import (
    AddResource,
    AuditAction,
    AuditEntry,
    ChangeResourceRow,
    DropResource,
    PutMember,
    ReadResources,
    ResourcePage,
    Result,
)
from protocol.wire.messages import (
    ChangeResource,
    FindResources,
    LimitSettings,
    MakeResource,
    PriceSettings,
    Resource,
    ResourceKind,
    ResourceSettings,
    Scope,
    SetMember,
    TeamSettings,
    UpdateResource,
    UserSettings,
    WebhookSettings,
)

GIVE_ROLE: Final = "give a user a role that has it"
MAX_LIMITS_A_HOLDER: Final = 32
"""Each of them is looked at in every request of the holder."""
MAX_MEMBERS: Final = 10_000
MAX_WEBHOOKS: Final = 32

SCOPE_OF: Final[dict[ResourceKind, Scope]] = {
    "user": "admin.users",
    "team": "admin.teams",
    "limit": "admin.limits",
    "budget": "admin.limits",
    "price": "admin.prices",
    "webhook": "admin.webhooks",
}
_PREFIXES: Final[dict[ResourceKind, str]] = {
    "user": "user",
    "team": "team",
    "limit": "lim",
    "budget": "bud",
    "price": "price",
    "webhook": "wh",
}
_VERBS: Final = {"suspend": "suspended", "reactivate": "reactivated", "delete": "deleted"}

Command = MakeResource | UpdateResource | ChangeResource | SetMember | FindResources
ResourceOperation = AddResource | ChangeResourceRow | DropResource | PutMember | ReadResources


class ResourceAdministration:
    """Users, teams, limits, budgets and prices, as administrators change and read them.

    What changes about a user or a team holds in memory at once, so that what is closed is closed
    even if the disk should fail. Limits and prices hold once they are durable: nobody spends by a
    budget that a crash could take back. Commands are judged by what was commanded before, durable
    or not.

    Args:
        keys: All keys, users and teams.
        limits: All limits and budgets that are durable; as is the next.
        prices: All prices.
        clock: For creation, suspension and audit times.
        new_id: Makes an id with a prefix.
        webhooks: All of them by id; what changes about them holds at once.
        targets: Where webhooks may lead.
    """

    def __init__(
        self,
        keys: KeyDirectory,
        limits: LimitDirectory,
        prices: PriceTable,
        *,
        clock: Clock,
        new_id: Callable[[str], str],
        webhooks: dict[str, StoredWebhook] | None = None,
        targets: TargetGuard | None = None,
    ) -> None:
        self._webhooks = {} if webhooks is None else webhooks
        self._targets = targets or TargetGuard()
        self._keys = keys
        self._limits = limits
        self._prices = prices
        self._clock = clock
        self._new_id = new_id
        self._commanded = LimitDirectory(limits)
        self._commanded_models: dict[str, str] = {}  # of prices that are not durable yet

    def prepare(self, command: Command) -> ResourceOperation:
        """What to make durable, or to read, for a command; `done` takes its result.

        Raises:
            ActorNotAllowedError: Who asks may not do this.
            ResourceNotFoundError: There is no such user, team, limit, budget or price.
            InvalidCommandError: A value is out of bounds, or nobody could administer any more.
        """
        kind = "team" if isinstance(command, SetMember) else command.kind
        actor = acting_key(self._keys, command.actor, SCOPE_OF[kind], self._clock.wall_s())
        operation = self._prepared(actor, command)
        begins_ms = _begin_of_version(operation)
        if begins_ms is not None:
            self._prices.expect(begins_ms)
        return operation

    def _prepared(self, actor: StoredKey, command: Command) -> ResourceOperation:
        match command:
            case MakeResource():
                return self._make(actor, command)
            case UpdateResource():
                return self._update(actor, command)
            case ChangeResource():
                return self._change(actor, command)
            case SetMember():
                return self._set_member(actor, command)
            case FindResources():
                return self._find(command)

    def done(self, operation: ResourceOperation, result: Result) -> None:
        """An operation is durable: what was to wait for that holds from here on."""
        begins_ms = _begin_of_version(operation)
        if begins_ms is not None:
            self._prices.expect_no_more(begins_ms)
        if isinstance(operation, AddResource):
            self._commanded_models.pop(operation.resource.resource_id, None)
        elif isinstance(operation, ChangeResourceRow):
            self._commanded_models.pop(operation.resource_id, None)
        if not isinstance(result, ResourcePage) or isinstance(operation, ReadResources | PutMember):
            return
        newest = result.resources[0]
        match newest.settings:
            case UserSettings() if isinstance(operation, AddResource):
                self._keys.users.setdefault(newest.resource_id, user_of(newest))
            case TeamSettings() if isinstance(operation, AddResource):
                self._keys.teams.setdefault(newest.resource_id, team_of(newest))
            case WebhookSettings() if isinstance(operation, AddResource):
                self._webhooks.setdefault(newest.resource_id, webhook_of(newest))
            case LimitSettings() if isinstance(operation, DropResource):
                self._limits.remove(newest.resource_id)
            case LimitSettings():
                since = self._counts_since(operation, newest)
                self._limits.put(limit_of(newest.resource_id, newest.settings, since))
            case PriceSettings() if begins_ms is not None:
                self._prices.put(
                    price_of(
                        newest.resource_id,
                        newest.version,
                        newest.settings,
                        valid_from_ms=begins_ms,
                        is_ended=newest.is_ended,
                    )
                )
            case _:
                pass  # of a user or a team, what changed holds already

    def _counts_since(self, operation: ResourceOperation, newest: Resource) -> int:
        """Since when a limit counts that an operation has made or changed."""
        known = self._limits.get(newest.resource_id)
        if isinstance(operation, ChangeResourceRow) and known is not None:
            return cast(int, operation.values.get("counts_since", known.counts_since))
        return newest.created_at

    def forget_holder(self, holder: Literal["key", "user", "team"], holder_id: str) -> None:
        """A key, user or team is gone, and with it go its limits and those of its end users."""
        for which in (holder, "end_user"):
            for limit in self._commanded.of(which, holder_id):
                self._commanded.remove(limit.limit_id)
                self._limits.remove(limit.limit_id)

    def _make(self, actor: StoredKey, command: MakeResource) -> AddResource:
        kind, now = command.kind, int(self._clock.wall_s())
        settings = checked(kind, command.settings, wall_s=self._clock.wall_s())
        resource_id = self._new_id(_PREFIXES[kind])
        match settings:
            case UserSettings():
                check_role(actor, settings.role, GIVE_ROLE)
            case LimitSettings():
                limit = limit_of(resource_id, settings, now)
                self._check_holder(limit)
                self._commanded.put(limit)
            case PriceSettings():
                self._check_is_first(settings.models)
                self._commanded_models[resource_id] = settings.models
                settings = structs.replace(settings, valid_from=settings.valid_from or now)
            case WebhookSettings():
                check_stays(actor)
                self._check_target(settings.url)
                self._check_webhooks()
            case TeamSettings():
                pass
        resource = Resource(
            resource_id=resource_id,
            settings=settings,
            created_at=now,
            created_by=command.actor.key_id,
            version=1 if kind == "price" else 0,
        )
        entry = self._entry(command, _action(kind, "created"), resource_id)
        detail = audited(settings, type(settings).__struct_fields__)
        return AddResource(kind, resource, replace(entry, detail=detail))

    def _update(self, actor: StoredKey, command: UpdateResource) -> ChangeResourceRow:
        kind, fields, resource_id = command.kind, command.fields, command.resource_id
        check_names(kind, fields)
        settings = checked(
            kind,
            merged(self._known(kind, resource_id), command.settings, fields),
            wall_s=self._clock.wall_s(),
            fields=fields,
        )
        values = {name: getattr(settings, name) for name in fields}
        match settings:
            case UserSettings():
                self._change_user(actor, self._user(resource_id), settings, fields)
            case TeamSettings():
                _set(self._team(resource_id), settings, fields)
            case LimitSettings():
                before = self._limit(kind, resource_id)
                limit = limit_of(resource_id, settings, before.counts_since)
                if limit.window != before.window:  # another count begins
                    values["counts_since"] = int(self._clock.wall_s())
                    limit = replace(limit, counts_since=values["counts_since"])
                self._commanded.put(limit)
            case WebhookSettings():
                check_stays(actor)
                hook = self._webhook(resource_id)
                if "url" in fields:
                    self._check_target(settings.url)
                    hook.begin_anew()  # what the other target refused this one may take
                _set(hook, settings, fields)
            case PriceSettings() if "models" in fields:
                self._check_is_first(settings.models, but_for=resource_id)
                self._commanded_models[resource_id] = settings.models
            case PriceSettings():
                pass
        is_raise = kind == "budget" and set(fields) <= {"raised_by", "raised_until"}
        action = _action(kind, "raised" if is_raise else "updated")
        entry = self._entry(command, action, resource_id)
        detail = audited(settings, fields)
        return ChangeResourceRow(kind, resource_id, values, replace(entry, detail=detail))

    def _known(self, kind: ResourceKind, resource_id: str) -> ResourceSettings:
        """What there is to be changed, as far as fields depend on one another.

        Raises:
            ResourceNotFoundError: There is none.
        """
        match kind:
            case "user":
                self._user(resource_id)
                return UserSettings(name="-")
            case "team":
                self._team(resource_id)
                return TeamSettings(name="-")
            case "webhook":
                known = self._webhook(resource_id)
                return WebhookSettings(
                    name="-", url=known.url, events=known.events, secret=known.secret
                )
            case "price":
                return PriceSettings(models=self._models(resource_id), prompt=0, completion=0)
            case _:
                return limit_settings(self._limit(kind, resource_id))

    def _change(
        self, actor: StoredKey, command: ChangeResource
    ) -> ChangeResourceRow | DropResource:
        kind, resource_id = command.kind, command.resource_id
        opens = command.action == "reactivate"
        if kind == "user":
            role = self._user(resource_id).role
            theirs = self._keys.administering(user_id=resource_id)
            check_holder_reach(actor, theirs, role, opens=opens)
        elif kind == "team":
            self._team(resource_id)
            theirs = self._keys.administering(team_id=resource_id)
            check_holder_reach(actor, theirs, opens=opens)
        elif kind == "webhook" and opens:
            check_stays(actor)
        now = int(self._clock.wall_s())
        entry = self._entry(command, _action(kind, _VERBS[command.action]), resource_id)
        if command.action == "delete":
            num_revoked = self._delete(kind, resource_id, now)
            if kind in ("user", "team"):
                entry = replace(entry, detail={"keys_revoked": num_revoked})
            return DropResource(kind, resource_id, now, entry)
        if kind == "webhook":
            return self._change_webhook(command, entry, now)
        if kind not in ("user", "team"):
            raise InvalidCommandError(f"A {kind} can be changed or deleted, not suspended.")
        one = self._user(resource_id) if kind == "user" else self._team(resource_id)
        before = one.suspended_at
        since = now if before is None else before
        one.suspended_at = since if command.action == "suspend" else None
        self._check_admin_stays(command.action, lambda: setattr(one, "suspended_at", before))
        return ChangeResourceRow(kind, resource_id, {"suspended_at": one.suspended_at}, entry)

    def _set_member(self, actor: StoredKey, command: SetMember) -> PutMember:
        team, user = self._team(command.team_id), self._user(command.user_id)
        before = team.members.get(user.user_id)
        if not command.role or before is None:  # else its keys open what they opened
            theirs = self._keys.administering(user_id=user.user_id, team_id=team.team_id)
            check_holder_reach(actor, theirs, opens=bool(command.role))
        if command.role:
            if before is None and len(team.members) >= MAX_MEMBERS:
                raise InvalidCommandError(f"A team has at most {MAX_MEMBERS} members.")
            self._keys.set_member(team, user.user_id, command.role)
        elif before is None:
            raise ResourceNotFoundError(
                f"The user '{user.user_id}' is no member of the team '{team.team_id}'.",
                param="user_id",
            )
        else:
            self._keys.set_member(team, user.user_id, None)
            self._check_admin_stays(
                "remove", lambda: self._keys.set_member(team, user.user_id, before)
            )
        action: AuditAction = "member_set" if command.role else "member_removed"
        entry = self._entry(command, action, team.team_id)
        detail = {"user_id": user.user_id, "role": command.role}
        return PutMember(
            team.team_id,
            user.user_id,
            command.role or None,
            int(self._clock.wall_s()),
            replace(entry, detail=detail),
        )

    def _find(self, command: FindResources) -> ReadResources:
        check_page(command.limit)
        if command.resource_id and command.kind in ("limit", "budget"):
            self._limit(command.kind, command.resource_id)
        return ReadResources(
            command.kind,
            command.limit,
            resource_id=command.resource_id,
            status=command.status,
            tag=command.tag,
            member=command.member,
            holder=command.holder,
            holder_id=command.holder_id,
            after_id=command.after_id,
        )

    def _delete(self, kind: ResourceKind, resource_id: str, now: int) -> int:
        """Let something be gone; how many keys that ends."""
        if kind == "webhook":
            del self._webhooks[self._webhook(resource_id).webhook_id]
            return 0
        if kind == "price":
            self._models(resource_id)
            return 0
        if kind != "user" and kind != "team":
            self._commanded.remove(self._limit(kind, resource_id).limit_id)
            return 0
        one = self._user(resource_id) if kind == "user" else self._team(resource_id)
        before, one.suspended_at = one.suspended_at, now
        self._check_admin_stays("delete", lambda: setattr(one, "suspended_at", before))
        self.forget_holder(kind, resource_id)
        end = self._keys.end_user if kind == "user" else self._keys.end_team
        return end(resource_id, now)

    def _change_user(
        self, actor: StoredKey, user: StoredUser, settings: UserSettings, fields: Iterable[str]
    ) -> None:
        before = user.role
        if "role" in fields:
            theirs = self._keys.administering(user_id=user.user_id)
            check_holder_reach(actor, theirs, before, opens=False)
            check_role(actor, settings.role, GIVE_ROLE)
            user.role = settings.role
            try:
                theirs = self._keys.administering(user_id=user.user_id)
                check_holder_reach(actor, theirs, opens=True)
            except ActorNotAllowedError:
                user.role = before
                raise
            self._check_admin_stays("change", lambda: setattr(user, "role", before))
        _set(user, settings, fields)

    def _check_admin_stays(self, verb: str, take_back: Callable[[], None]) -> None:
        """Take a change back, and refuse it, if nobody could administer with it in place."""
        if self._keys.num_lasting_admins(1) == 0:
            take_back()
            raise InvalidCommandError(
                f"To {verb} this would leave no key that administers keys from everywhere and"
                " without an end; make another such key first."
            )

    def _check_holder(self, limit: Limit) -> None:
        """A limit is somebody's who is there, and nobody has too many."""
        holder_id = limit.holder_id
        is_there = {
            "house": True,
            "key": self._keys.get(holder_id) is not None,
            "user": holder_id in self._keys.users,
            "team": holder_id in self._keys.teams,
            "end_user": self._keys.get(holder_id) is not None or holder_id in self._keys.teams,
        }[limit.holder]
        if not is_there:
            what = "key or team" if limit.holder == "end_user" else limit.holder
            raise InvalidCommandError(f"There is no {what} '{holder_id[:100]}'.", param="holder_id")
        num_same = len(self._commanded.of(limit.holder, holder_id))
        if num_same >= MAX_LIMITS_A_HOLDER:
            raise InvalidCommandError(
                f"There are {num_same} limits and budgets of this {limit.holder} already, and there"
                " may be no more; delete one.",
                param="holder_id",
            )

    def _change_webhook(
        self, command: ChangeResource, entry: AuditEntry, now: int
    ) -> ChangeResourceRow:
        """Suspend a webhook, or let it go on, with a first attempt at once."""
        hook = self._webhook(command.resource_id)
        if command.action == "suspend":
            hook.suspended_at = now if hook.suspended_at is None else hook.suspended_at
        else:
            hook.suspended_at = None
            hook.begin_anew()
        values = {"suspended_at": hook.suspended_at}
        return ChangeResourceRow("webhook", hook.webhook_id, values, entry)

    def _check_target(self, url: str) -> None:
        try:
            self._targets.check(target_of(url))
        except OutboundError as error:
            raise InvalidCommandError(f"'url' can't be used: {error.message}.", param="url") from (
                error
            )

    def _check_webhooks(self) -> None:
        if len(self._webhooks) >= MAX_WEBHOOKS:
            raise InvalidCommandError(
                f"There are {MAX_WEBHOOKS} webhooks already, and there may be no more; delete one."
            )

    def _webhook(self, webhook_id: str) -> StoredWebhook:
        hook = self._webhooks.get(webhook_id)
        if hook is None:
            raise _missing("webhook", webhook_id)
        return hook

    def _check_is_first(self, models: str, but_for: str = "") -> None:
        known = self._prices.find(models)
        price_ids = [] if known is None else [known.price_id]
        price_ids += [one for one, named in self._commanded_models.items() if named == models]
        for price_id in price_ids:
            if price_id != but_for:
                raise InvalidCommandError(
                    f"There is a price of '{models}' already ({price_id}); change that one.",
                    param="models",
                )

    def _user(self, user_id: str) -> StoredUser:
        user = self._keys.users.get(user_id)
        if user is None:
            raise _missing("user", user_id)
        return user

    def _team(self, team_id: str) -> StoredTeam:
        team = self._keys.teams.get(team_id)
        if team is None:
            raise _missing("team", team_id)
        return team

    def _limit(self, kind: ResourceKind, limit_id: str) -> Limit:
        limit = self._commanded.get(limit_id)
        if limit is None or (limit.measure == "money") is not (kind == "budget"):
            raise _missing(kind, limit_id)
        return limit

    def _models(self, price_id: str) -> str:
        """The models of a price that hasn't ended."""
        versions = self._prices.versions(price_id)
        if not versions or versions[0].is_ended:
            raise _missing("price", price_id)
        return versions[0].models

    def _entry(self, command: Command, action: AuditAction, subject: str) -> AuditEntry:
        wall_s = self._clock.wall_s()
        entry = entry_of(command.request_id, command.actor, action, subject, wall_s)
        if isinstance(command, SetMember) or command.kind != "price":
            return entry
        return replace(entry, at_ms=self._prices.beginning(entry.at_ms))  # of the version


def _action(kind: ResourceKind, what_was_done: str) -> AuditAction:
    return cast(AuditAction, f"{kind}_{what_was_done}")


def _begin_of_version(operation: ResourceOperation) -> int | None:
    """When the version of a price begins that an operation makes; None when it makes none."""
    match operation:
        case AddResource(kind="price", resource=made):
            assert isinstance(made.settings, PriceSettings)  # noqa: S101 - its kind says so
            return begin_of(made.settings.valid_from or 0, operation.audit.at_ms)
        case ChangeResourceRow(kind="price", values=values):
            return begin_of(values.get("valid_from") or 0, operation.audit.at_ms)
        case DropResource(kind="price"):
            return operation.audit.at_ms
        case _:
            return None


def _set(
    known: StoredUser | StoredTeam | StoredWebhook,
    settings: UserSettings | TeamSettings | WebhookSettings,
    fields: Iterable[str],
) -> None:
    """Let the named settings hold, as far as the authority knows of them."""
    for name in fields:
        if hasattr(known, name):
            setattr(known, name, getattr(settings, name))


def _missing(kind: ResourceKind, resource_id: str) -> ResourceNotFoundError:
    return ResourceNotFoundError(f"There is no {kind} '{resource_id[:100]}'.", param="id")
