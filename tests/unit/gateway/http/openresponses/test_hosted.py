"""Tools that the server runs: what a request says of them, and what an earlier attempt has done."""

import re
from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequestError
from gateway.http.bodies.parsers import CONTINUED_RESPONSES, ParseContext
from gateway.http.openresponses.conversation import Tools, chat_messages, chat_tool_choice
from gateway.http.openresponses.convert import add_hosted
from gateway.http.openresponses.hosted import (
    MAX_SERVERS,
    HostedTool,
    Progress,
    approved_calls,
    hosted_server,
    hosted_tools,
    known_lists,
    lists_enough,
    shown_server,
)
from gateway.http.openresponses.hosted_items import earlier_turns
from gateway.http.openresponses.hosted_names import plain_name
from gateway.http.openresponses.stored_items import framed

ADD = {"name": "add", "input_schema": {"type": "object"}, "annotations": {"readOnlyHint": True}}
DROP = {"name": "drop", "input_schema": {"type": "object"}, "annotations": None}
ASKED: dict[str, Any] = {
    "type": "mcp_approval_request",
    "id": "mcpr_1",
    "server_label": "s",
    "name": "add",
    "arguments": "{}",
}
APPROVED: dict[str, Any] = {
    "type": "mcp_approval_response",
    "approval_request_id": "mcpr_1",
    "approve": True,
}


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "mcp", "server_label": "s", **fields}


@pytest.mark.parametrize(
    ("approval", "needing"),
    [
        (None, ["add", "drop"]),
        ("never", []),
        ({"never": {"read_only": True}}, ["drop"]),
        ({"never": {"tool_names": ["drop"]}}, ["add"]),
        ({"never": {"tool_names": ["add", "drop"], "read_only": True}}, ["drop"]),
        ({"always": {"tool_names": ["add"]}, "never": {"tool_names": ["add", "drop"]}}, ["add"]),
        ({"never": {}}, ["add", "drop"]),
    ],
)
def test_what_no_filter_frees_needs_approval(approval: Any, needing: list[str]) -> None:
    server = hosted_server(tool(require_approval=approval), "tools[0]")
    assert [one["name"] for one in (ADD, DROP) if server.needs_approval(one)] == needing


def test_what_is_secret_is_neither_shown_nor_told_in_a_repr() -> None:
    given = tool(authorization="token-1", headers={"X-Key": "key-1"})
    server = hosted_server(given, "tools[0]")
    assert server.named.headers_json == '{"X-Key":"key-1","Authorization":"Bearer token-1"}'
    told = repr(server) + repr(shown_server(given))
    assert "token-1" not in told
    assert "key-1" not in told
    assert shown_server(given)["headers"] is None


def test_names_are_what_a_chat_takes_and_never_mean_two_tools() -> None:
    assert plain_name("s", "a.b/c d") == "s__a.b_c_d"
    assert len(plain_name("s" * 64, "x" * 128)) == 128
    alike = [{**ADD, "name": name} for name in ("a b", "a_b", "c", "x" * 128, f"{'x' * 127}y")]
    server = hosted_server(tool(), "tools[0]")
    found, chat = hosted_tools([server], {"s": alike}, set())
    assert [one.name for one in found.values()] == [one["name"] for one in alike]
    assert [one["function"]["name"] for one in chat] == list(found)
    first, second, third, *long = found
    assert third == "s__c"
    assert first != second
    assert all(re.fullmatch(r"s__a_b_[0-9a-f]{8}", name) for name in (first, second))
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{128}", name) for name in long)
    # Neither the order nor the other tools of a server make a difference, and history has the name.
    again, _ = hosted_tools([server], {"s": alike[1::-1]}, set())
    assert list(again) == [second, first]
    # A name of the client's own is the client's, also one that looks like a digest's.
    ((own, mine),) = hosted_tools([server], {"s": [ADD]}, {"s__add"})[0].items()
    assert own.startswith("s__add_")
    assert mine.name == "add"
    ((other, _),) = hosted_tools([server], {"s": [ADD]}, {"s__add", own})[0].items()
    assert other not in ("s__add", own)


def test_history_has_the_names_that_tools_have_now() -> None:
    tools = Tools([tool(), {"type": "function", "name": "s__add"}], runs_hosted=True)
    (seen,) = add_hosted(tools, {"s": [ADD]})
    call = {"type": "mcp_call", "id": "mcp_1", "server_label": "s", "arguments": "{}"}
    items = [{**call, "name": name, "output": "5"} for name in ("add", "drop")]
    asked = [one["tool_calls"] for one in chat_messages(None, items, tools)[::2]]
    assert [calls[0]["function"]["name"] for calls in asked] == [seen, "s__drop"]
    assert [one["function"]["name"] for one in tools.chat] == ["s__add", seen]


