"""A token bucket for log lines and replies that a peer can provoke."""

from protocol.wire.rate_bound import RateBound


def test_a_burst_is_allowed_then_the_rate_holds() -> None:
    now = [0.0]
    bound = RateBound(2.0, max_burst=3, clock=lambda: now[0])
    assert [bound.allow() for _ in range(5)] == [True, True, True, False, False]
    now[0] = 0.5
    assert [bound.allow() for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert [bound.allow() for _ in range(4)] == [True, True, True, False]
