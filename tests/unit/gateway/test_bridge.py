"""The bridge to the wire: every word of ours arrives in the field that means it."""

from typing import Any, TypedDict

import pytest
from msgspec import structs

from gateway import bridge
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    Actor,
    Adjust,
    Authorize,
    ChangeKeyStatus,
    CloseParse,
    CountKeys,
    Detokenize,
    Embed,
    Extend,
    FindKeys,
    Generate,
    Grammar,
    Granted,
    KeySettings,
    LeaseReport,
    MakeKey,
    OpenParse,
    ParseBatch,
    ParseDelta,
    Prepare,
    Prepared,
    Profile,
    ReadAudit,
    Refused,
    Renew,
    RotateKey,
    SamplingParams,
    Settle,
    StreamUsage,
    UpdateKey,
    Usage,
)

USAGE = Usage(prompt_tokens=1, completion_tokens=2, cached_tokens=3, reasoning_tokens=4)


class Address(TypedDict):
    """Whose a question is, and how long it may take."""

    deadline_s: float
    tenant: str
    priority: int
    trace_id: str


ADDRESS: Address = {"deadline_s": 2.5, "tenant": "t", "priority": 3, "trace_id": "trace"}
GRAMMAR = Grammar(kind="regex", source="a+")

ACTOR = Actor(key_id="a", address="192.0.2.1")
SETTINGS = KeySettings(name="n", role="service", requests_per_minute=7)

