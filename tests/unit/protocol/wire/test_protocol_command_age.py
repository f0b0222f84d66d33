"""How long a command may have waited unread: nothing in normal operation, the stall after one."""

import pytest

from protocol.wire.command_age import CommandAge


class Reading:
    """A socket that is read at times that the test tells."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pings: list[int] = []
        self.age = CommandAge(2.0, self.pings.append, lambda: self.now)

    def drained(self, at: float) -> None:
        self.now = at
        self.age.note_drained()

    def age_at(self, at: float) -> float:
        self.now = at
        return self.age.age_s()


def test_a_loop_that_reads_each_second_has_commands_of_no_age_and_asks_nothing() -> None:
    reading = Reading()
    for second in range(1, 20):
        assert reading.age_at(100.0 + second) == 0.0
        reading.drained(100.0 + second)
    assert reading.pings == []


def test_what_is_read_first_after_a_stop_may_be_as_old_as_the_last_empty_socket() -> None:
    reading = Reading()
    reading.drained(101.0)
    assert reading.age_at(113.5) == 12.5


def test_an_empty_socket_right_after_a_stop_does_not_hide_what_the_kernel_still_holds() -> None:
    reading = Reading()
    reading.drained(101.0)
    reading.drained(111.0)
    assert reading.pings == [1]
    assert reading.age_at(111.5) == 10.5
    reading.age.note_pong(1)
    assert reading.age_at(111.6) == 0.0


def test_a_second_stop_is_over_only_with_its_own_pong() -> None:
    reading = Reading()
    reading.drained(105.0)
    reading.drained(110.0)
    assert reading.pings == [1, 2]
    reading.age.note_pong(1)
    assert reading.age_at(110.5) == 10.5
    reading.age.note_pong(2)
    assert reading.age_at(110.5) == 0.0


def test_commands_late_in_a_round_whose_handlers_take_long_are_old_too() -> None:
    reading = Reading()
    reading.drained(101.0)
    assert reading.age_at(101.5) == 0.0
    assert reading.age_at(104.0) == pytest.approx(3.0)


def test_a_new_connection_begins_without_a_stall() -> None:
    reading = Reading()
    reading.drained(110.0)
    reading.now = 120.0
    reading.age.begin()
    assert reading.age_at(121.0) == 0.0
