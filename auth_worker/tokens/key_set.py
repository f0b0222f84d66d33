"""The keys of a token issuer (RFC 7517): read once, found by id and algorithm."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final

from jwt import PyJWK
from jwt.exceptions import PyJWTError

from auth_worker.errors import OutboundError

MAX_KEYS = 100
MIN_RSA_BITS = 2048

ALGORITHMS: Final[dict[str, tuple[str, ...]]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""What keys of each kind sign with. None of them is symmetric: a public key that were taken for an
HMAC secret would let anybody sign (key confusion)."""

_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_KIND: Final = {
    algorithm: kind for kind, algorithms in ALGORITHMS.items() for algorithm in algorithms
}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key of an issuer.

    Attributes:
        key_id: Its `kid`; empty when it has none.
        data: The JSON Web Key.
        algorithms: What it may have signed with.
        name: A digest of all of it: another key under the same `kid` has another name.
    """

    key_id: str
    data: dict[str, Any]
    algorithms: tuple[str, ...]
    name: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        text = json.dumps([self.data, self.algorithms], sort_keys=True)
        object.__setattr__(self, "name", hashlib.sha256(text.encode()).hexdigest())

    def for_algorithm(self, algorithm: str) -> PyJWK:
        """The key, for verifying with one algorithm."""
        return PyJWK(self.data, algorithm)


@dataclass(frozen=True, slots=True)
class KeySet:
    """What an issuer published at one time.

    Attributes:
        num_unfit: Keys that nothing is verified with: symmetric, short, for other uses or unknown.
    """

    keys: tuple[SigningKey, ...] = ()
    num_unfit: int = 0

    @property
    def names(self) -> frozenset[str]:
        """Of its keys."""
        return frozenset(key.name for key in self.keys)

    def find(self, key_id: str, algorithm: str) -> tuple[SigningKey, ...]:
        """The keys that a token with this header may be signed with.

        A token without a `kid` may be signed with the only key for its algorithm.
        """
        fit = [key for key in self.keys if algorithm in key.algorithms]
        if key_id:
            return tuple(key for key in fit if key.key_id == key_id)
        return tuple(fit) if len(fit) == 1 else ()


def read_key_set(body: bytes) -> KeySet:
    """A key set as its issuer published it.

    Raises:
        OutboundError: It is none.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise OutboundError("the key set is no JSON") from error
    entries = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise OutboundError("the key set has no list `keys`")
    keys = [key for key in map(_signing_key, entries[:MAX_KEYS]) if key is not None]
    return KeySet(tuple(keys), len(entries) - len(keys))


def _signing_key(entry: Any) -> SigningKey | None:
    """A key that tokens may be signed with; None for all others."""
    if not isinstance(entry, dict):
        return None
    kind, use, operations = entry.get("kty"), entry.get("use", "sig"), entry.get("key_ops")
    if not isinstance(kind, str) or kind not in ALGORITHMS or use != "sig":
        return None
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    said = entry.get("alg")
    algorithms = [
        algorithm
        for algorithm in ALGORITHMS[kind]
        if said in (None, algorithm) and _CURVES.get(algorithm) in (None, entry.get("crv"))
    ]
    key_id = entry.get("kid", "")
    # Without private parts, should an issuer publish them by mistake.
    public = {
        name: entry[name] for name in ("kty", "crv", "x", "y", "n", "e", "kid") if name in entry
    }
    if not algorithms or not isinstance(key_id, str):
        return None
    try:
        key = PyJWK(public, algorithms[0]).key
    except (PyJWTError, ValueError, TypeError):
        return None
    if getattr(key, "key_size", MIN_RSA_BITS) < MIN_RSA_BITS and kind == "RSA":
        return None
    return SigningKey(key_id, public, tuple(algorithms))


def is_asymmetric(algorithm: str) -> bool:
    """Whether tokens may be signed so with keys of a set."""
    return algorithm in _KIND
