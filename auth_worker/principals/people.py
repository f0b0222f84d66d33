"""Who stands behind keys: users, service accounts among them, and teams with their members."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from protocol.wire.messages import MemberRole, PrincipalRole, UserKind


@dataclass(slots=True)
class StoredUser:
    """A user as the authority knows it: one object, which all its keys share.

    So what changes about a user holds for each of its keys at once, however many there are.

    Attributes:
        role: No key of this user may do more than this role.
        kind: A person, or a service account.
        suspended_at: Unix seconds; its keys open nothing then.
        deleted_at: Unix seconds; its keys are revoked since then. It is suspended as well.
    """

    user_id: str
    name: str
    email: str = ""
    role: PrincipalRole = "user"
    kind: UserKind = "person"
    suspended_at: int | None = None
    deleted_at: int | None = None


@dataclass(slots=True)
class StoredTeam:
    """A team as the authority knows it: one object, which all its keys share.

    Attributes:
        tenant_is_shared: Its keys share cached prompts and one fair share, unless they name a
            tenant themselves.
        allowed_models: Globs; a key of the team may use only what they and its own let through.
            None = every model, empty = none.
        suspended_at: Unix seconds; its keys open nothing then.
        deleted_at: As of a user.
        members: The role of each user by id; a user's key in a team opens nothing unless the user
            is a member of it.
    """

    team_id: str
    name: str
    tenant_is_shared: bool = False
    allowed_models: tuple[str, ...] | None = None
    suspended_at: int | None = None
    deleted_at: int | None = None
    members: dict[str, MemberRole] = field(default_factory=dict)

    def allows_model(self, model: str) -> bool:
        """Whether its keys may use this model; a request without one is not kept from anything."""
        if not model or self.allowed_models is None:
            return True
        return any(fnmatchcase(model, glob) for glob in self.allowed_models)
