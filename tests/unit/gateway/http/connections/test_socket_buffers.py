"""What a caller's WebSockets hold: bounded together, and one of them can always go on."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.http.connections.socket_buffers import SocketBuffer, SocketBuffers

MAX_BYTES = 100


class Reader:
    """A socket that is read unless its buffer is full, as `WebSocket` does it."""

    def __init__(self, buffers: SocketBuffers, caller: bytes = b"a") -> None:
        self.buffer = buffers.open(caller)
        self.buffer.on_room = self.read_on
        self.is_read = True

    def hold(self, num_bytes: int) -> None:
        self.buffer.hold(num_bytes)
        if self.buffer.is_full:
            self.is_read = False
        else:
            self.read_on()

    def read_on(self) -> None:
        self.is_read = self.is_read or not self.buffer.is_full


def test_over_the_bound_only_the_first_socket_of_the_caller_is_read() -> None:
    buffers = SocketBuffers(MAX_BYTES)
    first, second, third = (Reader(buffers) for _ in range(3))
    other = Reader(buffers, b"b")
    second.hold(60)
    first.hold(40)
    assert first.is_read
    third.hold(1)
    first.hold(41)
    other.hold(MAX_BYTES)
    assert [one.is_read for one in (second, first, third, other)] == [True, False, False, True]


def test_who_lets_go_makes_room_for_all_or_for_the_next_one() -> None:
    buffers = SocketBuffers(MAX_BYTES)
    first, second, third = (Reader(buffers) for _ in range(3))
    for one in (first, second, third):
        one.hold(MAX_BYTES)
    assert [one.is_read for one in (first, second, third)] == [True, False, False]
    first.hold(0)
    assert [one.is_read for one in (first, second, third)] == [True, True, False]
    second.buffer.close()
    assert third.is_read


def test_a_socket_that_has_ended_holds_nothing_whatever_it_says() -> None:
    buffers = SocketBuffers(MAX_BYTES)
    first, second = Reader(buffers), Reader(buffers)
    first.hold(MAX_BYTES)
    first.buffer.close()
    first.buffer.hold(MAX_BYTES)
    first.buffer.close()
    second.hold(1)
    assert second.is_read
    second.hold(0)
    assert not buffers._callers


STEPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 80)), max_size=40)


@given(STEPS)
def test_no_socket_waits_that_may_be_read_and_one_always_may(steps: list[tuple[int, int]]) -> None:
    buffers = SocketBuffers(MAX_BYTES)
    sockets = [Reader(buffers) for _ in range(5)]
    held = [0] * 5
    for number, num_bytes in steps:
        held[number] = num_bytes
        sockets[number].hold(num_bytes)
        full: list[SocketBuffer] = [one.buffer for one in sockets if one.buffer.is_full]
        assert all(one.is_read for one in sockets if one.buffer not in full)
        num_holding = sum(size > 0 for size in held)
        assert len(full) == (num_holding - 1 if sum(held) > MAX_BYTES else 0)
