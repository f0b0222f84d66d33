"""What is read of items behind a compaction, and what the next one would sum up."""

from typing import Any

import pytest

from gateway.http.openresponses.compaction import reading_order, to_sum_up

ITEMS: dict[str, dict[str, Any]] = {
    "s": {"type": "message", "role": "system"},
    "u": {"role": "user"},
    "a": {"type": "message", "role": "assistant"},
    "c": {"type": "function_call"},
    "o": {"type": "function_call_output"},
    # A call with an id, and its output.
    "f": {"type": "function_call", "call_id": "f"},
    "g": {"type": "function_call_output", "call_id": "f"},
    "t": {"type": "custom_tool_call", "call_id": "t"},
    "v": {"type": "custom_tool_call_output", "call_id": "t"},
    "l": {"type": "mcp_list_tools"},
    # A request for approval, its response and the call.
    "q": {"type": "mcp_approval_request", "id": "q"},
    "y": {"type": "mcp_approval_response", "approval_request_id": "q"},
    "m": {"type": "mcp_call", "approval_request_id": "q"},
    "X": {"type": "compaction"},
}


def items_of(letters: str) -> list[dict[str, Any]]:
    return [{**ITEMS[letter], "at": index} for index, letter in enumerate(letters)]


@pytest.mark.parametrize(
    ("letters", "read"),
    [
        ("uaua", "0123"),
        ("uauX", "32"),
        ("uauXau", "3245"),
        # As /v1/responses/compact answers: the user's messages stay before it.
        ("uuXu", "0123"),
        ("suX", "012"),
        ("suauXa", "0435"),
        # Of a loop of calls the question stays.
        ("ucocoX", "50"),
        ("uaucoX", "5234"),
        ("uaucoXcoX", "82"),
        ("uauXauX", "65"),
        ("uauXX", "324"),
        ("aX", "1"),
        ("luX", "012"),
        # A call stays where its output stays, or comes later.
        ("ufugX", "4123"),
        ("ufuXg", "3124"),
        ("ufuXgXau", "5267"),
        ("ufXg", "2013"),
        ("utfuvgX", "612345"),
        ("utfuvXg", "512346"),
        # It goes with its output.
        ("ufgauX", "54"),
        ("ufugXauX", "76"),
        ("ufugXauXauX", "A9"),
        ("ufuX", "32"),
        # A request for approval stays where its response does.
        ("uquymX", "51234"),
        ("uquXym", "31245"),
        ("uqyumX", "534"),
        # Ids come again in later turns.
        ("ufgauaufgX", "9678"),
        ("", ""),
    ],
)
def test_what_a_compaction_stands_for_is_not_read(letters: str, read: str) -> None:
    assert reading_order(items_of(letters)) == [int(index, 16) for index in read]


@pytest.mark.parametrize(
    ("letters", "summed"),
    [
        ("u", ""),
        ("su", ""),
        ("uu", ""),
        ("uau", "01"),
        ("suauau", "1234"),
        ("uaX", ""),
        # What it was for is told with what came of it.
        ("uco", "012"),
        ("uauco", "01"),
        ("uauXau", "324"),
        ("uaucoXco", "523467"),
        ("uXco", "0123"),
        ("ufug", "01"),
        ("ufugXau", "41235"),
        ("ufugXauXau", "768"),
        ("", ""),
    ],
)
def test_what_is_before_the_last_message_is_summed_up(letters: str, summed: str) -> None:
    found = to_sum_up(items_of(letters))
    assert [item["at"] for item in found] == [int(index) for index in summed]


@pytest.mark.parametrize(
    "letters", ["uau", "suco", "uaucoco", "uauXauco", "aco", "uuauXu", "ufug", "ufugXau", "utfuvg"]
)
def test_what_is_summed_up_is_what_is_not_read_behind_it(letters: str) -> None:
    items = items_of(letters)
    summed = {item["at"] for item in to_sum_up(items)}
    read = set(reading_order([*items, ITEMS["X"]]))
    before = set(reading_order(items))
    assert before - read <= summed
    # Nothing is lost: what was read before is read again, or in the summary.
    assert before <= read | summed


@pytest.mark.parametrize(
    "letters", ["X", "uX", "cX", "uaX", "s", "sX", "ua", "fX", "fuXg", "gX", "suaX"]
)
def test_many_items_are_read_in_time_that_grows_with_their_number(letters: str) -> None:
    class Counted(dict[str, Any]):
        num_reads = 0

        def get(self, *arguments: Any) -> Any:
            Counted.num_reads += 1
            return super().get(*arguments)

    items = [Counted(item) for item in items_of(letters * (10_000 // len(letters)))]
    Counted.num_reads = 0
    reading_order(items)
    assert Counted.num_reads < 10 * len(items)
