"""The restart policy: back-off, forgiveness after a long life, giving up."""

from penstock.restart_policy import MAX_EARLY_DEATHS, RestartPolicy


def test_each_early_death_waits_longer_than_the_one_before() -> None:
    policy = RestartPolicy()
    delays: list[float] = []
    for now in range(MAX_EARLY_DEATHS - 1):
        policy.started(float(now))
        delay_s = policy.died(float(now) + 0.5)
        assert delay_s is not None
        delays.append(delay_s)
    assert delays == sorted(delays)
    assert len(set(delays)) == len(delays)


def test_the_fifth_death_within_a_minute_of_a_start_gives_the_process_up() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_EARLY_DEATHS - 1):
        policy.started(0.0)
        assert policy.died(59.0) is not None
    policy.started(0.0)
    assert policy.died(59.0) is None


def test_a_life_of_a_minute_forgives_earlier_deaths() -> None:
    policy = RestartPolicy()
    for _ in range(20):
        policy.started(0.0)
        assert policy.died(60.0) is not None
    assert policy.num_early_deaths == 1
