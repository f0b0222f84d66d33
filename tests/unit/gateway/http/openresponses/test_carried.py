"""What a compaction carries stands in for what a client sends no more."""

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequestError
from gateway.http.openresponses import carried
from gateway.http.openresponses.carried import with_carried
from gateway.http.openresponses.compaction import to_carry
from gateway.http.openresponses.conversation import SUMMARY, Tools, chat_messages
from gateway.http.openresponses.sealing import sealed, summary_of, with_summary
from gateway.http.openresponses.stored_items import whole_items

CALL: dict[str, Any] = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT: dict[str, Any] = {"type": "function_call_output", "call_id": "c", "output": "5"}
LATER: dict[str, Any] = {"type": "function_call_output", "call_id": "d", "output": "6"}
HISTORY: list[dict[str, Any]] = whole_items(
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {**CALL, "call_id": "d"},
        {"role": "user", "content": "three", "id": "msg_1"},
        CALL,
        OUTPUT,
    ]
)


def compaction_of(items: list[dict[str, Any]], summary: str = "so far") -> dict[str, Any]:
    text = with_summary(summary, orjson.dumps(to_carry(items)).decode())
    return {"type": "compaction", "encrypted_content": sealed(text)}


def read(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found, places = with_carried(whole_items(items), 0)
    return chat_messages(None, found, Tools(None), places=places)


def texts(items: list[dict[str, Any]]) -> list[Any]:
    return [one.get("content") for one in read(items)]


def test_what_stays_is_carried_with_calls_whose_output_may_come() -> None:
    assert to_carry(HISTORY) == [HISTORY[index] for index in (0, 3, 4, 5, 6)]


@pytest.mark.parametrize(
    "before",
    [HISTORY, HISTORY[:1], [], [{"role": "system", "content": "Be brief."}]],
    ids=["all", "system", "nothing", "system again"],
)
def test_items_before_a_compaction_may_be_left_out(before: list[dict[str, Any]]) -> None:
    items = [*before, compaction_of(HISTORY), LATER, {"role": "user", "content": "four"}]
    assert texts(items) == [
        *("Be brief.", f"{SUMMARY}so far", None, "three", None, "5", "6", "four")
    ]


def test_what_the_system_says_behind_it_stands_there_only() -> None:
    items = [
        compaction_of(HISTORY),
        {"role": "user", "content": "four"},
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
    ]
    assert texts(items)[0] == f"{SUMMARY}so far"
    assert texts(items)[-2:] == ["Be brief.", "Be kind."]


def test_a_later_compaction_stands_for_what_an_earlier_one_carried() -> None:
    later = [*HISTORY, compaction_of(HISTORY), {"role": "assistant", "content": "yes"}]
    later.append({"role": "user", "content": "four"})
    second = compaction_of(whole_items(later), "all of it")
    whole = texts([*later, second])
    assert whole == ["Be brief.", f"{SUMMARY}all of it", "four"]
    from_first = [*later[len(HISTORY) :], second]
    assert texts(from_first) == whole
    assert texts([second]) == ["Be brief.", f"{SUMMARY}all of it", None, "four"]


def test_other_messages_of_the_user_stand_for_those_that_are_carried() -> None:
    items = [{"role": "user", "content": "mine"}, compaction_of(HISTORY)]
    assert texts(items) == ["Be brief.", "mine", f"{SUMMARY}so far"]


def test_errors_name_the_place_among_what_was_sent() -> None:
    items = [compaction_of(HISTORY), {"role": "nobody", "content": "x"}]
    with pytest.raises(InvalidRequestError) as error:
        read(items)
    assert error.value.param == "input[1].role"


@pytest.mark.parametrize(
    "text", ["{", "7", "[7]", '[{"type":"compaction","encrypted_content":"eA=="}]', "[" * 2000]
)
def test_what_was_made_elsewhere_is_refused(text: str) -> None:
    forged = {"type": "compaction", "encrypted_content": sealed(f"\0{text}\nx")}
    with pytest.raises(InvalidRequestError) as error:
        read([{"role": "user", "content": "x"}, forged])
    assert error.value.param == "input[1].encrypted_content"


@pytest.mark.parametrize("summary", ["so far", "", "\0[1]\nx", "two\nlines"])
@pytest.mark.parametrize("kept", ["[]", '[{"role":"user","content":"\\n"}]'])
def test_a_summary_comes_back_as_it_was(summary: str, kept: str) -> None:
    assert summary_of(with_summary(summary, kept)) == (summary, kept)


@pytest.mark.parametrize("kept", [[], HISTORY[:1], [CALL]], ids=["none", "system", "a call"])
def test_many_compactions_are_read_in_time_that_grows_with_their_number(
    monkeypatch: pytest.MonkeyPatch, kept: list[dict[str, Any]]
) -> None:
    num_read, real = 0, carried._gist

    def counted(item: dict[str, Any]) -> bytes:
        nonlocal num_read
        num_read += 1
        return real(item)

    monkeypatch.setattr(carried, "_gist", counted)
    text = sealed(with_summary("x", orjson.dumps(kept).decode()))
    items = [{"type": "compaction", "encrypted_content": text, "n": n} for n in range(1000)]
    found, _ = with_carried(items, 0)
    assert len(found) == 1000 + len(kept)
    assert num_read < 10 * len(items)
