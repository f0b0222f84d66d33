"""The errors of the command line, each one clear line and an exit code.

PenstockError
└── CommandError         what the user asked for can't be done; exit code 1
    ├── UsageError       the arguments are wrong; exit code 2
    ├── ModelError       the model can't be found, read, fetched or held in memory
    └── ServerError      the server answered with an error, or not at all
"""

from protocol.errors import ErrorCode, PenstockError


class CommandError(PenstockError):
    """What the user asked for can't be done."""

    exit_code = 1


class UsageError(CommandError):
    """The arguments are wrong; nothing was started."""

    code = ErrorCode.INVALID_REQUEST
    exit_code = 2


class ModelError(CommandError):
    """The model can't be found, read, fetched or held in memory."""

    code = ErrorCode.MODEL_NOT_FOUND


class ServerError(CommandError):
    """The server answered with an error, or not at all.

    Args:
        message: For people.
        status: Of its answer; 0 where there was none.
        param: What of the request is wrong, if the server says so.
    """

    code = ErrorCode.WORKER_UNAVAILABLE

    def __init__(self, message: str, *, status: int = 0, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
