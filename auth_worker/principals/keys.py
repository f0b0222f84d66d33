"""API keys: how they are made, digested, judged and remembered without ever being shown."""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final

from auth_worker.errors import TokenRefusedError
from auth_worker.principals.key_index import AdministeringKeys, Alike, LastingAdmins, LiveCounts
from auth_worker.principals.key_rules import NO_RULES, KeyRules
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.roles import scopes_of
from auth_worker.principals.tokens import TokenTable
from protocol.wire.messages import (
    Authorize,
    KeyClosure,
    KeyStatus,
    MemberRole,
    PrincipalRole,
    Scope,
)

KEY_PREFIX = "psk-"
NUM_RANDOM_BYTES = 32  # 43 characters of URL-safe base64
DIGEST_BYTES = 32

ADMINISTERING: Final[Scope] = "admin.keys"
ADMINISTERING_ENDPOINTS: Final = ("/v1/admin/keys", "/v1/admin/keys/{key_id}")
"""Routes by which a key can make others and open up itself."""
ENVIRONMENT_KEY_ID = "key_environment"
ENVIRONMENT_KEY_NAME = "PENSTOCK_ADMIN_KEY"
ANONYMOUS_KEY_ID = "anonymous"
ANONYMOUS_TENANT = "local"
DEFAULT_TENANT = "default"
"""What is stored of a key that names no tenant. It names none either: such a key is a tenant by
itself, and so are the keys of databases from before that was so."""


def digest_of(key: str) -> bytes:
    """The SHA-256 digest of a key, 32 bytes: all that is ever stored or sent.

    A single hash is right for keys of 256 random bits; slow hashes protect guessable passwords.
    """
    return hashlib.sha256(key.encode()).digest()


def hint_of(key: str) -> str:
    """First and last characters for display, `psk-ab…wxyz`."""
    return f"{key[:6]}…{key[-4:]}"


