"""The settings of a parser worker, read once at the start."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigurationError
from protocol.runtime import shared_settings as shared
from protocol.runtime.setting_kinds import split_words
from protocol.runtime.settings import (
    Setting,
    number,
    read_settings,
    setting,
    size,
    whole_number,
)
from toolparser_worker.errors import UnknownFormatError
from toolparser_worker.formats import find_reasoning_format, find_tool_format
from toolparser_worker.tools import MAX_TOOLS_BYTES


@dataclass(frozen=True)
class ParserSettings:
    """What a parser worker can be told; `meaning` says what each field with a setting is.

    Attributes:
        required_tool_formats: `PENSTOCK_TOOL_FORMAT`, what engines were told to use; a name that
            nobody here knows stops the start. A comma list, since engines may differ.
        required_reasoning_formats: `PENSTOCK_REASONING_FORMAT`, likewise.
    """

    log_level: str = setting(shared.LOG_LEVEL)
    key_dir: Path | None = setting(shared.KEY_DIR)
    drain_timeout_s: float = setting(shared.DRAIN_TIMEOUT_S)
    ready_file: Path | None = setting(shared.READY_FILE)
    max_sessions: int = setting(
        whole_number(
            "PENSTOCK_PARSER_MAX_SESSIONS",
            10_000,
            minimum=1,
            meaning=(
                "choices of requests parsed at a time; about 5 KB each beyond the text held back"
            ),
        )
    )
    session_timeout_s: float = setting(
        number(
            "PENSTOCK_PARSER_SESSION_TIMEOUT_S",
            900.0,
            minimum=1,
            meaning="a request without text for so long is forgotten",
        )
    )
    required_tool_formats: tuple[str, ...] = ()
    required_reasoning_formats: tuple[str, ...] = ()
    max_tools_bytes: int = setting(
        size(
            "PENSTOCK_PARSER_MAX_TOOLS_BYTES",
            MAX_TOOLS_BYTES,
            minimum=1,
            meaning=(
                "JSON text of the different tools that open requests have; the same tools count "
                "once"
            ),
        )
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "ParserSettings":
        """Reads the settings from environment variables.

        Raises:
            ConfigurationError: A value is wrong; the message names the setting.
        """
        return read_settings(
            cls,
            environ,
            required_tool_formats=_known(shared.TOOL_FORMAT, environ, find_tool_format),
            required_reasoning_formats=_known(
                shared.REASONING_FORMAT, environ, find_reasoning_format
            ),
        )


def _known(
    declared: Setting[str | None], environ: Mapping[str, str], find: Callable[[str], object]
) -> tuple[str, ...]:
    names = split_words(declared.read(environ) or "")
    try:
        for name in names:
            find(name)
    except UnknownFormatError as error:
        raise ConfigurationError(f"{declared.name}: {error.message}") from None
    return names
