"""A server for one command alone: what of the shell's settings reaches its processes."""

from pathlib import Path

import pytest

from penstock.config import build_settings
from penstock.private_server import KEPT, private_settings
from penstock.supervisor import common_environment, process_specs
from protocol.runtime.child_environment import without_settings
from tests.fakes.documented_settings import documented_settings

SET_BY_US = frozenset(
    f"PENSTOCK_{name}"
    for name in (
        *("HOST", "PORT", "PORT_FILE", "RUN_DIR", "PARENT_PID", "MODELS", "MODEL_PATH"),
        *("METRICS_PORT", "MAX_BATCH_REQUESTS", "BATCH_SHARE"),
        *("MODEL_NAME", "REQUIRE_KEYS", "ALLOW_ANONYMOUS", "DATA_DIR", "CACHE_DIR", "TOOLS"),
        *("ENGINE_ENDPOINT", "AUTH_ENDPOINT", "TOOLPARSER_ENDPOINT"),
    )
)
OF_THE_COMMAND_LINE = frozenset(
    f"PENSTOCK_{name}"
    for name in ("CONFIG", "URL", "API_KEY", "AUTH", "ENGINES", "GATEWAYS", "PARSERS")
) | {"PENSTOCK_REVISION"}
OF_A_DEPLOYMENT = frozenset(
    f"PENSTOCK_{name}"
    for name in (
        *("DATABASE_URL", "DATABASE_URL_FILE", "STORE_URL", "ADMIN_KEY", "ADMIN_KEY_FILE"),
        *("AUDIT_KEY_FILE", "AUDIT_RETENTION_DAYS", "LEDGER_RETENTION_DAYS", "KEY_DIR"),
        *("UDS", "TLS_CERT_FILE", "TLS_KEY_FILE", "ROOT_PATH", "CORS_ORIGINS", "ALLOWED_HOSTS"),
        *("TRUSTED_PROXIES", "END_USER_HEADERS", "SERVER_HEADER", "API_TITLE", "ACCESS_LOG"),
        *("OVERLOAD_MESSAGE", "KEEP_ALIVE_S", "SHARE_DATA_DIR", "SHARE_PORT", "READY_FILE"),
        "PROFILE_DIR",
        *("JWT_AUDIENCE", "JWT_DEFAULT_ROLE", "JWT_ISSUER", "JWT_JWKS_URL", "JWT_REFRESH_S"),
        *("JWT_ROLES", "JWT_SCOPES_CLAIM", "JWT_SECRET_FILE", "JWT_TEAM_CLAIM", "JWT_USER_CLAIM"),
        *("INTERNAL_TARGETS", "MCP_SERVERS", "MAX_MCP_PROCESSES", "TOOL_ENV", "TOOL_TIMEOUT_S"),
        *("MAX_TOOL_PROCESSES", "MAX_TOOL_CALLS", "MAX_TOOL_OUTPUT_BYTES", "HOOK_TIMEOUT_S"),
        *("OTLP_ENDPOINT", "TRACE_RATIO", "TRACE_CLIENTS", "PING_INTERVAL_S", "AUTH_TIMEOUT_S"),
        *("LEASE_DURATION_S", "LEASE_SLICE_TOKENS", "ROUTING", "MAX_QUEUE", "MAX_OUTBOX"),
        *("MAX_BODIES_PER_CALLER", "MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_ADDRESS"),
        *("MAX_WRONG_KEYS", "REPLAY_AGE_S", "REPLAY_MEMORY", "MAX_BACKGROUND"),
        *("MAX_FILES", "MAX_FILES_BYTES", "MAX_FILE_AGE_S"),
        *("MAX_FILE_BYTES", "STORE_MAX_AGE_S", "STORE_MAX_BYTES", "STORE_MAX_CONTEXT_BYTES"),
        *("STORE_MAX_QUEUED", "STORE_MAX_RESPONSES", "STORE_MAX_TENANT_BYTES"),
        "STORE_MAX_REPLAY_BYTES",
        *("PARSER_MAX_SESSIONS", "PARSER_MAX_TOOLS_BYTES", "PARSER_SESSION_TIMEOUT_S"),
    )
)
DEPLOYED = {
    "HOME": "/home/someone",
    "PATH": "/bin",
    "CUDA_VISIBLE_DEVICES": "1",
    "MODEL_PATH": "/models/production",
    **dict.fromkeys(documented_settings() - {"PENSTOCK_MODEL_PATH"}, "of the deployment"),
}


def test_of_each_setting_it_is_said_whether_a_private_server_takes_it_over() -> None:
    groups = (KEPT, SET_BY_US, OF_THE_COMMAND_LINE, OF_A_DEPLOYMENT)
    assert frozenset().union(*groups) == documented_settings()
    assert sum(map(len, groups)) == len(documented_settings())


def test_no_setting_of_a_deployment_reaches_a_process_of_a_private_server(tmp_path: Path) -> None:
    settings = build_settings({"models": ["penstock-demo"]}, DEPLOYED)
    private = private_settings(settings, tmp_path, {"PENSTOCK_BATCH_SHARE": "1"})
    common = common_environment(private, tmp_path)
    for spec in process_specs(private, {"penstock-demo": None}, tmp_path):
        environment = {**common, **spec.environment}
        leaked = {name for name, value in environment.items() if value == "of the deployment"}
        assert leaked <= KEPT, spec.name
        assert environment["CUDA_VISIBLE_DEVICES"] == "1"
        assert environment["PENSTOCK_BATCH_SHARE"] == "1"
        assert environment["PENSTOCK_DATA_DIR"] == str(tmp_path)
        assert "MODEL_PATH" not in environment


@pytest.mark.parametrize("option", ["uds", "tls_cert_file", "tls_key_file"])
def test_a_private_server_speaks_plain_http_on_loopback(option: str, tmp_path: Path) -> None:
    settings = build_settings({option: str(tmp_path / "x")}, {"HOME": "/home/someone"})
    private = private_settings(settings, tmp_path, {"PENSTOCK_BATCH_SHARE": "1"})
    assert getattr(private, option) is None
    assert (private.host, private.port) == ("127.0.0.1", 0)


def test_a_private_server_asks_other_users_of_the_machine_for_a_key(tmp_path: Path) -> None:
    settings = build_settings({"models": ["penstock-demo"]}, {"HOME": "/home/someone"})
    assert not settings.require_keys  # as a server on loopback doesn't
    private = private_settings(settings, tmp_path, {})
    common = common_environment(private, tmp_path)
    assert common["PENSTOCK_REQUIRE_KEYS"] == "true"
    assert common["PENSTOCK_ALLOW_ANONYMOUS"] == "false"


def test_an_environment_without_settings_keeps_what_is_named() -> None:
    kept = without_settings(DEPLOYED, kept={"PENSTOCK_DTYPE"})
    assert kept == {
        "HOME": "/home/someone",
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "PENSTOCK_DTYPE": "of the deployment",
    }
