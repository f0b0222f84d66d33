"""API keys: how they are made, digested, judged and remembered without ever being shown."""

import hashlib
import hmac
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from auth_worker.errors import InvalidCommandError
from protocol.wire.messages import CreateKey, KeyRole

KEY_PREFIX = "psk-"
NUM_RANDOM_BYTES = 32  # 43 characters of URL-safe base64
DIGEST_BYTES = 32
MIN_GIVEN_KEY_CHARS = 24
MAX_GIVEN_KEY_CHARS = 512
MIN_GIVEN_KEY_BITS = 64.0
MAX_NAME_CHARS = 200
MAX_TENANT_CHARS = 200
MAX_HINT_CHARS = 24
MAX_LIMIT = 2**53 - 1  # what every JSON reader keeps exact

ENVIRONMENT_KEY_ID = "key_environment"
ENVIRONMENT_KEY_NAME = "PENSTOCK_ADMIN_KEY"
ANONYMOUS_KEY_ID = "anonymous"
ANONYMOUS_TENANT = "local"
DEFAULT_TENANT = "default"
"""What is stored of a key that names no tenant. It names none either: such a key is a tenant by
itself, and so are the keys of databases from before that was so."""

# Cut out before the rest is judged; longest first, so that "password" goes before "pass".
_WEAK_WORDS = sorted(
    (
        *("penstock", "admin", "administrator", "root", "master", "password", "passwort", "passwd"),
        *("pass", "secret", "changeme", "change", "replace", "insert", "example", "sample"),
        *("default", "letmein", "welcome", "qwerty", "qwertz", "azerty", "asdf"),
        *("zxcv", "token", "apikey", "api", "key", "user", "test", "testing", "demo", "local"),
        *("dev", "development", "prod", "production", "staging", "super", "your", "this", "here"),
        *("very", "long", "strong", "secure", "private", "dummy", "placeholder", "correct"),
        *("horse", "battery", "staple", "foobar", "foo", "bar", "baz", "hunter2", "iloveyou"),
        *("monkey", "dragon", "psk", "sk", "llm", "openai", "server", "the", "and", "my", "me"),
    ),
    key=len,
    reverse=True,
)
_WEAK_PATTERN = re.compile("|".join(map(re.escape, _WEAK_WORDS)), re.IGNORECASE)


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


def weakness_of(key: str) -> str | None:
    """Why a key that a person chose is too weak to be the admin key; None when it is not.

    The message never repeats the key. Known words and runs are cut out first; what is left must be
    worth 64 bits when each character is counted by how many different ones there are.
    """
    if not all("!" <= char <= "~" for char in key):
        return "it holds a space or a character outside printable ASCII"
    if len(key) < MIN_GIVEN_KEY_CHARS:
        return f"it has {len(key)} characters, at least {MIN_GIVEN_KEY_CHARS} are needed"
    if len(key) > MAX_GIVEN_KEY_CHARS:
        return f"it has {len(key)} characters, at most {MAX_GIVEN_KEY_CHARS} are allowed"
    rest = _without_runs(_WEAK_PATTERN.sub("", key))
    num_distinct = len(set(rest))
    bits = len(rest) * math.log2(num_distinct) if num_distinct > 1 else 0.0
    if bits < MIN_GIVEN_KEY_BITS:
        return "it is easy to guess (known words, repetition or too few different characters)"
    return None