def make_key(random_text: Callable[[int], str]) -> str:
    """A new key: `psk-` and 43 URL-safe characters.

    Args:
        random_text: Makes URL-safe text of so many random bytes, `secrets.token_urlsafe`.
    """
    return KEY_PREFIX + random_text(NUM_RANDOM_BYTES)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as the authority knows it: what a decision needs, the rest stays in the database.

    The digests stay out of every repr.

    Attributes:
        requests_per_minute: None = no limit.
        revoked_at: When it was revoked by itself; see `ended_at`.
        tokens_per_minute: Prompt and completion together; None = no limit.
        tenant: As it was named; see `tenant_id`.
        created_at: Unix seconds, as are all times.
        rules: What else bounds it.
        previous_digest: Of the secret before the last rotation, which works until
            `previous_until`.
        user_id: Whose key it is; empty = nobody's in particular.
        team_id: For which team's work and on whose limits; empty = no team's.
        may_name_end_users: Whether it is trusted to say which end user a request is for.
        signed_by: Of the principal of a token: the name of the issuer's key; see `SigningKey`.
        user: The user of `user_id`, as it is now; put there by the directory, as is `team`.
    """

    key_id: str
    digest: bytes = field(repr=False)
    hint: str
    name: str
    role: PrincipalRole
    tenant: str
    created_at: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expires_at: int | None = None
    revoked_at: int | None = None
    suspended_at: int | None = None
    rules: KeyRules = NO_RULES
    previous_digest: bytes | None = field(default=None, repr=False)
    previous_until: int | None = None
    user_id: str = ""
    team_id: str = ""
    may_name_end_users: bool = False
    signed_by: str = field(default="", repr=False)
    user: StoredUser | None = field(default=None, repr=False, compare=False)
    team: StoredTeam | None = field(default=None, repr=False, compare=False)

    @property
    def tenant_id(self) -> str:
        """Whose cached prompts, fair share and places in the queue its requests use.

        The named tenant, its team if that says so, or the key's own id: nobody shares with
        strangers by default, since the time of an answer tells which prompts were cached.
        """
        if self.tenant not in ("", DEFAULT_TENANT):
            return self.tenant
        shares = self.team is not None and self.team.tenant_is_shared
        return self.team_id if shares else self.key_id

    @property
    def scopes(self) -> frozenset[str]:
        """What it may do: its role and that of its user, narrowed by its own scopes."""
        user_role = None if self.user is None else self.user.role
        return scopes_of(self.role, self.rules.scopes, user_role)

    @property
    def is_of_admin(self) -> bool:
        """Whether it is an administrator's, and so is its user."""
        return self.role == "admin" and (self.user is None or self.user.role == "admin")

    @property
    def ended_at(self) -> int | None:
        """When it was revoked, alone or with its user or team, who are gone; None = it wasn't.

        So the end of a user or a team costs the same however many keys there are.
        """
        if self.revoked_at is not None:
            return self.revoked_at
        with_user = None if self.user is None else self.user.deleted_at
        with_team = None if self.team is None else self.team.deleted_at
        if with_user is None or with_team is None:
            return with_team if with_user is None else with_user
        return min(with_user, with_team)

    def is_active(self, wall_s: float) -> bool:
        """Whether the key opens anything at this moment."""
        return (
            self.revoked_at is None
            and self.suspended_at is None
            and (self.expires_at is None or wall_s < self.expires_at)
            and not ((self.user_id or self.team_id) and self.closed_by)
        )

    def refusal(self, command: Authorize) -> str | None:
        """Why a request may not be made with this key, or by its team; None when it may."""
        if self.team is not None and not self.team.allows_model(command.model):
            return f"The team of this key may not use the model '{command.model}'."
        return self.rules.refusal(command)

    def ending(self, wall_s: float) -> str:
        """Why it opens nothing and what to do: a sentence of which the key is the subject."""
        status = self.status(wall_s)
        match self.closed_by if status == "active" else "":
            case "user":
                what = "a user who " + ("is suspended" if self.user else "no longer exists")
            case "team":
                what = "a team that " + ("is suspended" if self.team else "no longer exists")
            case "membership":
                what = "a user who is no longer a member of its team"
            case _:
                return _ENDINGS[status]
        return f"belongs to {what}; an administrator can change that"

    @property
    def closed_by(self) -> KeyClosure:
        """What about its user or team keeps it from opening anything; empty = nothing."""
        user, team = self.user, self.team
        if self.user_id and (user is None or user.suspended_at is not None):
            return "user"
        if self.team_id and (team is None or team.suspended_at is not None):
            return "team"
        if team is not None and self.user_id and self.user_id not in team.members:
            return "membership"
        return ""

    def status(self, wall_s: float) -> KeyStatus:
        """What it is at this moment; what can't be undone is said first."""
        return status_of(self.ended_at, self.expires_at, self.suspended_at, wall_s)

    def has_expired(self, wall_s: float) -> bool:
        """Whether its expiry has come."""
        return self.expires_at is not None and wall_s >= self.expires_at

    def as_shown(self, digest: bytes) -> "StoredKey":
        """The key for whoever showed this secret of it: the one before ends before it does."""
        until, ends = self.previous_until, self.expires_at
        if until is None or hmac.compare_digest(self.digest, digest):
            return self
        return replace(self, expires_at=until if ends is None else min(until, ends))

    def takes(self, digest: bytes, wall_s: float) -> bool:
        """Whether this digest is of its secret, or of the one before, whose time isn't over."""
        if hmac.compare_digest(self.digest, digest):
            return True
        return self.previous_until is not None and wall_s < self.previous_until


_ENDINGS: Final[dict[KeyStatus, str]] = {
    "revoked": "was revoked; use another",
    "expired": "has expired; use another",
    "suspended": "is suspended until an administrator reactivates it",
    "active": "was rotated: this is its old secret, use the new one",
}


def status_of(
    revoked_at: int | None, expires_at: int | None, suspended_at: int | None, wall_s: float
) -> KeyStatus:
    """The status that follows from a key's times."""
    if revoked_at is not None:
        return "revoked"
    if expires_at is not None and wall_s >= expires_at:
        return "expired"
    return "active" if suspended_at is None else "suspended"


ANONYMOUS = StoredKey(
    key_id=ANONYMOUS_KEY_ID,
    digest=b"",
    hint="",
    name="anonymous",
    # Nothing is kept from whoever needs no key, but what asks for an administrator's.
    role="service",
    tenant=ANONYMOUS_TENANT,
    created_at=0,
)
"""Who acts when no key is needed."""


