"""The page for who comes from EasyDeL names settings and routes that there are."""

import re

from gateway.http.access.route_rules import ROUTE_RULES
from tests.contract.test_imports import ROOT
from tests.fakes.documented_settings import documented_settings

PAGE = (ROOT / "docs/from-easydel.md").read_text(encoding="utf-8")
# Of `eSurgeApiServer` and its base, as its constructor says them.
OPTIONS = [
    "esurge_map",
    "oai_like_processor",
    "enable_function_calling",
    "require_api_key",
    "admin_key",
    "enable_audit_logging",
    "max_audit_entries",
    "storage_dir",
    "enable_persistence",
    "auto_save_interval",
    "auth_worker_client",
    "response_store_worker_client",
    "max_concurrent_generations",
    "overload_message",
    "extra_stops",
    "refine_sampling_params",
    "refine_chat_request",
    "enable_response_store",
    "default_store_responses",
    "max_stored_responses",
    "max_stored_conversations",
    "max_workers",
    "enable_cors",
    "cors_origins",
    "max_request_size",
    "request_timeout",
    "default_function_format",
    "enable_auth_ui",
    "tool_parser_name",
    "host",
    "port",
    "workers",
    "log_level",
    "ssl_certfile",
    "ssl_keyfile",
]


def test_every_option_of_that_server_is_answered() -> None:
    assert [option for option in OPTIONS if f"`{option}`" not in PAGE] == []


def test_every_setting_on_the_page_exists() -> None:
    named = set(re.findall(r"PENSTOCK_[A-Z_]+", PAGE))
    assert named
    # Compose has settings of its own.
    assert named - documented_settings() == {"PENSTOCK_GATEWAYS"}


def test_every_route_that_is_the_same_is_served() -> None:
    templates = {re.sub(r"\{[^}]*\}", "{}", path) for path in ROUTE_RULES}
    served = re.findall(r"^\| (.*) \| (?:the same|Prometheus)", PAGE, re.M)
    routes = {path for cell in served for path in re.findall(r"`[A-Z]+ (/[^`]*)`", cell)}
    assert len(routes) > 15
    assert {re.sub(r"\{[^}]*\}", "{}", path) for path in routes} - templates == set()
