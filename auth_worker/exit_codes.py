"""How the auth worker's process ends, so that its supervisor knows whether to start it again."""

from auth_worker.errors import (
    StoreDamagedError,
    StoreFencedError,
    StoreMissingError,
    StoreUnavailableError,
)
from protocol.errors import PenstockError

EXIT_FAILED = 1
"""A setting or a file is wrong; another start won't help."""

EXIT_UNAVAILABLE = 75
"""EX_TEMPFAIL of sysexits.h: the disk is full or failing, the server of the database is away, or
another auth worker took over, for which the next start stands by."""

EXIT_LOST = 78
"""EX_CONFIG of sysexits.h: the database is lost or damaged; a person must look at it."""


def exit_code_of(error: PenstockError) -> int:
    """The exit code of a process that this error ends."""
    if isinstance(error, StoreUnavailableError | StoreFencedError):
        return EXIT_UNAVAILABLE
    if isinstance(error, StoreMissingError | StoreDamagedError):
        return EXIT_LOST
    return EXIT_FAILED
