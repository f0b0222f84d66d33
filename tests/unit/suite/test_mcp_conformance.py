"""What is made of the output of MCP's conformance suite."""

from tests.suites.mcp_conformance import McpVerdict, reason_of, scenarios_of
from tests.suites.mcp_conformance_client import plain_arguments

OUTPUT = """
=== SUITE SUMMARY ===

✓ tools_call: 2 passed, 0 failed
✗ http-standard-headers: 2 passed, 1 failed
✗ auth/metadata-default: 0 passed, 9 failed
✓ sep-2322-client-request-state: 5 passed, 0 failed
✗ request-metadata: 4 passed, 0 failed, 1 warnings

Total: 13 passed, 10 failed, 1 warnings
"""
LISTING = """Server scenarios (test against a server):
  - ping [2025-06-18,2025-11-25]
  - tasks-lifecycle [extension]

Client scenarios (test against a client):
  - tools_call [2025-06-18,2026-07-28]
  - sse-retry [2025-11-25]

Authorization server scenarios (test against an authorization server):
  - authorization-code-grant [2025-06-18]
"""


def test_what_fails_without_a_reason_or_passes_with_one_is_a_failure() -> None:
    verdict = McpVerdict("client")
    verdict.add("2026-07-28", OUTPUT)
    assert len(verdict.rows) == 5
    assert verdict.failures == [
        "2026-07-28 http-standard-headers fails",
        "2026-07-28 sep-2322-client-request-state passes, but a reason is given",
        "2026-07-28 request-metadata fails",
    ]
    assert verdict.has_failed
    page = verdict.markdown()
    assert "| 2026-07-28 | auth/metadata-default | 0 of 9 | OAuth is not spoken" in page
    assert "- **2026-07-28 http-standard-headers fails**" in page


def test_reasons_fit_whole_names() -> None:
    assert reason_of("server", "tools-call-image") is not None
    assert reason_of("server", "tools-call-simple-text") is None
    assert reason_of("client", "tools-call-image") is None


def test_scenarios_are_found_by_version_and_side() -> None:
    assert scenarios_of(LISTING, "2025-06-18", "client") == ["tools_call"]
    assert scenarios_of(LISTING, "2025-06-18", "server") == ["ping"]


def test_plain_arguments_fit_their_schema() -> None:
    schema = {"properties": {"a": {"type": "number"}, "b": {}}, "required": ["a", "b"]}
    assert plain_arguments(schema) == {"a": 2, "b": "text"}