def _without_runs(text: str) -> str:
    """Drop what repeats or continues its predecessor (`aaaa`, `1234`) and all but one period."""
    kept = [
        char
        for index, char in enumerate(text)
        if index == 0 or ord(char) - ord(text[index - 1]) not in (-1, 0, 1)
    ]
    for period in range(1, len(kept) // 2 + 1):
        if kept[period:] == kept[:-period]:
            kept = kept[:period]
            break
    return "".join(kept)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as the authority knows it; the digest stays out of every repr.

    Attributes:
        requests_per_minute: None = no limit.
        tokens_per_minute: Prompt and completion together; None = no limit.
        tenant: As it was named; see `tenant_id`.
        created_at: Unix seconds, as are `expires_at` and `revoked_at`.
    """

    key_id: str
    digest: bytes = field(repr=False)
    hint: str
    name: str
    role: KeyRole
    tenant: str
    created_at: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expires_at: int | None = None
    revoked_at: int | None = None

    @property
    def tenant_id(self) -> str:
        """Whose cached prompts, fair share and places in the queue its requests use.

        The named tenant, or the key's own id: nobody shares with strangers by default, since the
        time of an answer tells which prompts were cached.
        """
        return self.key_id if self.tenant in ("", DEFAULT_TENANT) else self.tenant

    def is_active(self, wall_s: float) -> bool:
        """Whether the key opens anything at this moment."""
        return self.revoked_at is None and not self.has_expired(wall_s)

    def has_expired(self, wall_s: float) -> bool:
        """Whether its expiry has come."""
        return self.expires_at is not None and wall_s >= self.expires_at


ANONYMOUS = StoredKey(
    key_id=ANONYMOUS_KEY_ID,
    digest=b"",
    hint="",
    name="anonymous",
    role="user",
    tenant=ANONYMOUS_TENANT,
    created_at=0,
)
"""Who acts when no key is needed."""


class KeyDirectory:
    """All keys in memory, found by digest or id."""

    def __init__(self, keys: Iterable[StoredKey] = ()) -> None:
        self._by_id: dict[str, StoredKey] = {}
        self._by_digest: dict[bytes, StoredKey] = {}
        for key in keys:
            self.put(key)

    def put(self, key: StoredKey) -> None:
        """Add a key, or replace the one of this id (whose old digest then opens nothing)."""
        previous = self._by_id.get(key.key_id)
        if previous is not None:
            self._by_digest.pop(previous.digest, None)
        self._by_id[key.key_id] = key
        self._by_digest[key.digest] = key

    def find(self, digest: bytes) -> StoredKey | None:
        """The key of a digest, revoked and expired ones included.

        The dict only narrows down; equality is decided in constant time.
        """
        key = self._by_digest.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        return key

    def get(self, key_id: str) -> StoredKey | None:
        """The key of an id."""
        return self._by_id.get(key_id)

    def revoke(self, key_id: str, revoked_at: int) -> None:
        """Mark a key as revoked; a key that is so already keeps its time."""
        key = self._by_id[key_id]
        if key.revoked_at is None:
            self.put(replace(key, revoked_at=revoked_at))

    def num_lasting_admins(self) -> int:
        """How many admin keys work and will not end by themselves."""
        return sum(
            key.role == "admin" and key.revoked_at is None and key.expires_at is None
            for key in self._by_id.values()
        )


def key_from_command(command: CreateKey, *, key_id: str, wall_s: float) -> StoredKey:
    """The key that a `CreateKey` asks for.

    Raises:
        InvalidCommandError: A value is out of bounds; `param` names the field.
    """
    _require(len(command.key_digest) == DIGEST_BYTES, "key_digest", "must be 32 bytes")
    name = command.name.strip()
    _require(0 < len(name) <= MAX_NAME_CHARS, "name", f"must have 1 to {MAX_NAME_CHARS} characters")
    _require(name.isprintable(), "name", "must hold printable characters only")
    _require(
        len(command.tenant) <= MAX_TENANT_CHARS and command.tenant.isprintable(),
        "tenant",
        f"must have at most {MAX_TENANT_CHARS} printable characters",
    )
    # A longer hint might be the key itself.
    _require(len(command.hint) <= MAX_HINT_CHARS, "hint", f"has over {MAX_HINT_CHARS} characters")
    for field_name in ("requests_per_minute", "tokens_per_minute"):
        limit = getattr(command, field_name)
        _require(
            limit is None or 1 <= limit <= MAX_LIMIT,
            field_name,
            f"must be 1 to {MAX_LIMIT}, or null",
        )
    _require(
        command.expires_at is None or wall_s < command.expires_at <= MAX_LIMIT,
        "expires_at",
        "must be a time in the future, in Unix seconds",
    )
    return StoredKey(
        key_id=key_id,
        digest=command.key_digest,
        hint=command.hint,
        name=name,
        role=command.role,
        tenant=command.tenant or DEFAULT_TENANT,
        created_at=int(wall_s),
        requests_per_minute=command.requests_per_minute,
        tokens_per_minute=command.tokens_per_minute,
        expires_at=command.expires_at,
    )


def _require(holds: bool, param: str, rule: str) -> None:
    if not holds:
        raise InvalidCommandError(f"'{param}' {rule}.", param=param)
