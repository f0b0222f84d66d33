"""docs/http-api.md says what the code does: routes, codes, fields, ranges."""

import re
from pathlib import Path

from gateway.http import routes
from gateway.http.access.guard import GuardedRoute
from gateway.http.access.route_rules import ROUTE_RULES
from gateway.http.errors.error_table import (
    ERROR_TABLE,
    HEAD_TOO_LARGE,
    METHOD_NOT_ALLOWED,
    NOT_IMPLEMENTED,
    UPGRADE_REQUIRED,
    limit_headers,
)
from gateway.http.schemas.base.fields import (
    CHAT_REFUSED_FIELDS,
    COMPLETION_REFUSED_FIELDS,
    EXTENSION_REFUSED_FIELDS,
    HARMLESS_FIELDS,
)
from gateway.http.schemas.base.ranges import LIST_BOUNDS, RANGES
from gateway.http.schemas.inference.chat import ChatRequest
from gateway.http.schemas.inference.completion import CompletionRequest
from gateway.http.schemas.inference.messages import REFUSED_MESSAGE_FIELDS
from protocol.wire.messages import LimitState

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
PACKAGES = ("protocol", "gateway", "engine_worker", "auth_worker", "toolparser_worker")
HEADER = re.compile(
    r'b?"(x-[a-z-]+|retry-after|www-authenticate|allow|connection|cache-control|referrer-policy)"',
    re.IGNORECASE,
)


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    return re.split(r"^#+ ", PAGE.split(f"{title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))


def test_the_tables_of_harmless_and_refused_fields_are_those_of_the_code() -> None:
    harmless = section("### Harmless: accepted and without effect")
    assert first_cells(harmless) == set(HARMLESS_FIELDS)
    chat = first_cells(section("### Refused by name (400), chat"))
    extra = {"messages[].content[].type"}
    extra |= {f"messages[].{name}" for name in REFUSED_MESSAGE_FIELDS}
    assert chat == set(CHAT_REFUSED_FIELDS) | extra
    completions = first_cells(section("### Refused by name (400), completions"))
    assert completions == set(COMPLETION_REFUSED_FIELDS)
    extensions = first_cells(section("### Refused by name (400), extensions of other servers"))
    assert extensions == set(EXTENSION_REFUSED_FIELDS)


def test_the_ranges_are_those_of_the_code() -> None:
    text = section("### Ranges")
    assert set(RANGES) <= first_cells(text)
    for name, bounds in RANGES.items():
        if name != "seed":
            assert f"| `{name}` | {bounds} |" in text
    for name, words in LIST_BOUNDS.items():
        assert f"| `{name}` | {words} |" in text


def test_every_error_code_that_clients_can_see_is_on_the_page() -> None:
    codes = set(re.findall(r"`([a-z_]+)`", section("## Errors")))
    assert {row.code for row in ERROR_TABLE.values()} <= codes


def test_every_special_route_is_on_the_page() -> None:
    text = re.sub(r"\{[^}]*\}", "{id}", section("## Routes"))
    for path in ROUTE_RULES:
        assert re.sub(r"\{[^}]*\}", "{id}", path) in text


def test_the_routes_of_the_page_are_those_of_the_code() -> None:
    on_the_page = set()
    for row in re.findall(r"^\| (`[A-Z]+ /.*?) \|", section("## Routes"), re.MULTILINE):
        method = ""
        for words in re.findall(r"`([^`]+)`", row):
            *named, path = words.split(" ")
            method = named[0] if named else method
            on_the_page.add((method, re.sub(r"\{[^}]*\}", "{id}", path)))
    assert on_the_page == {
        (method, re.sub(r"\{[^}]*\}", "{id}", route.path))
        for router in routes.ROUTERS
        for route in router.routes
        if isinstance(route, GuardedRoute)
        for method in route.methods or ()
    }


def test_the_statuses_and_codes_of_the_page_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (`.*?) \|", section("## Errors"), re.MULTILINE)
    on_the_page = {(int(status), code) for status, text in rows for code in text.split("`")[1::2]}
    of_http = {(row.status, row.code) for row in (METHOD_NOT_ALLOWED, NOT_IMPLEMENTED)}
    of_http |= {(row.status, row.code) for row in (HEAD_TOO_LARGE, UPGRADE_REQUIRED)}
    of_the_wire = {(row.status, row.code) for row in ERROR_TABLE.values()}
    assert on_the_page == of_http | of_the_wire


def test_every_error_code_of_the_page_is_raised_somewhere() -> None:
    declared_in = {ROOT / "protocol" / "errors.py", ROOT / "gateway" / "http" / "error_table.py"}
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path not in declared_in
    )
    raised = {
        row.code
        for code, row in ERROR_TABLE.items()
        if re.search(rf"ErrorCode\.{code.name}\b", text)
    }
    assert {row.code for row in ERROR_TABLE.values()} <= raised


def test_the_headers_of_the_page_are_those_of_the_code() -> None:
    cells = re.findall(r"^\| (`[^|]*?) \|", section("## Headers"), re.MULTILINE)
    on_the_page = {name.lower() for cell in cells for name in cell.split("`")[1::2]}
    limits = LimitState(
        limit_requests=1,
        remaining_requests=1,
        reset_requests_s=1.0,
        limit_tokens=1,
        remaining_tokens=1,
        reset_tokens_s=1.0,
    )
    in_the_code = {
        name.lower()
        for path in (ROOT / "gateway" / "http").rglob("*.py")
        for name in HEADER.findall(path.read_text(encoding="utf-8"))
    }
    of_requests = {"x-api-key"}
    assert on_the_page == (in_the_code | set(limit_headers(limits))) - of_requests


def test_every_extension_of_the_page_is_known() -> None:
    text = section("## Request fields")
    beyond = text.split("**Extensions to OpenAI's API**", 1)[1].split("**Log probabilities**", 1)[0]
    rows = re.findall(r"^\| (`[^|]*?) \|", beyond, re.MULTILINE)
    names = {name.split(".")[0] for row in rows for name in row.split("`")[1::2]}
    assert names
    assert names <= ChatRequest.known_fields | CompletionRequest.known_fields