def test_a_known_list_shows_only_what_reads_where_that_is_asked() -> None:
    server = hosted_server(tool(allowed_tools={"read_only": True}), "tools[0]")
    liar = {**DROP, "name": "liar", "annotations": {"readOnlyHint": "yes"}}
    found, chat = hosted_tools([server], {"s": [DROP, ADD, liar]}, set())
    assert [one.name for one in found.values()] == ["add"]
    assert [one["function"]["name"] for one in chat] == ["s__add"]


def test_an_approval_is_for_the_server_that_the_call_was_asked_for() -> None:
    known = {"s__add": HostedTool("s", "add")}
    first, other = (
        {"type": "mcp_list_tools", "id": f"mcpl_a_1_{mark * 16}", "server_label": "s", "tools": []}
        for mark in "ab"
    )
    assert known_lists([first, other]) == {"s": {"tools": [], "mark": "b" * 16, "limits": ""}}
    limited = known_lists([{**first, "id": f"mcpl_a_1_01234567_{'a' * 16}"}])
    assert limited == {"s": {"tools": [], "mark": "a" * 16, "limits": "01234567"}}
    assert known_lists([{**first, "id": "mcpl_a_1"}])["s"]["mark"] == ""
    assert approved_calls([first, ASKED, APPROVED], known)[0].is_offered
    assert approved_calls([first, ASKED, APPROVED, first], known)[0].is_offered
    assert not approved_calls([first, ASKED, APPROVED, other], known)[0].is_offered
    # Whose list it was may not be known: it was left out, or its id is the client's.
    assert approved_calls([ASKED, APPROVED, other], known)[0].is_offered


def test_a_list_of_before_is_enough_where_it_has_all_that_may_be_used() -> None:
    named = [
        hosted_server(tool(allowed_tools=allowed), "tools[0]").named
        for allowed in (None, ["a", "b"], ["b", "a", "a"], ["a"], {"read_only": True}, [])
    ]
    enough = [[lists_enough({"limits": before.limits}, now) for now in named] for before in named]
    assert enough[0] == [True] * len(named)
    assert enough[1] == enough[2] == [False, True, True, False, False, False]
    for number in (3, 4, 5):
        assert [place for place, one in enumerate(enough[number]) if one] == [number]
    assert not lists_enough({"limits": ""}, named[0])  # an earlier release said nothing of it


def test_a_choice_without_a_server_is_of_the_tools_of_all() -> None:
    hosted = {"s__add": HostedTool("s", "add"), "t__add": HostedTool("t", "add")}
    chosen = chat_tool_choice({"type": "mcp"}, hosted)["allowed_tools"]
    assert chosen["mode"] == "required"
    assert [one["function"]["name"] for one in chosen["tools"]] == list(hosted)
    assert chat_tool_choice({"type": "mcp"}, hosted, is_first=False) == "auto"
    for choice in ({"type": "mcp", "server_label": 7}, {"type": "mcp", "name": "drop"}):
        with pytest.raises(InvalidRequestError):
            chat_tool_choice(choice, hosted)
    with pytest.raises(InvalidRequestError, match="no server lists"):
        chat_tool_choice({"type": "mcp"}, {})


def test_a_choice_forces_no_call_behind_one_that_was_approved() -> None:
    """Clients send the same choice with the approval, and would be asked for ever more of them."""
    asked = {"model": "m", "input": "x", "tools": [tool()], "tool_choice": {"type": "mcp"}}
    call = {"type": "mcp_call", "id": "mcp_1", "server_label": "s", "name": "add", "output": "5"}
    for own, choice in ((None, "required"), ("mcpr_1", "auto")):
        made = [{**call, "arguments": "{}", "approval_request_id": own}]
        progress = Progress(lists={"s": [ADD]}, made=made).as_json()
        frame = framed(orjson.dumps(asked), b"[]", {}, None, progress)
        body = CONTINUED_RESPONSES.parse(frame, ParseContext({})).body
        assert body is not None
        assert body.job.tool_choice == choice


def test_labels_are_given_once_and_servers_are_bounded() -> None:
    with pytest.raises(InvalidRequestError, match="same label"):
        Tools([tool(), tool()], runs_hosted=True)
    many = [tool(server_label=f"s{number}") for number in range(MAX_SERVERS + 1)]
    with pytest.raises(InvalidRequestError, match="at most 16"):
        Tools(many, runs_hosted=True)
    assert Tools([tool()]).left_out == ["tools[0]"]


