"""What the id of a lease says."""

from typing import Final, NamedTuple

from auth_worker.records.stored_names import stored_name

MAX_LEASE_ID_CHARS: Final = 1024
_PREFIX: Final = "lease"


def lease_id_of(epoch: int, counter: int, key_id: str, model: str) -> str:
    """A lease id; see `LeaseName`."""
    return f"{_PREFIX}:{epoch:06x}:{counter:010x}:{key_id}:{model}"


class LeaseName(NamedTuple):
    """What a lease id says about itself.

    A lease is remembered in the background, so a kill in the milliseconds after its grant may
    forget it. Its settlement still finds the right key and model, because the id carries them.
    Ids never reach a client. Zero-padded, so that they grow and the ledger's index appends.
    """

    epoch: int
    counter: int
    key_id: str
    model: str

    def __str__(self) -> str:
        return lease_id_of(self.epoch, self.counter, self.key_id, self.model)

    @classmethod
    def parse(cls, lease_id: str) -> "LeaseName | None":
        """The parts of an id; None when it is none of ours."""
        parts = lease_id.split(":", 4)
        if len(parts) != 5 or parts[0] != _PREFIX or not parts[3]:
            return None
        try:
            return cls(int(parts[1], 16), int(parts[2], 16), *map(stored_name, parts[3:]))
        except ValueError:
            return None
