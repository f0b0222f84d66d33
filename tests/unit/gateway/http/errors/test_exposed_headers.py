"""Pages of other origins may read every header that an answer of ours says something in."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from gateway.http.anthropic import errors as anthropic_errors
from gateway.http.entry import edge
from gateway.http.errors import error_table
from protocol.wire.messages import LimitState
from tests.fakes.source_trees import tree_of

ROOT: Final = Path(__file__).parents[5]
NAME: Final = re.compile(
    r"(x|anthropic|mcp|penstock|idempotent|idempotency|retry|request|www|traceparent)(-[a-z0-9]+)+"
    r"|allow|location|etag|link|vary",
    re.IGNORECASE,
)
OF_REQUESTS: Final = frozenset(
    {
        *("x-api-key", "x-forwarded-for", "x-openwebui-user-id", "idempotency-key"),
        *("anthropic-version", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-param"),
    }
)
"""Read of requests, and set in no answer."""
OF_HTTP: Final = frozenset(
    {
        *("www-authenticate", "allow", "connection", "cache-control", "vary"),
        *("x-accel-buffering", "x-content-type-options", "referrer-policy"),
    }
)
"""For browsers, proxies and clients' own libraries; bodies say what they are about."""
EVERY_LIMIT: Final = LimitState(
    limit_requests=1,
    remaining_requests=1,
    reset_requests_s=1.0,
    limit_tokens=1,
    remaining_tokens=1,
    reset_tokens_s=1.0,
)


def texts(path: Path) -> Iterator[str]:
    """The texts of a module that could be names of headers, but for its docstrings."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            value = node.value
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            if NAME.fullmatch(text):
                yield text.lower()


def named_in_the_code() -> dict[str, str]:
    """Names of headers, and a module that has each."""
    files = [*ROOT.glob("gateway/http/**/*.py"), *ROOT.glob("gateway/request/**/*.py")]
    assert len(files) > 100
    return {
        name: str(path.relative_to(ROOT))
        for path in files
        if path != Path(edge.__file__)
        for name in texts(path)
    }


def of_limits() -> set[str]:
    """Those that are put together when a caller has limits."""
    of_openai = error_table.limit_headers(EVERY_LIMIT)
    return {*of_openai, *anthropic_errors.limit_headers(EVERY_LIMIT, 0.0)}


EXPOSED: Final = frozenset(edge._EXPOSED.decode().split(", "))


def test_what_the_code_sets_is_exposed() -> None:
    found = named_in_the_code()
    for name in ("x-penstock-label-mass", "x-penstock-risk-score", "retry-after", "x-api-key"):
        assert name in found, "the search finds what is there"
    hidden = {name: found[name] for name in found.keys() - EXPOSED - OF_REQUESTS - OF_HTTP}
    assert not hidden, "a header of answers is in edge._EXPOSED, or said here to be no page's"


def test_limits_are_exposed_in_the_words_of_each_api() -> None:
    assert len(of_limits()) == 12
    assert of_limits() <= EXPOSED


def test_nothing_is_exposed_that_no_answer_has() -> None:
    assert named_in_the_code().keys() | of_limits() >= EXPOSED


def documented() -> list[str]:
    page = (ROOT / "docs/http-api.md").read_text(encoding="utf-8")
    table = page.partition("\n## Headers\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name.lower() for row in rows for name in re.findall(r"`([A-Za-z-]+)`", row)]


@pytest.mark.parametrize("name", documented())
def test_a_header_that_the_docs_promise_is_exposed(name: str) -> None:
    assert name in EXPOSED | OF_HTTP


def test_the_docs_name_what_is_exposed() -> None:
    told = {*documented(), "idempotent-replayed", "request-id"}
    assert {name for name in EXPOSED - told if not name.startswith("anthropic-")} == set()
