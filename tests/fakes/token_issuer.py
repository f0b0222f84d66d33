"""An issuer of bearer tokens on loopback: discovery document, key set, and tokens of any kind."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.fakes.http_target import HttpTarget, Received, Reply, http_target

AUDIENCE = "penstock"


@cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key by its name; made once, since that takes a while."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key(name: str) -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def public_jwk(key: Any, kid: str, **members: Any) -> dict[str, Any]:
    """The public half of a key as a JSON Web Key."""
    if isinstance(key, rsa.RSAPrivateKey):
        data = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        data = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        data = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    data.pop("key_ops", None)
    return {**data, "kid": kid, "use": "sig", **members}


class TokenIssuer:
    """Publishes keys and signs tokens.

    Attributes:
        keys: What the key set holds.
        issuer: The `iss` of its tokens.
        is_gone: Whether it answers 503.
    """

    def __init__(self, target: HttpTarget) -> None:
        self.target = target
        self.issuer = target.url
        self.keys: list[dict[str, Any]] = [public_jwk(rsa_key("one"), "one")]
        self.is_gone = False
        target.answer = self._answer

    def token(
        self,
        *,
        now_s: float,
        kid: str = "one",
        key: Any = None,
        algorithm: str = "RS256",
        headers: dict[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A token that is good for ten minutes; a claim of None is left out."""
        said = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "ada",
            "iat": int(now_s),
            "exp": int(now_s) + 600,
            **claims,
        }
        payload = {name: value for name, value in said.items() if value is not None}
        signing = rsa_key("one") if key is None else key
        all_headers = {"kid": kid, **(headers or {})}
        return jwt.encode(payload, signing, algorithm, headers=all_headers)

    def num_fetches(self) -> int:
        """How often the key set was asked for."""
        return sum(one.path == "/keys" for one in self.target.received)

    def _answer(self, received: Received) -> Reply:
        if self.is_gone:
            return 503, b"", {}
        if received.path == "/.well-known/openid-configuration":
            document = {"issuer": self.issuer, "jwks_uri": f"{self.target.url}/keys"}
            return 200, json.dumps(document).encode(), {}
        if received.path == "/keys":
            return 200, json.dumps({"keys": self.keys}).encode(), {}
        return 404, b"", {}


@contextmanager
def token_issuer() -> Iterator[TokenIssuer]:
    """An issuer on a free port."""
    with http_target() as target:
        yield TokenIssuer(target)
