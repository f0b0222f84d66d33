"""The page of the public suites: a run writes what it ran, and leaves the rest."""

from datetime import date

from tests.suites.__main__ import page_of

MONDAY, TUESDAY = date(2026, 11, 2), date(2026, 11, 3)


def test_a_run_of_some_suites_leaves_what_the_page_says_of_others() -> None:
    first = page_of(["## JSON\n\n| a |\n", "## llmprobe 1.2.3\n\nold\n"], "", MONDAY)
    second = page_of(["## llmprobe 1.3.0\n\nnew\n", "## MCP: client\n\nmore\n"], first, TUESDAY)
    assert second.split("\n## ")[1:] == [
        "JSON\n\nRun on 2026-11-02.\n\n| a |\n",
        "llmprobe 1.3.0\n\nRun on 2026-11-03.\n\nnew\n",
        "MCP: client\n\nRun on 2026-11-03.\n\nmore\n",
    ]
    assert second.startswith("# Public suites\n")


def test_a_suite_that_is_skipped_loses_no_figures() -> None:
    page = page_of(["## MCP: client\n\nfigures\n"], "", MONDAY)
    assert page_of(["## MCP: client\n\nSkipped: no node.\n"], page, TUESDAY) == page
    assert "Skipped: no node." in page_of(["## MCP: client\n\nSkipped: no node.\n"], "", MONDAY)
