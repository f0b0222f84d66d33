"""What the id of a lease says."""

from typing import Final, NamedTuple

from auth_worker.records.stored_names import stored_name

MAX_LEASE_ID_CHARS: Final = 1024
_PREFIX: Final = "lease"
_COUNTER_DIGITS: Final = 10
_TIME_DIGITS: Final = 11


def lease_id_of(epoch: int, counter: int, granted_at_ms: int, key_id: str, model: str) -> str:
    """A lease id; see `LeaseName`."""
    # One of these for each request: this takes half the time of a format string.
    return "%s:%06x:%010x%011x:%s:%s" % (_PREFIX, epoch, counter, granted_at_ms, key_id, model)  # noqa: UP031


class LeaseName(NamedTuple):
    """What a lease id says about itself.

    A lease is remembered in the background, so a kill in the milliseconds after its grant may
    forget it. Its settlement still finds the right key, model and price, because the id carries
    them and the moment of the grant. Ids never reach a client. Zero-padded, so that they grow and
    the ledger's index appends. The moment stands behind the counter in one hexadecimal number,
    which auth workers of before take for a counter.

    Attributes:
        granted_at_ms: Unix milliseconds; None in an id of before there were such moments.
    """

    epoch: int
    counter: int
    key_id: str
    model: str
    granted_at_ms: int | None = None

    def __str__(self) -> str:
        if self.granted_at_ms is None:
            return f"{_PREFIX}:{self.epoch:06x}:{self.counter:010x}:{self.key_id}:{self.model}"
        return lease_id_of(self.epoch, self.counter, self.granted_at_ms, self.key_id, self.model)

    def granted_by(self, now_ms: int) -> int:
        """When it was granted, in Unix milliseconds; where the id doesn't say so, now."""
        return now_ms if self.granted_at_ms is None else min(self.granted_at_ms, now_ms)

    @classmethod
    def parse(cls, lease_id: str) -> "LeaseName | None":
        """The parts of an id; None when it is none of ours."""
        parts = lease_id.split(":", 4)
        if len(parts) != 5 or parts[0] != _PREFIX or not parts[3]:
            return None
        digits, granted_at_ms = parts[2], None
        key_id, model = map(stored_name, parts[3:])
        try:
            if len(digits) == _COUNTER_DIGITS + _TIME_DIGITS:
                granted_at_ms = int(digits[_COUNTER_DIGITS:], 16)
                digits = digits[:_COUNTER_DIGITS]
            return cls(int(parts[1], 16), int(digits, 16), key_id, model, granted_at_ms)
        except ValueError:
            return None
