"""How long a command waits for a server that does not come."""

from typing import Any

import pytest

from penstock.errors import CommandError
from penstock.start_watch import IDLE_S, SILENT_S, STANDSTILL_S, StartWatch

READY = {"role": "toolparser", "phase": "ready"}


def health(*workers: dict[str, Any]) -> dict[str, Any]:
    return {"missing": ["auth worker"], "workers": [READY, *workers]}


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_gateway_that_never_answers_is_given_up() -> None:
    clock = Clock()
    watch = StartWatch(clock=clock)
    clock.now_s = SILENT_S - 1.0
    watch.check(None)
    watch.check(health())
    clock.now_s += SILENT_S - 1.0
    watch.check(None)
    clock.now_s += 1.0
    with pytest.raises(CommandError, match="not answered for 300 s"):
        watch.check(None)


def test_a_private_server_that_waits_for_nothing_of_its_own_is_given_up() -> None:
    clock = Clock()
    watch = StartWatch(is_private=True, clock=clock)
    watch.check(health())
    clock.now_s = IDLE_S - 1.0
    watch.check(health())
    clock.now_s = IDLE_S
    with pytest.raises(CommandError, match="it lacks: auth worker"):
        watch.check(health())


def test_a_model_that_loads_is_waited_for_as_long_as_there_is_news() -> None:
    clock = Clock()
    watch = StartWatch(is_private=True, clock=clock)
    for number in range(100):
        watch.check(health({"role": "engine", "phase": "loading", "fraction": number / 100}))
        clock.now_s += STANDSTILL_S - 1.0
    loading = health({"role": "engine", "phase": "compiling", "fraction": -1.0})
    watch.check(loading)
    clock.now_s += STANDSTILL_S
    with pytest.raises(CommandError, match="nothing has changed"):
        watch.check(loading)


def test_a_server_of_a_deployment_may_stand_by_as_long_as_it_takes() -> None:
    clock = Clock()
    watch = StartWatch(clock=clock)
    for _ in range(3):
        watch.check(health())
        clock.now_s += 100 * STANDSTILL_S
