"""The restart policy: ever longer pauses, forgiveness after a long life, what is said and when."""

import os

import pytest

from penstock.restart_policy import (
    EARLY_S,
    MAX_DELAY_S,
    REMINDER_S,
    SETTLED_S,
    RestartPolicy,
    may_pass,
)


def die_at_once(policy: RestartPolicy, now: float, cause: str = "died") -> tuple[float, bool]:
    policy.started(now)
    return policy.died(now, cause)


def test_each_early_death_waits_longer_than_the_one_before_up_to_a_bound() -> None:
    policy = RestartPolicy()
    delays = [die_at_once(policy, float(now))[0] for now in range(12)]
    assert delays == sorted(delays)
    assert delays[:4] == [0.25, 0.5, 1.0, 2.0]
    assert delays[-1] == MAX_DELAY_S


def test_a_process_is_tried_for_ever() -> None:
    policy = RestartPolicy()
    assert {die_at_once(policy, 0.0)[0] for _ in range(5_000)} >= {0.25, MAX_DELAY_S}
    assert policy.num_deaths == 5_000


def test_a_life_of_a_minute_forgives_earlier_deaths() -> None:
    policy = RestartPolicy()
    for _ in range(20):
        policy.started(0.0)
        assert policy.died(EARLY_S, "died")[0] == 0.25
    assert policy.num_deaths == 1


@pytest.mark.parametrize("status", [0, 1, 75, -9, -11, 137])
def test_another_start_may_help_after(status: int) -> None:
    assert may_pass(status)


@pytest.mark.parametrize("status", [2, os.EX_CONFIG])
def test_another_start_cannot_help_after(status: int) -> None:
    assert not may_pass(status)


def test_a_death_is_news_once_until_the_cause_changes_or_the_process_was_back() -> None:
    policy = RestartPolicy()
    causes = ["code 75", "code 75", "signal 9", "signal 9"]
    assert [die_at_once(policy, 0.0, cause)[1] for cause in causes] == [True, False, True, False]
    policy.started(10.0)
    assert policy.came_back(10.0 + SETTLED_S) == 10.0
    assert policy.died(90.0, "signal 9")[1]


def test_a_process_is_back_once_it_lived_longer_than_the_last_time() -> None:
    policy = RestartPolicy()
    policy.started(0.0)
    assert policy.came_back(EARLY_S) is None  # It was never away.
    policy.died(20.0, "died")
    policy.started(21.0)
    assert policy.came_back(21.0 + 20.0) is None
    assert policy.came_back(21.0 + 20.0 + SETTLED_S) == 1.0
    assert policy.came_back(100.0) is None  # Said once.


def test_an_absence_is_told_once_a_minute() -> None:
    policy = RestartPolicy()
    policy.started(0.0)
    policy.died(0.0, "died")
    told = [now for now in range(200) if policy.is_reminder_due(float(now))]
    assert told == [REMINDER_S, 2 * REMINDER_S, 3 * REMINDER_S]
    policy.started(200.0)
    assert policy.came_back(300.0) is not None
    assert not policy.is_reminder_due(1_000.0)
