"""Settings of bearer tokens: what is wrong stops the start with the name of the setting."""

from pathlib import Path

import pytest

from auth_worker.config import AuthSettings
from auth_worker.tokens.token_rules import RoleRule
from protocol.errors import ConfigurationError

GOOD = {"PENSTOCK_JWT_ISSUER": "https://i.example", "PENSTOCK_JWT_AUDIENCE": "penstock"}


def settings(tmp_path: Path, **environ: str) -> AuthSettings:
    return AuthSettings.from_env({"PENSTOCK_DATA_DIR": str(tmp_path), **environ})


def test_without_an_issuer_no_tokens_are_accepted(tmp_path: Path) -> None:
    assert not settings(tmp_path).tokens.are_on
    assert settings(tmp_path, **GOOD).tokens.are_on


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"PENSTOCK_JWT_ISSUER": "https://i.example"}, "PENSTOCK_JWT_AUDIENCE"),
        ({"PENSTOCK_JWT_AUDIENCE": "x"}, "PENSTOCK_JWT_ISSUER"),
        ({"PENSTOCK_JWT_JWKS_URL": "https://i.example"}, "PENSTOCK_JWT_ISSUER"),
        ({**GOOD, "PENSTOCK_JWT_ISSUER": "i.example"}, "PENSTOCK_JWT_ISSUER"),
        ({**GOOD, "PENSTOCK_JWT_JWKS_URL": "ftp://x"}, "PENSTOCK_JWT_JWKS_URL"),
        ({**GOOD, "PENSTOCK_JWT_ROLES": "groups:admin"}, "CLAIM=VALUE:ROLE"),
        ({**GOOD, "PENSTOCK_JWT_ROLES": "groups=x:king"}, "CLAIM=VALUE:ROLE"),
        ({**GOOD, "PENSTOCK_JWT_DEFAULT_ROLE": "admin"}, "PENSTOCK_JWT_DEFAULT_ROLE"),
        ({**GOOD, "PENSTOCK_JWT_REFRESH_S": "1"}, "PENSTOCK_JWT_REFRESH_S"),
        ({**GOOD, "PENSTOCK_JWT_SECRET_FILE": "/nowhere/at/all"}, "PENSTOCK_JWT_SECRET_FILE"),
        ({"PENSTOCK_INTERNAL_TARGETS": "intranet"}, "PENSTOCK_INTERNAL_TARGETS"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        settings(tmp_path, **environ)


def test_a_secret_comes_from_a_file_and_is_long_enough(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"s" * 31 + b"\n")
    with pytest.raises(ConfigurationError, match="31 bytes"):
        settings(tmp_path, **GOOD, PENSTOCK_JWT_SECRET_FILE=str(path))
    path.write_bytes(b"s" * 32 + b"\n")
    found = settings(tmp_path, **GOOD, PENSTOCK_JWT_SECRET_FILE=str(path)).tokens
    assert found.secret == b"s" * 32
    assert "ssss" not in repr(found)
    with pytest.raises(ConfigurationError, match="not both"):
        settings(
            tmp_path,
            **GOOD,
            PENSTOCK_JWT_SECRET_FILE=str(path),
            PENSTOCK_JWT_JWKS_URL="https://i.example/keys",
        )


def test_a_rule_of_roles_may_hold_colons_and_urls(tmp_path: Path) -> None:
    found = settings(
        tmp_path, **GOOD, PENSTOCK_JWT_ROLES="https://x.example/g=urn:a:b:admin, groups=u:user"
    ).tokens
    assert found.role_rules() == (
        RoleRule("https://x.example/g", "urn:a:b", "admin"),
        RoleRule("groups", "u", "user"),
    )
