"""What the settings say about bearer tokens: the issuer, its keys, and what claims mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from auth_worker.errors import OutboundError
from auth_worker.outbound.targets import target_of
from auth_worker.principals.roles import ROLE_SCOPES
from protocol.errors import ConfigurationError
from protocol.runtime.setting_kinds import UnfitValueError
from protocol.runtime.settings import (
    choice,
    file_path,
    number,
    read_settings,
    setting,
    text,
    words,
)
from protocol.wire.messages import PrincipalRole

MIN_SECRET_BYTES = 32
MAX_SECRET_BYTES = 4096


@dataclass(frozen=True, slots=True)
class RoleRule:
    """Whoever has `value` in a claim has a role."""

    claim: str
    value: str
    role: PrincipalRole


def _role_rule(word: str) -> str:
    _parsed(word)
    return word


def _parsed(word: str) -> RoleRule:
    rule, _, role = word.rpartition(":")
    claim, equals, value = rule.partition("=")
    if not (claim and equals and value) or role not in ROLE_SCOPES:
        raise UnfitValueError(
            word, f"CLAIM=VALUE:ROLE such as groups=llm-admins:admin ({', '.join(ROLE_SCOPES)})"
        )
    return RoleRule(claim, value, role)


@dataclass(frozen=True, slots=True)
class TokenRules:
    """How bearer tokens are verified and what they say; without an issuer none are accepted.

    Attributes:
        secret: What the file of PENSTOCK_JWT_SECRET_FILE holds; None when keys are fetched.
    """

    issuer: str = setting(
        text(
            "PENSTOCK_JWT_ISSUER",
            "",
            meaning=(
                "the `iss` of bearer tokens (JWT) that are accepted beside keys; its OpenID Connect"
                " discovery document names its keys"
            ),
        )
    )
    audience: tuple[str, ...] = setting(
        words("PENSTOCK_JWT_AUDIENCE", meaning="a token's `aud` must hold one of these")
    )
    jwks_url: str = setting(
        text(
            "PENSTOCK_JWT_JWKS_URL",
            "",
            meaning="where the issuer's key set is, for issuers without a discovery document",
        )
    )
    secret_file: Path | None = setting(
        file_path(
            "PENSTOCK_JWT_SECRET_FILE",
            None,
            meaning=(
                "file with the secret (32 bytes or more) that tokens are signed with (HS256, "
                "HS384, HS512), instead of keys that are fetched"
            ),
        )
    )
    roles: tuple[str, ...] = setting(
        words(
            "PENSTOCK_JWT_ROLES",
            each=_role_rule,
            meaning=(
                "`CLAIM=VALUE:ROLE`: who has the value in the claim has the role; the first that "
                "fits counts"
            ),
        )
    )
    default_role: str = setting(
        choice(
            "PENSTOCK_JWT_DEFAULT_ROLE",
            "user",
            ("none", "readonly", "user", "service"),
            meaning="the role of tokens that none of `PENSTOCK_JWT_ROLES` fits; none refuses them",
        )
    )
    user_claim: str = setting(
        text(
            "PENSTOCK_JWT_USER_CLAIM",
            "",
            meaning=(
                "the claim that holds the id of a user here, who must be active and whose limits "
                "then hold; a token without it is refused"
            ),
        )
    )
    team_claim: str = setting(
        text(
            "PENSTOCK_JWT_TEAM_CLAIM",
            "",
            meaning="the claim that holds the id of a team here; a token without it is in none",
        )
    )
    scopes_claim: str = setting(
        text(
            "PENSTOCK_JWT_SCOPES_CLAIM",
            "",
            meaning=(
                "the claim whose scopes narrow the role, a list or a text with blanks between; a "
                "token without it may do nothing"
            ),
        )
    )
    refresh_s: float = setting(
        number(
            "PENSTOCK_JWT_REFRESH_S",
            300.0,
            minimum=10,
            maximum=86_400,
            meaning="how often the issuer's keys are fetched again, in seconds",
        )
    )
    secret: bytes | None = field(default=None, repr=False)

    @property
    def are_on(self) -> bool:
        """Whether tokens are accepted at all."""
        return bool(self.issuer)

    def role_rules(self) -> tuple[RoleRule, ...]:
        """`roles`, read."""
        return tuple(map(_parsed, self.roles))


def read_token_rules(environ: Mapping[str, str]) -> TokenRules:
    """The rules in a mapping such as `os.environ`.

    Raises:
        ConfigurationError: A setting is wrong, or makes no sense without another.
    """
    rules = read_settings(TokenRules, environ)
    if not rules.are_on:
        named = {
            "PENSTOCK_JWT_AUDIENCE": rules.audience,
            "PENSTOCK_JWT_JWKS_URL": rules.jwks_url,
            "PENSTOCK_JWT_SECRET_FILE": rules.secret_file,
            "PENSTOCK_JWT_ROLES": rules.roles,
            "PENSTOCK_JWT_USER_CLAIM": rules.user_claim,
            "PENSTOCK_JWT_TEAM_CLAIM": rules.team_claim,
            "PENSTOCK_JWT_SCOPES_CLAIM": rules.scopes_claim,
        }
        for name, value in named.items():
            if value:
                raise ConfigurationError(f"{name} is set without PENSTOCK_JWT_ISSUER.")
        return rules
    if not rules.audience:
        raise ConfigurationError(
            "PENSTOCK_JWT_AUDIENCE must be set beside PENSTOCK_JWT_ISSUER: without it, tokens that "
            "were issued for other services would open this one."
        )
    if rules.secret_file is not None:
        if rules.jwks_url:
            raise ConfigurationError(
                "Set one of PENSTOCK_JWT_SECRET_FILE and PENSTOCK_JWT_JWKS_URL, not both."
            )
        return read_settings(TokenRules, environ, secret=_read_secret(rules.secret_file))
    url, name = (
        (rules.jwks_url, "PENSTOCK_JWT_JWKS_URL")
        if rules.jwks_url
        else (rules.issuer, "PENSTOCK_JWT_ISSUER")
    )
    try:
        target_of(url)
    except OutboundError as error:
        raise ConfigurationError(f"{name}: {error.message}.") from error
    return rules


def _read_secret(path: Path) -> bytes:
    name = "PENSTOCK_JWT_SECRET_FILE"
    try:
        with path.open("rb") as file:
            secret = file.read(MAX_SECRET_BYTES + 1).strip()
    except OSError as error:
        raise ConfigurationError(f"{name}: cannot read {path} ({error.strerror}).") from error
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ConfigurationError(
            f"{name}: {path} holds {len(secret)} bytes; a secret has {MIN_SECRET_BYTES} to "
            f"{MAX_SECRET_BYTES}."
        )
    return secret