class KeyDirectory:
    """All keys in memory, found by digest or id, with their users and teams.

    And the principals of tokens that were verified. What administration asks about many keys at
    once is kept beside them, so that no answer looks through all of them. It is long because keys,
    users, teams and memberships point at one another, and change together.

    Attributes:
        users: By id; `end_user` takes one out.
        teams: By id; `end_team` takes one out, and `set_member` changes its members.
    """

    def __init__(
        self,
        keys: Iterable[StoredKey] = (),
        users: Iterable[StoredUser] = (),
        teams: Iterable[StoredTeam] = (),
    ) -> None:
        self.users = {user.user_id: user for user in users}
        self.teams = {team.team_id: team for team in teams}
        self._by_id: dict[str, StoredKey] = {}
        self._by_digest: dict[bytes, StoredKey] = {}
        self._tokens = TokenTable()
        self._administering = AdministeringKeys()
        self._live = LiveCounts()
        self._lasting_admins = LastingAdmins()
        self._teams_of: dict[str, set[str]] = {}
        for team in self.teams.values():
            for user_id in team.members:
                self._teams_of.setdefault(user_id, set()).add(team.team_id)
        for key in keys:
            self.put(key)

    def __len__(self) -> int:
        return len(self._by_id)

    def put(self, key: StoredKey) -> None:
        """Add a key, or replace the one of this id (whose other digests then open nothing)."""
        self.remove(key.key_id)
        key = self.attached(key)
        self._by_id[key.key_id] = key
        if key.previous_digest is not None:
            self._by_digest[key.previous_digest] = key
        self._by_digest[key.digest] = key
        if key.revoked_at is not None:
            return
        if key.user_id or key.team_id:
            self._administering.put(key)
            if key.ended_at is None:
                self._live.add(key, 1)
        if may_last(key):
            self._lasting_admins.add(key)

    def attached(self, key: StoredKey) -> StoredKey:
        """The key with its user and team as they are now."""
        user, team = self.users.get(key.user_id), self.teams.get(key.team_id)
        if key.user is user and key.team is team:
            return key
        return replace(key, user=user, team=team)

    def remove(self, key_id: str) -> None:
        """Forget a key; one that isn't there is no error."""
        key = self._by_id.pop(key_id, None)
        if key is not None:
            self._by_digest.pop(key.digest, None)
            if key.previous_digest is not None:
                self._by_digest.pop(key.previous_digest, None)
            if key.user_id or key.team_id:
                self._administering.remove(key)
                if key.ended_at is None:
                    self._live.add(key, -1)
            if may_last(key):
                self._lasting_admins.remove(key)

    def set_member(self, team: StoredTeam, user_id: str, role: MemberRole | None) -> None:
        """Make a user a member of a team, or with None no member any more."""
        if role is not None:
            team.members[user_id] = role
            self._teams_of.setdefault(user_id, set()).add(team.team_id)
        elif team.members.pop(user_id, None) is not None:
            self._leave(user_id, team.team_id)

    def end_user(self, user_id: str, at: int) -> int:
        """Forget a user, at Unix seconds: its keys are revoked, and it is no team's member.

        Returns:
            How many keys that ends.
        """
        user = self.users.pop(user_id)
        num_ended = self._live.end_user(user_id)
        user.suspended_at = user.deleted_at = at
        for team_id in self._teams_of.pop(user_id, ()):
            self.teams[team_id].members.pop(user_id, None)
        return num_ended

    def end_team(self, team_id: str, at: int) -> int:
        """Forget a team, at Unix seconds: its keys are revoked.

        Returns:
            How many keys that ends.
        """
        team = self.teams.pop(team_id)
        num_ended = self._live.end_team(team_id)
        team.suspended_at = team.deleted_at = at
        for user_id in team.members:
            self._leave(user_id, team_id)
        return num_ended

    def _leave(self, user_id: str, team_id: str) -> None:
        teams = self._teams_of.get(user_id, set())
        teams.discard(team_id)
        if not teams:
            self._teams_of.pop(user_id, None)

    def find(self, digest: bytes) -> StoredKey | None:
        """The key of a digest: of its secret, or of the one before its last rotation.

        Or the principal of a token of this digest. Those that open nothing are found, too. The dict
        only narrows down; equality is decided in constant time.
        """
        key = self._by_digest.get(digest)
        if key is None:
            principal = self._tokens.find(digest)
            return None if principal is None else self.attached(principal)
        if hmac.compare_digest(key.digest, digest):
            return key
        previous = key.previous_digest
        return key if previous is not None and hmac.compare_digest(previous, digest) else None

    def get(self, key_id: str) -> StoredKey | None:
        """The key of an id."""
        return self._by_id.get(key_id)

    def principal(self, key_id: str) -> StoredKey | None:
        """Who acts under an id: a key, or whoever a token names."""
        key = self._by_id.get(key_id)
        if key is not None:
            return key
        principal = self._tokens.get(key_id)
        return None if principal is None else self.attached(principal)

    def administering(self, *, user_id: str = "", team_id: str = "") -> Iterator[Alike]:
        """What administers of the keys and tokens' principals of a user, a team or of both.

        Only what may still open. Most keys only use models; nobody looks at those.
        """
        for widest, keys in chain(
            self._administering.held_by(user_id=user_id, team_id=team_id),
            self._tokens.administering(user_id=user_id, team_id=team_id),
        ):
            # A user or team that is gone is found no more: who ended with it is asked before.
            yield Alike(widest, (self.attached(key) for key in keys if key.ended_at is None))

    def acting(self, key_id: str, digest: bytes | None) -> StoredKey | None:
        """Who acts under an id by what was presented; by any of its tokens where that isn't said.

        Whoever presents the old secret of a rotated key has one that expires when that ends. None
        when the two don't belong together, or not any more.
        """
        if digest is None:
            return self.principal(key_id)
        key = self.find(digest)
        return key.as_shown(digest) if key is not None and key.key_id == key_id else None

    def put_token(self, principal: StoredKey, wall_s: float = 0.0) -> TokenRefusedError | None:
        """Add the principal of a token that was verified at Unix seconds.

        Why it is none, when it names nobody known here.
        """
        for what, named, known in (
            ("user", principal.user_id, self.users),
            ("team", principal.team_id, self.teams),
        ):
            if named and named not in known:
                return TokenRefusedError(
                    f"This token is not accepted: there is no {what} '{named[:100]}' here."
                )
        self._tokens.put(principal, wall_s)
        return None

    def tell_gone_principals(self, told: Callable[[str], None]) -> None:
        """From now on, tell the id of a principal of whom no token is known any more."""
        self._tokens.on_gone = told

    def end_tokens(self, signed_by: Set[str]) -> int:
        """Forget the tokens of signing keys that aren't among these; how many there were."""
        return self._tokens.end_others(signed_by)

    def num_lasting_admins(self, at_most: int) -> int:
        """How many keys can administer keys, from anywhere, and will not end by themselves.

        Args:
            at_most: Where there are more, this many or more is said.
        """
        num_lasting = 0
        for key_id, num_alike in self._lasting_admins:
            if num_lasting >= at_most:
                break
            num_lasting += num_alike if is_lasting_admin(self._by_id[key_id]) else 0
        return num_lasting


def is_closed_by_admin(key: StoredKey) -> bool:
    """Whether it is the environment's key and an administrator revoked it: it opens never again.

    One that was taken out of the environment is revoked as well, and not suspended.
    """
    is_closed = key.revoked_at is not None and key.suspended_at is not None
    return key.key_id == ENVIRONMENT_KEY_ID and is_closed


def is_lasting_admin(key: StoredKey) -> bool:
    """Whether a key alone keeps administration possible: it makes keys, always, anywhere."""
    return may_last(key) and key.is_of_admin and key.is_active(0.0) and ADMINISTERING in key.scopes


def may_last(key: StoredKey) -> bool:
    """Whether it does, if its user and team are as they should be."""
    return (
        key.role == "admin"
        and key.expires_at is None
        and key.revoked_at is None
        and key.suspended_at is None
        and ADMINISTERING in scopes_of(key.role, key.rules.scopes)
        and all(map(key.rules.allows_endpoint, ADMINISTERING_ENDPOINTS))
        and key.rules.allowed_networks is None
        and not key.rules.blocked_networks
    )
