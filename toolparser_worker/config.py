"""The settings of a parser worker, read once at the start."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigurationError
from protocol.runtime.settings import SettingsReader
from protocol.wire.keys import KEY_DIR_SETTING
from protocol.wire.readiness import READY_FILE_SETTING
from toolparser_worker.errors import UnknownFormatError
from toolparser_worker.formats import find_reasoning_format, find_tool_format
from toolparser_worker.tools import MAX_TOOLS_BYTES


@dataclass(frozen=True)
class ParserSettings:
    """What a parser worker can be told.

    Attributes:
        log_level: `PENSTOCK_LOG_LEVEL`.
        key_dir: `PENSTOCK_KEY_DIR`, the folder with the CURVE keys; None without encryption.
        drain_timeout_s: `PENSTOCK_DRAIN_TIMEOUT_S`, how long open requests may go on at the end.
        max_sessions: `PENSTOCK_PARSER_MAX_SESSIONS`, choices of requests that may be open at once.
        max_tools_bytes: `PENSTOCK_PARSER_MAX_TOOLS_BYTES`, JSON text of different tools that open
            requests may have.
        session_timeout_s: `PENSTOCK_PARSER_SESSION_TIMEOUT_S`, how long one may get no text.
        required_tool_formats: `PENSTOCK_TOOL_FORMAT`, what engines were told to use; a name that
            nobody here knows stops the start. A comma list, since engines may differ.
        required_reasoning_formats: `PENSTOCK_REASONING_FORMAT`, likewise.
        ready_file: `PENSTOCK_READY_FILE`, there while a gateway gives this worker work.
    """

    log_level: str = "info"
    key_dir: Path | None = None
    drain_timeout_s: float = 30.0
    max_sessions: int = 10_000
    session_timeout_s: float = 900.0
    required_tool_formats: tuple[str, ...] = ()
    required_reasoning_formats: tuple[str, ...] = ()
    max_tools_bytes: int = MAX_TOOLS_BYTES
    ready_file: Path | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "ParserSettings":
        """Reads the settings from environment variables.

        Raises:
            ConfigurationError: A value is wrong; the message names the setting.
        """
        reader = SettingsReader(environ)
        return cls(
            log_level=reader.choice(
                "PENSTOCK_LOG_LEVEL", cls.log_level, ("debug", "info", "warning", "error")
            ),
            key_dir=reader.path(KEY_DIR_SETTING),
            drain_timeout_s=reader.float(
                "PENSTOCK_DRAIN_TIMEOUT_S", cls.drain_timeout_s, minimum=0.0
            ),
            max_sessions=reader.int("PENSTOCK_PARSER_MAX_SESSIONS", cls.max_sessions, minimum=1),
            max_tools_bytes=reader.int(
                "PENSTOCK_PARSER_MAX_TOOLS_BYTES", cls.max_tools_bytes, minimum=1
            ),
            session_timeout_s=reader.float(
                "PENSTOCK_PARSER_SESSION_TIMEOUT_S", cls.session_timeout_s, minimum=1.0
            ),
            required_tool_formats=_known("PENSTOCK_TOOL_FORMAT", reader, find_tool_format),
            required_reasoning_formats=_known(
                "PENSTOCK_REASONING_FORMAT", reader, find_reasoning_format
            ),
            ready_file=reader.path(READY_FILE_SETTING),
        )


def _known(setting: str, reader: SettingsReader, find: Callable[[str], object]) -> tuple[str, ...]:
    names = reader.words(setting, ())
    try:
        for name in names:
            find(name)
    except UnknownFormatError as error:
        raise ConfigurationError(f"{setting}: {error.message}") from None
    return names
