"""Tokens that were verified, as principals in memory until they expire; bounded."""

import heapq
import hmac
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Set
from typing import TYPE_CHECKING, Final

from auth_worker.principals.key_index import AdministeringKeys, Alike

if TYPE_CHECKING:
    from auth_worker.principals.keys import StoredKey

MAX_TOKENS = 16_384
TOKEN_ID_PREFIX = "token_"  # noqa: S105 - how the id of a token's principal begins
TIDIED_A_TURN: Final = 4
"""Tokens of withdrawn signing keys that are taken out with each new token."""


class TokenTable:
    """Principals of tokens, found by the token's digest or by the principal's id.

    One principal may have several tokens at a time. When there are too many, one that has expired
    goes first, or else the one that was shown longest ago, which is verified again when it comes
    again. (A request whose token went gets no further tokens: those that run were shown lately.)

    Args:
        max_tokens: How many are kept.

    Attributes:
        on_gone: Told the id of a principal of whom no token is known any more.
    """

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self.on_gone: Callable[[str], None] = lambda _: None
        self._by_digest: OrderedDict[bytes, StoredKey] = OrderedDict()
        self._of_id: dict[str, dict[bytes, StoredKey]] = {}
        self._by_id: dict[str, StoredKey] = {}  # with the token that is good for longest
        self._ends: list[tuple[int, bytes]] = []  # a heap; also of tokens that are gone
        # A token is good while it stands here, so that withdrawing a key ends all of them at once.
        self._of_signer: dict[str, dict[bytes, None]] = {}
        self._ended: deque[bytes] = deque()
        self._administering = AdministeringKeys()

    def __len__(self) -> int:
        return len(self._by_digest)

    def put(self, principal: "StoredKey", wall_s: float = 0.0) -> None:
        """A token was verified, at Unix seconds."""
        self._remove(principal.digest)
        self._tidy()
        self._by_digest[principal.digest] = principal
        self._of_signer.setdefault(principal.signed_by, {})[principal.digest] = None
        self._administering.put(principal)
        self._of_id.setdefault(principal.key_id, {})[principal.digest] = principal
        known = self._by_id.get(principal.key_id)
        if known is None or _end_of(known) <= _end_of(principal):
            self._by_id[principal.key_id] = principal
        if len(self._by_digest) > self._max_tokens and not self._remove_expired(wall_s):
            self._remove(next(iter(self._by_digest)))
        if principal.expires_at is not None:
            heapq.heappush(self._ends, (principal.expires_at, principal.digest))
            if len(self._ends) > 2 * self._max_tokens:
                self._ends = [end for end in self._ends if self._is_held(*end)]
                heapq.heapify(self._ends)

    def find(self, digest: bytes) -> "StoredKey | None":
        """The principal of a token that was verified; also of one that has expired since."""
        principal = self._by_digest.get(digest)
        if principal is None or not hmac.compare_digest(principal.digest, digest):
            return None
        self._by_digest.move_to_end(digest)
        return principal if self._is_good(principal) else None

    def get(self, key_id: str) -> "StoredKey | None":
        """The principal of an id, with the token of his that is good for longest."""
        principal = self._by_id.get(key_id)
        while principal is not None and not self._is_good(principal):
            self._remove(principal.digest)
            principal = self._by_id.get(key_id)
        return principal

    def administering(self, *, user_id: str = "", team_id: str = "") -> Iterator[Alike]:
        """See `AdministeringKeys.held_by`."""
        for widest, keys in self._administering.held_by(user_id=user_id, team_id=team_id):
            yield Alike(widest, filter(self._is_good, keys))

    def end_others(self, signed_by: Set[str]) -> int:
        """Forget the tokens of signing keys that aren't among these; how many there were."""
        withdrawn = [name for name in self._of_signer if name not in signed_by]
        ended = [self._of_signer.pop(name) for name in withdrawn]
        for digests in ended:
            self._ended.extend(digests)
        return sum(map(len, ended))

    def _is_good(self, principal: "StoredKey") -> bool:
        return principal.digest in self._of_signer.get(principal.signed_by, ())

    def _tidy(self) -> None:
        """Take some out that have ended with their signing key."""
        for _ in range(min(TIDIED_A_TURN, len(self._ended))):
            digest = self._ended.popleft()
            principal = self._by_digest.get(digest)
            if principal is not None and not self._is_good(principal):
                self._remove(digest)

    def _remove_expired(self, wall_s: float) -> bool:
        """Forget the one that expired first; False when none has expired."""
        while self._ends and self._ends[0][0] <= wall_s:
            expires_at, digest = heapq.heappop(self._ends)
            if self._is_held(expires_at, digest):
                self._remove(digest)
                return True
        return False

    def _is_held(self, expires_at: int, digest: bytes) -> bool:
        held = self._by_digest.get(digest)
        return held is not None and held.expires_at == expires_at

    def _remove(self, digest: bytes) -> None:
        principal = self._by_digest.pop(digest, None)
        if principal is None:
            return
        self._administering.remove(principal)
        of_signer = self._of_signer.get(principal.signed_by)
        if of_signer is not None:
            of_signer.pop(digest, None)
            if not of_signer:
                del self._of_signer[principal.signed_by]
        key_id = principal.key_id
        tokens = self._of_id[key_id]
        del tokens[digest]
        if not tokens:
            del self._of_id[key_id], self._by_id[key_id]
            self.on_gone(key_id)
        elif self._by_id[key_id] is principal:
            self._by_id[key_id] = max(tokens.values(), key=_end_of)


def _end_of(principal: "StoredKey") -> int:
    return principal.expires_at or 0
