"""The settings of the parser worker."""

from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from toolparser_worker.config import ParserSettings


def test_the_defaults_need_no_environment() -> None:
    assert ParserSettings.from_env({}) == ParserSettings()


def test_every_setting_can_come_from_the_environment() -> None:
    settings = ParserSettings.from_env(
        {
            "PENSTOCK_LOG_LEVEL": "debug",
            "PENSTOCK_KEY_DIR": "/keys",
            "PENSTOCK_DRAIN_TIMEOUT_S": "2.5",
            "PENSTOCK_PARSER_MAX_SESSIONS": "7",
            "PENSTOCK_PARSER_SESSION_TIMEOUT_S": "11",
        }
    )
    assert settings == ParserSettings("debug", Path("/keys"), 2.5, None, 7, 11.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PENSTOCK_LOG_LEVEL", "loud"),
        ("PENSTOCK_DRAIN_TIMEOUT_S", "-1"),
        ("PENSTOCK_PARSER_MAX_SESSIONS", "0"),
        ("PENSTOCK_PARSER_SESSION_TIMEOUT_S", "soon"),
    ],
)
def test_a_bad_value_names_its_setting(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        ParserSettings.from_env({name: value})
