"""What is on the wire: a bounded window, in order, sent again when it was lost."""

import pytest

from gateway.ledger import window as window_module
from gateway.ledger.window import RESEND_AFTER_S, WINDOW, Window
from protocol.wire.messages import Settle
from tests.fakes.outbox_parts import Post, settle


def window(post: Post) -> Window:
    return Window(post.send, post.clock)


def leases(first: int, last: int) -> list[str]:
    return [f"lease-{number}" for number in range(first, last + 1)]


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Post:
    monkeypatch.setattr(window_module, "WINDOW", 3)
    return Post()


def filled(post: Post, count: int) -> Window:
    """A window that was given that many, of which the first three are on the wire."""
    full = window(post)
    for number in range(1, count + 1):
        full.add(settle(number))
    return full


def test_no_more_than_a_window_is_on_the_wire_and_each_acknowledgement_lets_one_go(
    post: Post,
) -> None:
    full = filled(post, 6)
    assert post.sent == leases(1, 3)
    full.acknowledge("lease-2")
    assert post.sent == leases(1, 4)
    full.acknowledge("lease-2")
    assert post.sent == leases(1, 4)
    full.acknowledge("lease-1")
    full.acknowledge("lease-3")
    assert post.sent == leases(1, 6)


def test_200000_settlements_drain_with_each_sent_once_and_never_too_many_at_a_time() -> None:
    sent: list[str] = []
    ahead: list[int] = []
    num_acknowledged = 0

    def send(message: Settle) -> bool:
        sent.append(message.lease_id)
        return True

    full = Window(send, lambda: 0.0)
    for number in range(200_000):
        full.add(settle(number))
    while num_acknowledged < len(sent):
        ahead.append(len(sent) - num_acknowledged)
        full.acknowledge(sent[num_acknowledged])
        num_acknowledged += 1
    assert len(sent) == len(set(sent)) == 200_000
    assert max(ahead) == WINDOW


def test_what_nobody_took_goes_first_when_somebody_is_there_again(post: Post) -> None:
    post.is_open = False
    full = filled(post, 2)
    post.is_open = True
    full.add(settle(3))
    assert post.sent == leases(1, 3)


def test_what_was_acknowledged_before_it_was_sent_is_not_sent(post: Post) -> None:
    full = filled(post, 5)
    full.acknowledge("lease-4")
    full.acknowledge("lease-1")
    assert post.sent == [*leases(1, 3), "lease-5"]


def test_a_newer_settlement_of_a_lease_goes_instead_of_the_older_one(post: Post) -> None:
    full = filled(post, 3)
    full.add(settle(2, completion_tokens=9))
    assert post.sent == [*leases(1, 3), "lease-2"]
    assert post.messages[-1].completion_tokens == 9
    full.acknowledge("lease-2")
    full.add(settle(4))
    post.sent.clear()
    full.resend_all()
    assert sorted(post.sent) == ["lease-1", "lease-3", "lease-4"]


def test_a_worker_that_comes_gets_the_window_again_and_no_more(post: Post) -> None:
    full = filled(post, 6)
    post.sent.clear()
    full.resend_all()
    assert post.sent == leases(1, 3)


def test_a_worker_that_comes_gets_what_waited_for_one(post: Post) -> None:
    post.is_open = False
    full = filled(post, 4)
    post.is_open = True
    full.resend_all()
    assert post.sent == leases(1, 3)


def test_sending_again_stops_where_nobody_is_there_any_more() -> None:
    asked: list[str] = []

    def send(message: Settle) -> bool:
        asked.append(message.lease_id)
        return len(asked) <= 4

    full = Window(send, lambda: 0.0)
    for number in range(1, 4):
        full.add(settle(number))
    full.resend_all()
    assert asked == [*leases(1, 3), "lease-1", "lease-2"]


def test_what_is_not_acknowledged_in_time_is_sent_again_each_time_after_as_long(
    post: Post,
) -> None:
    full = filled(post, 5)
    post.now += RESEND_AFTER_S - 0.1
    full.resend_lost()
    assert post.sent == leases(1, 3)
    post.now += 0.1
    full.resend_lost()
    full.resend_lost()
    assert post.sent == leases(1, 3) * 2
    post.now += RESEND_AFTER_S
    full.resend_lost()
    assert post.sent == leases(1, 3) * 3


def test_a_slow_worker_is_not_given_everything_twice(post: Post) -> None:
    full = filled(post, 3)
    post.now += RESEND_AFTER_S - 1
    full.acknowledge("lease-1")
    post.now += 2.0
    full.resend_lost()
    assert post.sent == leases(1, 3)
    post.now += RESEND_AFTER_S - 2.0
    full.resend_lost()
    assert post.sent == [*leases(1, 3), "lease-2", "lease-3"]


def test_a_settlement_that_later_ones_have_overtaken_is_lost_though_others_go_on(
    post: Post,
) -> None:
    full = filled(post, 2)
    post.now += 1.0
    full.add(settle(3))
    post.now += RESEND_AFTER_S - 1.0
    full.acknowledge("lease-2")  # of the same moment, so it has overtaken nothing
    full.resend_lost()
    assert post.sent == leases(1, 3)
    full.acknowledge("lease-3")
    full.resend_lost()
    assert post.sent == [*leases(1, 3), "lease-1"]
    # What is sent again has its own time to be acknowledged in.
    full.resend_lost()
    assert post.sent == [*leases(1, 3), "lease-1"]


def test_what_waited_for_a_worker_goes_when_lost_ones_are_looked_for(post: Post) -> None:
    post.is_open = False
    full = filled(post, 1)
    post.is_open = True
    full.resend_lost()
    assert post.sent == ["lease-1"]


def test_the_leases_of_a_request_are_those_on_the_wire(post: Post) -> None:
    full = filled(post, 4)
    assert full.leases_of("request-2") == ["lease-2"]
    assert full.leases_of("request-4") == []
