"""The errors of the auth worker.

PenstockError
├── ConfigurationError         (protocol) a setting that stops the start
└── AuthError                  anything that this package refuses or fails at
    ├── RefusedError           a command that must not be carried out; its message is for clients
    │   ├── InvalidCommandError    values out of bounds, a duplicate key, the last admin key
    │   ├── KeyNotFoundError       no key has this id
    │   ├── ResourceNotFoundError  no user, team, limit, budget or price has this id
    │   ├── ActorNotAllowedError   who asks for an admin change is no admin (any more)
    │   └── KeyOfEnvironmentError  the key is set where the process is configured
    ├── TokenRefusedError      a bearer token that opens nothing, and why
    │   └── UnknownSigningKeyError  signed with a key that is not in the set that was fetched last
    ├── ReportUnavailableError  a report that would take too long, or can't be read at the moment
    ├── OutboundError          an HTTP exchange with another server that may not be or didn't work
    └── StoreError             the database
        ├── StoreLockedError       another auth worker holds this database
        ├── StoreFencedError       a later epoch took the database over; this process must stop
        ├── StoreTooNewError       the database was written by a newer Penstock
        ├── StoreForeignError      the tables in the database are not ours
        ├── StoreMissingError      there was a database, and it is gone or empty
        ├── StoreDamagedError      the database's files are damaged
        └── StoreUnavailableError  the disk is full or failing; worth another try
"""

from protocol.errors import ErrorCode, PenstockError


class AuthError(PenstockError):
    """Anything that the auth worker refuses or fails at."""


class RefusedError(AuthError):
    """A command that must not be carried out; the message is safe for clients."""

    code = ErrorCode.INVALID_REQUEST


class InvalidCommandError(RefusedError):
    """Values out of bounds, a key that exists already, the last admin key."""


class KeyNotFoundError(RefusedError):
    """No key has this id."""

    code = ErrorCode.NOT_FOUND


class ResourceNotFoundError(RefusedError):
    """No user, team, limit, budget or price has this id."""

    code = ErrorCode.NOT_FOUND


class ActorNotAllowedError(RefusedError):
    """Who asks for an admin change holds no active admin key."""

    code = ErrorCode.PERMISSION_DENIED


class KeyOfEnvironmentError(RefusedError):
    """Nobody changes or ends the environment's key here: it is set where the process is."""

    code = ErrorCode.PERMISSION_DENIED


class TokenRefusedError(AuthError):
    """A bearer token that opens nothing; the message says why and is safe for clients."""

    code = ErrorCode.INVALID_API_KEY


class UnknownSigningKeyError(TokenRefusedError):
    """Signed with a key that is not in the set that was fetched last; a newer one may hold it."""


class ReportUnavailableError(AuthError):
    """A report that would take too long, or can't be read at the moment; safe for clients."""

    code = ErrorCode.WORKER_UNAVAILABLE


class OutboundError(AuthError):
    """Another server may not be reached, doesn't answer, or says too much; a phrase for logs."""


class StoreError(AuthError):
    """Something is wrong with the database."""


class StoreLockedError(StoreError):
    """Another auth worker holds this database."""


class StoreFencedError(StoreError):
    """A later epoch took the database over; this process must stop at once."""


class StoreTooNewError(StoreError):
    """The database was written by a newer version of Penstock."""


class StoreForeignError(StoreError):
    """The tables in the database are not Penstock's; it needs a database of its own."""


class StoreMissingError(StoreError):
    """There was a database, and it is gone or empty; a new one would hide the loss of all keys."""


class StoreDamagedError(StoreError):
    """The database's files are damaged; a person must restore or repair them."""


class StoreUnavailableError(StoreError):
    """The disk is full or failing; the same transaction is worth another try."""

    code = ErrorCode.WORKER_UNAVAILABLE
