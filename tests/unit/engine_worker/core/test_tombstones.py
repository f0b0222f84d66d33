from engine_worker.core.tombstones import Tombstones
from protocol.wire.messages import ALL_CHOICES

KEY = ("g", "r", 0)


def test_an_attempt_ends_once_and_only_that_attempt() -> None:
    tombstones = Tombstones()
    tombstones.put_ended(KEY, 2)
    assert tombstones.has_ended(KEY, 2)
    assert not tombstones.has_ended(KEY, 1)
    assert not tombstones.has_ended(KEY, 3)


def test_an_abort_covers_older_attempts_and_with_all_choices_every_choice() -> None:
    tombstones = Tombstones()
    tombstones.put_aborted(KEY, 2)
    tombstones.put_aborted(KEY, 1)
    assert [tombstones.is_aborted(KEY, attempt) for attempt in (1, 2, 3)] == [True, True, False]
    assert not tombstones.is_aborted(("g", "r", 1), 1)
    tombstones.put_aborted(("g", "r", ALL_CHOICES), 1)
    assert tombstones.is_aborted(("g", "r", 1), 1)
    assert not tombstones.is_aborted(("other", "r", 1), 1)


def test_attempts_before_the_latest_started_one_are_stale() -> None:
    tombstones = Tombstones()
    tombstones.put_started(KEY, 2)
    assert tombstones.is_stale(KEY, 1)
    assert not tombstones.is_stale(KEY, 2)


def test_memory_is_bounded_and_the_oldest_are_forgotten() -> None:
    tombstones = Tombstones(max_entries=3)
    for number in range(100):
        tombstones.put_started(("g", str(number), 0), 1)
        tombstones.put_aborted(("g", str(number), 0), 1)
        tombstones.put_ended(("g", str(number), 0), 1)
    assert len(tombstones) == 9
    assert tombstones.has_ended(("g", "99", 0), 1)
    assert not tombstones.has_ended(("g", "0", 0), 1)


def test_a_lost_gateway_leaves_nothing() -> None:
    tombstones = Tombstones()
    for put in (tombstones.put_started, tombstones.put_aborted, tombstones.put_ended):
        put(KEY, 1)
        put(("other", "r", 0), 1)
    tombstones.forget_gateway("g")
    assert len(tombstones) == 3
