"""Paragraphs and list items are filled; whatever else a page has stays as it is."""

from tools.wrap_markdown import MAX_COLUMNS, wrapped

LONG = " ".join(["word"] * 40)


def test_a_long_paragraph_is_filled_and_keeps_its_words() -> None:
    lines = wrapped(f"# Title\n\n{LONG}\nmore words\n\nShort\nlines stay.\n").split("\n")
    assert max(len(line) for line in lines) <= MAX_COLUMNS
    assert " ".join(lines[2:-4]).split() == [*LONG.split(), "more", "words"]
    assert lines[-4:] == ["", "Short", "lines stay.", ""]


def test_a_list_item_is_indented_under_its_text() -> None:
    first, second, *_ = wrapped(f"1. {LONG}\n2. next").split("\n")
    assert first.startswith("1. word")
    assert second.startswith("   word")


def test_tables_code_and_headings_stay() -> None:
    page = f"# {LONG}\n\n| {LONG} |\n\n```\n{LONG}\n```\n<!-- {LONG} -->\n"
    assert wrapped(page) == page


def test_a_code_span_is_not_broken() -> None:
    code = "`python -m benchmarks.engine --dtype bfloat16`"
    assert code in wrapped(f"{'word ' * 16}{code} {LONG}")


def test_a_line_never_begins_a_list_or_a_heading_by_accident() -> None:
    page = f"{'x' * 97} 503. {LONG}"
    assert wrapped(page) == page


def test_a_second_run_changes_nothing() -> None:
    page = wrapped(f"{LONG}\n\n- {LONG}\n  - {LONG}\n")
    assert wrapped(page) == page
