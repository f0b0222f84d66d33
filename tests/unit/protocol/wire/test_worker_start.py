"""How a worker process begins: options over the environment, plaintext or keys by one setting."""

from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from protocol.wire import worker_start

OPTIONS = {"log_level": "PENSTOCK_LOG_LEVEL", "endpoint": "PENSTOCK_AUTH_ENDPOINT"}
LOCAL = {"PENSTOCK_AUTH_ENDPOINT": "ipc:///run/auth"}


def test_an_option_wins_over_the_environment_and_its_absence_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PENSTOCK_LOG_LEVEL", "info")
    monkeypatch.setenv("PENSTOCK_AUTH_ENDPOINT", "ipc:///run/auth")
    environ = worker_start.environment("w", "A worker.", OPTIONS, ["--log-level", "debug"])
    assert environ["PENSTOCK_LOG_LEVEL"] == "debug"
    assert environ["PENSTOCK_AUTH_ENDPOINT"] == "ipc:///run/auth"


def test_help_names_each_option_and_its_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        worker_start.environment("w", "A worker.", OPTIONS, ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "python -m w" in text
    assert "--log-level" in text
    assert "PENSTOCK_LOG_LEVEL" in text


def test_without_a_key_folder_a_worker_dials_in_plaintext() -> None:
    endpoints, security = worker_start.dialled(LOCAL, "auth", None)
    assert [endpoint.text for endpoint in endpoints] == ["ipc:///run/auth"]
    assert security is None


def test_a_key_folder_without_the_role_s_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        worker_start.dialled(LOCAL, "auth", tmp_path)
