"""Windows: they follow demand, leave everybody a part, and never promise more than the whole."""

from hypothesis import given
from hypothesis import strategies as st

from engine_worker.core.credits import CreditPolicy
from protocol.wire.messages import Credits

POLICY = CreditPolicy(max_requests=64, max_tokens=10_000, max_model_len=300)


def requests(held: dict[str, int], *gateway_ids: str) -> list[int]:
    full = {gateway_id: (count, count * 10) for gateway_id, count in held.items()}
    return [POLICY.window(one, gateway_ids, full).max_requests for one in gateway_ids]


def test_a_gateway_alone_has_everything() -> None:
    assert (
        POLICY.window("a", ["a"], {}) == POLICY.whole == Credits(max_requests=64, max_tokens=10_000)
    )


def test_gateways_that_do_the_same_have_the_same() -> None:
    assert requests({}, "a", "b", "c", "d") == [16] * 4
    assert requests({"a": 20, "b": 20}, "a", "b") == [32, 32]


def test_one_busy_gateway_of_four_can_fill_a_batch_and_the_others_keep_their_part() -> None:
    busy, *idle = requests({"a": 30}, "a", "b", "c", "d")
    assert busy >= 32
    assert idle == [9, 9, 9]


def test_a_gateway_that_wakes_up_gets_half_as_the_other_one_finishes() -> None:
    held = {"a": requests({"a": 40}, "a", "b")[0], "b": 0}
    for _ in range(100):
        windows = dict(zip("ab", requests(held, "a", "b"), strict=True))
        for gateway_id, window in windows.items():
            # One finishes, and as many as the window allows are sent.
            held[gateway_id] = max(held[gateway_id] - 1, min(window, 64))
    assert abs(held["a"] - held["b"]) <= 2
    assert sum(held.values()) <= 64


def test_tokens_follow_the_requests_and_one_request_always_fits() -> None:
    held = {"a": (2, 9_900), "b": (1, 50)}
    assert POLICY.window("b", ["a", "b"], held).max_tokens == 300
    assert POLICY.window("a", ["a", "b"], {}).max_tokens == 5_000
    many = [str(number) for number in range(1000)]
    assert POLICY.window("0", many, {}) == Credits(max_requests=1, max_tokens=300)


def test_work_beyond_the_room_is_refused_but_never_a_gateways_only_request() -> None:
    assert POLICY.admits("a", ["a", "b"], {"a": (47, 470)}, 10)
    assert not POLICY.admits("a", ["a", "b"], {"a": (48, 480)}, 10)
    assert not POLICY.admits("a", ["a", "b"], {"a": (30, 300), "b": (34, 340)}, 10)
    assert POLICY.admits("b", ["a", "b"], {"a": (48, 9_990)}, 9_999)
    assert POLICY.admits("b", ["a", "b"], {"a": (48, 480), "b": (15, 150)}, 10)
    assert not POLICY.admits("a", ["a"], {"a": (1, 9_000)}, 1_001)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["send", "send", "end"])), max_size=300
    )
)
def test_windows_are_promises_that_the_engine_keeps_and_it_never_holds_too_much(
    events: list[tuple[str, str]],
) -> None:
    held = dict.fromkeys("abc", (0, 0))
    for gateway_id, kind in events:
        count = held[gateway_id][0]
        if kind == "end":
            held[gateway_id] = (max(0, count - 1), 0)
            continue
        window = POLICY.window(gateway_id, "abc", held)
        is_admitted = POLICY.admits(gateway_id, "abc", held, 1)
        assert is_admitted or count >= window.max_requests
        if is_admitted:
            held[gateway_id] = (count + 1, 0)
        assert sum(number for number, _ in held.values()) <= POLICY.max_requests
