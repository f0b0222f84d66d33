"""Limits are found by whom they hold for, and every change shows."""

from collections.abc import Callable
from dataclasses import replace

from auth_worker.principals.limit_directory import LimitDirectory
from auth_worker.principals.limit_rules import Limit, Window

BUDGET = Limit("bud_1", "monthly", "team", "team_1", "money", 20_000_000, Window("calendar_month"))


def test_a_limit_is_found_by_its_id_and_by_its_holder() -> None:
    directory = LimitDirectory([BUDGET])
    assert directory.get("bud_1") is BUDGET
    assert directory.of("team", "team_1") == (BUDGET,)
    assert directory.of("user", "team_1") == ()


def test_a_limit_that_moves_to_another_holder_is_gone_from_the_first() -> None:
    directory = LimitDirectory([BUDGET])
    moved = replace(BUDGET, holder="house", holder_id="")
    directory.put(moved)
    assert (directory.of("team", "team_1"), directory.of("house", "")) == ((), (moved,))
    assert list(directory) == [moved]


def test_every_change_raises_the_version() -> None:
    directory = LimitDirectory()
    versions = [directory.version]
    changes: tuple[Callable[[], object], ...] = (
        lambda: directory.put(BUDGET),
        lambda: directory.put(replace(BUDGET, amount=1)),
        lambda: directory.remove("bud_1"),
        lambda: directory.remove("bud_unknown"),
    )
    for change in changes:
        change()
        versions.append(directory.version)
    assert versions == sorted(set(versions))
    assert len(directory) == 0


def test_a_raise_ends_at_its_second() -> None:
    raised = replace(BUDGET, raised_by=5, raised_until=100)
    assert [raised.amount_at(second) for second in (99.9, 100.0)] == [20_000_005, 20_000_000]
    assert replace(BUDGET, raised_by=5).amount_at(1e12) == 20_000_005