def test_an_approval_is_for_one_call_once() -> None:
    known = {"s__add": HostedTool("s", "add", '{"type":"object"}')}
    (call,) = approved_calls([ASKED, APPROVED], known)
    assert (call.request_id, call.name, call.is_offered) == ("mcpr_1", "add", True)
    assert not approved_calls([ASKED, APPROVED], {})[0].is_offered
    assert approved_calls([ASKED, {**APPROVED, "approve": False}], known) == ()
    made = {"type": "mcp_call", "approval_request_id": "mcpr_1"}
    assert approved_calls([ASKED, APPROVED, made], known) == ()
    for items in ([APPROVED], [ASKED, APPROVED, APPROVED], [{**ASKED, "name": 7}, APPROVED]):
        with pytest.raises(InvalidRequestError):
            approved_calls(items, known)


@pytest.mark.parametrize("tools", [7, [7], [{"name": "a"}], [{"input_schema": {}}]])
def test_a_list_that_is_none_is_refused(tools: Any) -> None:
    with pytest.raises(InvalidRequestError):
        known_lists([{"type": "mcp_list_tools", "server_label": "s", "tools": tools}])


def test_calls_are_read_as_turns_with_their_results() -> None:
    call = {"type": "mcp_call", "id": "mcp_1", "server_label": "s", "name": "add"}
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        {"type": "mcp_list_tools", "server_label": "s", "tools": []},
        {**call, "arguments": "{}", "output": "5", "error": None},
        {**call, "arguments": "{}", "error": {"type": "http_error", "code": 1, "message": "no"}},
        ASKED,
    ]
    messages = chat_messages(None, items, Tools(None))
    assert [one["role"] for one in messages] == ["user", *("assistant", "tool") * 3]
    results = [one["content"] for one in messages if one["role"] == "tool"]
    assert results == ["5", "Error: no", "The user did not approve this call, and it was not made."]
    assert len(chat_messages(None, [*items, APPROVED], Tools(None))) == 5


def added(place: int, kind: str, **fields: Any) -> dict[str, Any]:
    item = {"type": kind, "id": f"i{place}", **fields}
    return {"type": "response.output_item.added", "output_index": place, "item": item}


def done(place: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {**added(place, kind, **fields), "type": "response.output_item.done"}


CALL = {"server_label": "s", "name": "add", "arguments": "", "approval_request_id": None}
BEGUN = [{"type": "response.in_progress"}, added(0, "mcp_list_tools"), done(0, "mcp_list_tools")]
SAID = [
    added(1, "mcp_call", **CALL),
    {"type": "response.mcp_call_arguments.done", "output_index": 1, "arguments": "{}"},
    added(2, "mcp_call", **CALL),
    {"type": "response.mcp_call_arguments.done", "output_index": 2, "arguments": "[]"},
]
RUNNING = [{"type": "response.mcp_call.in_progress", "output_index": 1}]
ENDED = [{"type": "response.mcp_call.completed", "output_index": 1}, done(1, "mcp_call", **CALL)]


@pytest.mark.parametrize(
    ("events", "items", "interrupted", "num_turns", "num_over"),
    [
        ([], [], [], 0, 0),
        (BEGUN, ["i0"], [], 0, 3),
        # The turn isn't known to be over: it is made anew.
        ([*BEGUN, *SAID], ["i0"], [], 0, 3),
        ([*BEGUN, *SAID, *RUNNING], ["i0", "i1", "i2"], ["i1", "i2"], 1, 8),
        ([*BEGUN, *SAID, *RUNNING, *ENDED], ["i0", "i1", "i2"], ["i2"], 1, 10),
        # What the next turn has told is made anew, too.
        ([*BEGUN, *SAID, *RUNNING, *ENDED, added(3, "message")], ["i0", "i1", "i2"], ["i2"], 1, 10),
    ],
)
def test_what_is_over_is_known_from_the_events(
    events: list[dict[str, Any]],
    items: list[str],
    interrupted: list[str],
    num_turns: int,
    num_over: int,
) -> None:
    found, number = earlier_turns(events)
    assert [item["id"] for item in found.items] == items
    assert (found.interrupted, found.num_turns, number) == (interrupted, num_turns, num_over)
    assert all(item["arguments"] for item in found.items if item["id"] in interrupted)


def test_a_call_that_was_refused_counts_when_a_response_is_taken_up_again() -> None:
    refused = done(2, "mcp_call", **CALL)  # for its arguments: it never ran
    found, _ = earlier_turns([*BEGUN, *SAID, *RUNNING, *ENDED, refused])
    assert (found.num_calls, found.interrupted) == (2, [])


def test_a_summary_is_no_answer_when_a_response_is_taken_up_again() -> None:
    summed = [added(1, "compaction"), done(1, "compaction")]
    found, _ = earlier_turns([*BEGUN, *summed])
    assert (found.num_turns, found.num_answers) == (1, 0)
    again = [{**event, "output_index": event["output_index"] + 1} for event in [*SAID, *RUNNING]]
    found, _ = earlier_turns([*BEGUN, *summed, *again])
    assert (found.num_turns, found.num_answers) == (2, 1)
