"""Tokens that were verified, as principals in memory until they expire; bounded."""

import hmac
from collections import OrderedDict
from collections.abc import Iterator, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auth_worker.principals.keys import StoredKey

MAX_TOKENS = 16_384


class TokenTable:
    """Principals of tokens, found by the token's digest or by the principal's id.

    One principal may have several tokens at a time. The oldest go first when there are too many;
    they are verified again when they come again.

    Args:
        max_tokens: How many are kept.
    """

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._by_digest: OrderedDict[bytes, StoredKey] = OrderedDict()
        self._by_id: dict[str, StoredKey] = {}

    def __len__(self) -> int:
        return len(self._by_digest)

    def __iter__(self) -> Iterator["StoredKey"]:
        return iter(self._by_digest.values())

    def put(self, principal: "StoredKey") -> None:
        """A token was verified."""
        self._by_digest[principal.digest] = principal
        self._by_digest.move_to_end(principal.digest)
        known = self._by_id.get(principal.key_id)
        if known is None or (known.expires_at or 0) <= (principal.expires_at or 0):
            self._by_id[principal.key_id] = principal
        if len(self._by_digest) > self._max_tokens:
            _, oldest = self._by_digest.popitem(last=False)
            self._forget_id(oldest)

    def find(self, digest: bytes) -> "StoredKey | None":
        """The principal of a token that was verified; also of one that has expired since."""
        principal = self._by_digest.get(digest)
        if principal is None or not hmac.compare_digest(principal.digest, digest):
            return None
        return principal

    def get(self, key_id: str) -> "StoredKey | None":
        """The principal of an id, with the token of his that is good for longest."""
        return self._by_id.get(key_id)

    def end_others(self, signed_by: Set[str]) -> int:
        """Forget the tokens of signing keys that aren't among these; how many there were."""
        kept = [one for one in self._by_digest.values() if one.signed_by in signed_by]
        num_ended = len(self._by_digest) - len(kept)
        if num_ended:
            self._by_digest.clear()
            self._by_id.clear()
            for one in kept:
                self.put(one)
        return num_ended

    def _forget_id(self, principal: "StoredKey") -> None:
        if self._by_id.get(principal.key_id) is principal:
            del self._by_id[principal.key_id]
