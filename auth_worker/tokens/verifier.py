"""Verifies one token and makes its principal; pure: keys and time are handed in.

The order is that of RFC 8725: the algorithm is chosen by us and never by the token, then the
signature, then issuer, audience and times.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Final

from jwt import PyJWK, PyJWS
from jwt.exceptions import PyJWTError

from auth_worker.errors import TokenRefusedError, UnknownSigningKeyError
from auth_worker.principals.key_rules import NO_RULES, KeyRules, rules_of
from auth_worker.principals.keys import StoredKey
from auth_worker.principals.roles import SCOPES
from auth_worker.principals.tokens import TOKEN_ID_PREFIX
from auth_worker.tokens.key_set import KeySet, is_asymmetric
from auth_worker.tokens.token_rules import TokenRules
from protocol.wire.messages import KeySettings, PrincipalRole

MAX_TOKEN_CHARS = 16_384
MAX_SUBJECT_CHARS = 255
MAX_ID_CHARS = 200
MAX_CLAIM_DEPTH = 8
LEEWAY_S = 30.0
"""How far the clocks of issuer and server may be apart."""
MAX_TIME_S = 2.0**53

SECRET_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
_TYPES: Final = frozenset({"", "jwt", "at+jwt", "application/at+jwt"})
"""Not those of other tokens that the same issuer signs, such as `logout+jwt` (RFC 8725 §3.11)."""


class TokenVerifier:
    """Verifies tokens of one issuer.

    Args:
        rules: The issuer, the audience, and what claims mean.
    """

    def __init__(self, rules: TokenRules) -> None:
        self._rules = rules
        self._role_rules = rules.role_rules()
        # Nothing but the signature is left to the library, whose clock can't be injected.
        self._signatures = PyJWS()

    def verify(self, token: str, keys: KeySet, wall_s: float) -> StoredKey:
        """The principal of a token.

        Raises:
            UnknownSigningKeyError: The key isn't in the set.
            TokenRefusedError: The token opens nothing.
        """
        claims, signed_by = self._claims(token, keys)
        expires_at = self._check(claims, wall_s)
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARS:
            raise _refused("it names nobody (`sub`)")
        issued_at = _time(claims.get("iat"))
        return StoredKey(
            key_id=principal_id(self._rules.issuer, subject),
            digest=hashlib.sha256(token.encode()).digest(),
            hint="",
            name=subject,
            role=self._role(claims),
            tenant="",
            created_at=int(issued_at or 0),
            expires_at=expires_at,
            rules=self._key_rules(claims),
            user_id=self._user(claims),
            team_id=_named(claims, self._rules.team_claim),
            signed_by=signed_by,
        )

    def _user(self, claims: Mapping[str, Any]) -> str:
        """Whose limits, models and suspension hold; a token that names nobody must not escape them.

        Raises:
            TokenRefusedError: A user is asked for, and none is named.
        """
        name = self._rules.user_claim
        user_id = _named(claims, name)
        if name and not user_id:
            raise _refused(f"it has no claim {name}, which names a user here")
        return user_id

    def _claims(self, token: str, keys: KeySet) -> tuple[Mapping[str, Any], str]:
        """What a token says whose signature is good, and the name of the key that made it."""
        if len(token) > MAX_TOKEN_CHARS or not token.isascii():
            raise _refused(f"it is longer than {MAX_TOKEN_CHARS} characters, or no token")
        try:
            header = self._signatures.get_unverified_header(token)
        except (PyJWTError, ValueError, RecursionError) as error:
            raise _refused("it is no JSON Web Token") from error
        algorithm, key_id = header.get("alg"), header.get("kid", "")
        kind = header.get("typ", "")
        if not isinstance(algorithm, str) or not isinstance(key_id, str):
            raise _refused("its header is malformed")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise _refused("it is a token of another kind (`typ`)")
        if "crit" in header or "b64" in header:
            raise _refused("it has header parameters that are not supported (`crit`)")
        for key, name in self._keys(algorithm, key_id, keys):
            try:
                payload = self._signatures.decode(token, key, algorithms=[algorithm])
            except (PyJWTError, ValueError, TypeError, RecursionError):
                continue
            return _object(payload), name
        raise _refused("its signature doesn't hold")

    def _keys(self, algorithm: str, key_id: str, keys: KeySet) -> list[tuple[PyJWK | bytes, str]]:
        secret = self._rules.secret
        if secret is not None:
            if algorithm not in SECRET_ALGORITHMS:
                raise _refused(f"tokens here are signed with {', '.join(SECRET_ALGORITHMS)}")
            return [(secret, "")]
        if not is_asymmetric(algorithm):
            raise _refused("it isn't signed with a public key's algorithm")
        found = keys.find(key_id, algorithm)
        if not found:
            raise UnknownSigningKeyError("This token is not accepted: its signing key is unknown.")
        return [(key.for_algorithm(algorithm), key.name) for key in found]

    def _check(self, claims: Mapping[str, Any], wall_s: float) -> int:
        """Issuer, audience and times; when it expires, in Unix seconds."""
        if claims.get("iss") != self._rules.issuer:
            raise _refused("it comes from another issuer (`iss`)")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if not any(one in self._rules.audience for one in audiences if isinstance(one, str)):
            raise _refused("it was issued for another service (`aud`)")
        expires_at = _time(claims.get("exp"))
        if expires_at is None:
            raise _refused("it says not until when it is good (`exp`)")
        # Without leeway: it would be good in memory for longer than it says.
        if wall_s >= expires_at:
            raise _refused("it has expired; use another")
        for name in ("nbf", "iat"):
            since = _time(claims.get(name, 0))
            if since is None or since > wall_s + LEEWAY_S:
                raise _refused(f"it is not good yet (`{name}`)")
        return math.ceil(expires_at)

    def _role(self, claims: Mapping[str, Any]) -> PrincipalRole:
        for rule in self._role_rules:
            if rule.value in _texts(claim_of(claims, rule.claim)):
                return rule.role
        default = self._rules.default_role
        if default == "none":
            raise _refused("it has no role here (PENSTOCK_JWT_ROLES)")
        return default  # type: ignore[return-value]  # the setting takes no other words

    def _key_rules(self, claims: Mapping[str, Any]) -> KeyRules:
        if not self._rules.scopes_claim:
            return NO_RULES
        said = claim_of(claims, self._rules.scopes_claim)
        texts = said.split() if isinstance(said, str) else _texts(said)
        scopes = tuple(scope for scope in SCOPES if scope in texts)
        return rules_of(KeySettings(name="", scopes=scopes))


def principal_id(issuer: str, subject: str) -> str:
    """The id of whoever a token names: the same for each of its tokens, and no name."""
    digest = hashlib.sha256(f"{issuer}\0{subject}".encode()).hexdigest()
    return f"{TOKEN_ID_PREFIX}{digest[:24]}"


def claim_of(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by a path with dots into objects (`realm_access.roles`)."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split(".", MAX_CLAIM_DEPTH):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _named(claims: Mapping[str, Any], name: str) -> str:
    """The id in a claim; empty where none is asked for or given.

    Raises:
        TokenRefusedError: It is no id.
    """
    value = claim_of(claims, name) if name else None
    if value is None:
        return ""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS:
        raise _refused(f"its claim {name} is no id")
    return value


def _texts(value: Any) -> list[str]:
    """The texts of a claim that is one, or a list of them."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str)]


def _time(value: Any) -> float | None:
    """A time in Unix seconds; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value <= MAX_TIME_S else None  # NaN isn't either


def _object(payload: Any) -> Mapping[str, Any]:
    try:
        claims = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise _refused("what it says is no JSON object") from error
    if not isinstance(claims, dict):
        raise _refused("what it says is no JSON object")
    return claims


def _refused(why: str) -> TokenRefusedError:
    return TokenRefusedError(f"This token is not accepted: {why}.")
