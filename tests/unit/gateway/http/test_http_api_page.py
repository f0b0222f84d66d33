"""docs/http-api.md says what the code does: routes, codes, fields, ranges."""

import re
from pathlib import Path

from gateway.http.access import ROUTE_ACCESS
from gateway.http.error_table import ERROR_TABLE
from gateway.http.schemas.chat import ChatRequest
from gateway.http.schemas.completion import CompletionRequest
from gateway.http.schemas.fields import (
    CHAT_REFUSED_FIELDS,
    COMPLETION_REFUSED_FIELDS,
    EXTENSION_REFUSED_FIELDS,
    HARMLESS_FIELDS,
)
from gateway.http.schemas.messages import REFUSED_MESSAGE_FIELDS
from gateway.http.schemas.ranges import LIST_BOUNDS, RANGES

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
OF_OTHER_AUTH_WORKERS = {"budget_exceeded", "insufficient_quota"}


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    return re.split(r"^#+ ", PAGE.split(f"{title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))


def test_every_honoured_field_is_on_the_page() -> None:
    named = set(re.findall(r"`([a-z_]+)[.`]", section("## Request fields")))
    fields = ChatRequest.known_fields | CompletionRequest.known_fields
    assert fields - set(HARMLESS_FIELDS) <= named


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
    assert {row.code for row in ERROR_TABLE.values()} - OF_OTHER_AUTH_WORKERS <= codes


def test_no_error_code_is_on_the_page_that_nothing_of_ours_ever_gives() -> None:
    assert not OF_OTHER_AUTH_WORKERS & set(re.findall(r"[a-z_]+", PAGE))
    sources = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("auth_worker/*.py")}
    assert sources
    for code in OF_OTHER_AUTH_WORKERS:
        # An auth worker that gives it belongs on the page.
        assert [path for path, text in sources.items() if code.upper() in text] == []
        assert f"`{code}`" in (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_every_special_route_is_on_the_page() -> None:
    text = section("## Routes")
    for path in ROUTE_ACCESS:
        assert path.replace("{key_id}", "{id}") in text
