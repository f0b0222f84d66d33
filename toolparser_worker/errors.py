"""The errors of the parser worker.

PenstockError
└── ParserError                what a request for parsing can be refused for
    ├── UnknownFormatError     a format that is declared nowhere; names the closest one
    ├── UnsupportedToolsError  tools whose calls can not be enforced in this format
    ├── InvalidToolsError      `tools` or `tool_choice` that are not what the chat schema allows
    ├── FormatPluginError      formats of another package that cannot be used; stops the start
    ├── InvalidDeltaError      text for a choice that does not exist or has already ended
    └── TooManySessionsError   as many requests are open as the worker was configured for

Model text raises none of them: what a model writes is never an error.
"""

from protocol.errors import ErrorCode, PenstockError


class ParserError(PenstockError):
    """A request that cannot be parsed; never caused by model text."""

    code = ErrorCode.INVALID_REQUEST


class UnknownFormatError(ParserError):
    """A tool or reasoning format that is declared nowhere."""


class FormatPluginError(ParserError):
    """Formats of another package that cannot be loaded, or have a name that is taken."""

    code = ErrorCode.INTERNAL_ERROR


class InvalidToolsError(ParserError):
    """`tools` or `tool_choice` that are not what the chat schema allows."""


class InvalidDeltaError(ParserError):
    """Text for a choice that does not exist or has already ended."""


class TooManySessionsError(ParserError):
    """As many requests are open as the worker was configured for."""

    code = ErrorCode.OVERLOADED


class UnsupportedToolsError(ParserError):
    """Tools that the model's format can't be held to; the message says which and why."""

    code = ErrorCode.UNSUPPORTED_GRAMMAR