# What was built, and what it has to be: each value differs from every other one and from its
# default.
BUILT: list[tuple[Any, Any]] = [
    (
        bridge.authorize(
            "r",
            key_digest=b"d",
            endpoint="/e",
            address="a",
            wait_s=1.5,
            trace_id="trace",
            model="m",
            role="admin",
            prompt_tokens=7,
            completion_tokens=8,
            is_metered=True,
            scope="tokenize",
            asked_tokens=9,
            is_streaming=True,
            uses_tools=True,
        ),
        Authorize(
            request_id="r",
            key_digest=b"d",
            endpoint="/e",
            model="m",
            address="a",
            required_role="admin",
            prompt_tokens=7,
            completion_tokens=8,
            is_metered=True,
            wait_s=1.5,
            trace_id="trace",
            scope="tokenize",
            asked_tokens=9,
            is_streaming=True,
            uses_tools=True,
        ),
    ),
    (
        bridge.authorize(
            "r", key_digest=None, endpoint="/e", address="a", wait_s=1.5, scope="docs.read"
        ),
        Authorize(
            request_id="r",
            key_digest=None,
            endpoint="/e",
            address="a",
            wait_s=1.5,
            scope="docs.read",
        ),
    ),
    (
        bridge.adjust("q", "l", 7, 8),
        Adjust(request_id="q", lease_id="l", prompt_tokens=7, completion_tokens=8),
    ),
    (
        bridge.settle("l", "r", USAGE, "failed"),
        Settle(
            lease_id="l",
            request_id="r",
            prompt_tokens=1,
            completion_tokens=2,
            cached_tokens=3,
            reasoning_tokens=4,
            outcome="failed",
        ),
    ),
    (
        bridge.unused(Granted(request_id="r", lease_id="l", tenant="t", key_id="k", role="user")),
        Settle(
            lease_id="l",
            request_id="r",
            prompt_tokens=0,
            completion_tokens=0,
            outcome="aborted",
            is_unused=True,
        ),
    ),
    (
        bridge.lease_report("l", USAGE, (StreamUsage(stream="s"),)),
        LeaseReport(
            lease_id="l",
            prompt_tokens=1,
            completion_tokens=2,
            streams=(StreamUsage(stream="s"),),
        ),
    ),
    (
        bridge.lease_report("l", USAGE),
        LeaseReport(lease_id="l", prompt_tokens=1, completion_tokens=2),
    ),
    (
        bridge.renew((LeaseReport(lease_id="l", prompt_tokens=1, completion_tokens=2),)),
        Renew(leases=(LeaseReport(lease_id="l", prompt_tokens=1, completion_tokens=2),)),
    ),
    (
        bridge.make_key("r", ACTOR, key_digest=b"d", hint="h", settings=SETTINGS),
        MakeKey(request_id="r", actor=ACTOR, key_digest=b"d", hint="h", settings=SETTINGS),
    ),
    (
        bridge.update_key("r", ACTOR, "k", ("name", "role"), SETTINGS),
        UpdateKey(
            request_id="r", actor=ACTOR, key_id="k", fields=("name", "role"), settings=SETTINGS
        ),
    ),
    (
        bridge.rotate_key("r", ACTOR, "k", key_digest=b"d", hint="h", overlap_s=9),
        RotateKey(request_id="r", actor=ACTOR, key_id="k", key_digest=b"d", hint="h", overlap_s=9),
    ),
    (
        bridge.change_key_status("r", ACTOR, "k", "suspend"),
        ChangeKeyStatus(request_id="r", actor=ACTOR, key_id="k", action="suspend"),
    ),
    (
        bridge.find_keys("r", ACTOR, role="user", after_key_id="k", limit=9),
        FindKeys(request_id="r", actor=ACTOR, role="user", after_key_id="k", limit=9),
    ),
    (bridge.count_keys("r", ACTOR), CountKeys(request_id="r", actor=ACTOR)),
    (
        bridge.read_audit("r", ACTOR, action="a", after_seq=7),
        ReadAudit(request_id="r", reader=ACTOR, action="a", after_seq=7),
    ),
    (
        bridge.prompt(
            "chat",
            messages_json="[]",
            tools_json="{}",
            template_kwargs_json='{"a":1}',
            text="x",
            token_ids=(1, 2),
            add_generation_prompt=False,
            continue_final_message=True,
            add_special_tokens=False,
            max_tokens=3,
            truncate_prompt_tokens=4,
            return_tokens=True,
        ),
        Prepare(
            request_id="",
            kind="chat",
            deadline_s=0.0,
            messages_json="[]",
            tools_json="{}",
            template_kwargs_json='{"a":1}',
            prompt="x",
            prompt_token_ids=(1, 2),
            add_generation_prompt=False,
            continue_final_message=True,
            add_special_tokens=False,
            max_tokens=3,
            truncate_prompt_tokens=4,
            return_tokens=True,
        ),
    ),
    (bridge.prompt("count"), Prepare(request_id="", kind="count", deadline_s=0.0)),
    (
        bridge.token_ids((1, 2)),
        Detokenize(request_id="", token_ids=(1, 2), deadline_s=0.0),
    ),
    (
        bridge.embedding_inputs(("x",), ((1,),), 5, 6),
        Embed(
            request_id="",
            deadline_s=0.0,
            texts=("x",),
            token_ids=((1,),),
            dimensions=5,
            truncate_prompt_tokens=6,
        ),
    ),
    (
        bridge.addressed(bridge.token_ids((1,)), "r", **ADDRESS),
        Detokenize(request_id="r", token_ids=(1,), deadline_s=2.5, tenant="t", trace_id="trace"),
    ),
    (
        bridge.addressed(bridge.embedding_inputs(("x",), (), None, None), "r", **ADDRESS),
        Embed(
            request_id="r",
            deadline_s=2.5,
            texts=("x",),
            priority=3,
            tenant="t",
            trace_id="trace",
        ),
    ),
    (
        bridge.generate(
            "r",
            2,
            Prepared(
                request_id="p", prompt_token_ids=(1, 2), template_time=11, block_hashes=(b"b",)
            ),
            SamplingParams(seed=3),
            attempt=4,
            lease_id="l",
            lease_tokens=5,
            deadline_s=6.5,
            tenant="t",
            trace_id="trace",
            priority=7,
            keep_special_tokens=("<s>",),
            grammar=GRAMMAR,
            output_token_ids=[8, 9],
            num_sent_characters=10,
            num_choices=12,
            is_streaming=False,
            is_alone=True,
        ),
        Generate(
            request_id="r",
            choice=2,
            attempt=4,
            prompt_token_ids=(1, 2),
            sampling=SamplingParams(seed=3),
            lease_tokens=5,
            deadline_s=6.5,
            output_token_ids=(8, 9),
            num_sent_characters=10,
            keep_special_tokens=("<s>",),
            grammar=GRAMMAR,
            priority=7,
            tenant="t",
            template_time=11,
            want_token_ids=True,
            num_choices=12,
            is_streaming=False,
            is_alone=True,
            lease_id="l",
            trace_id="trace",
        ),
    ),
    (bridge.extend("r", 1, 2, 3), Extend(request_id="r", choice=1, attempt=2, lease_tokens=3)),
    (bridge.abort("r", 1, 2), Abort(request_id="r", choice=1, attempt=2)),
    (
        bridge.choice_usage("r", 0, USAGE),
        StreamUsage(stream="r/0", prompt_tokens=1, completion_tokens=2),
    ),
    (
        bridge.choice_usage("r", 1, USAGE),
        StreamUsage(stream="r/1", prompt_tokens=0, completion_tokens=2),
    ),
    (bridge.profile("r", 1.5), Profile(request_id="r", duration_s=1.5)),
    (
        bridge.refused(ErrorCode.OVERLOADED, "no"),
        Refused(code=ErrorCode.OVERLOADED, message="no"),
    ),
    (
        bridge.open_parse(
            "r",
            num_choices=2,
            tool_format="hermes",
            reasoning_format="think",
            tools_json="[]",
            tool_choice="named",
            tool_name="f",
            parallel_tool_calls=False,
            prompt_tail="tail",
            thinking=True,
            response_grammar=GRAMMAR,
            trace_id="trace",
            answer_so_far="so far",
        ),
        OpenParse(
            request_id="r",
            attempt=1,
            num_choices=2,
            tool_format="hermes",
            reasoning_format="think",
            tools_json="[]",
            tool_choice="named",
            tool_name="f",
            parallel_tool_calls=False,
            prompt_tail="tail",
            thinking=True,
            response_grammar=GRAMMAR,
            trace_id="trace",
            answer_so_far="so far",
        ),
    ),
    (
        bridge.open_parse("r", tool_format=None, reasoning_format=None, tools_json=None),
        OpenParse(request_id="r", attempt=1),
    ),
    (
        bridge.parse_delta("r", 1, 2, ["a", "b"], [1, 2], final=True),
        ParseDelta(request_id="r", choice=1, attempt=2, text="ab", token_ends=(1, 2), final=True),
    ),
    (
        bridge.parse_batch([ParseDelta(request_id="r", choice=1, attempt=2)]),
        ParseBatch(deltas=(ParseDelta(request_id="r", choice=1, attempt=2),)),
    ),
    (bridge.close_parse("r", 2), CloseParse(request_id="r", attempt=2)),
]


@pytest.mark.parametrize(("built", "expected"), BUILT, ids=lambda one: type(one).__name__)
def test_every_word_arrives_in_its_field(built: Any, expected: Any) -> None:
    assert structs.asdict(built) == structs.asdict(expected)
    assert type(built) is type(expected)
