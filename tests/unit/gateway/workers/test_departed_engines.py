"""Engines that are gone: which are worth waiting for, by how the last of their kind went."""

from typing import Any

import pytest

from gateway.dispatch.slots import Accepts
from gateway.workers.engine_directory import EngineDirectory
from protocol.wire.peers import LossReason, Peer
from tests.fakes.request_parts import engine_offer, peer


def come(directory: EngineDirectory, name: str, model: str = "m", **offer: Any) -> Peer:
    one = peer("engine", name, engine=engine_offer(model=model, **offer))
    directory.update(one)
    return one


def go(directory: EngineDirectory, one: Peer, reason: LossReason = "goodbye") -> None:
    one.loss_reason = reason
    directory.remove(one)


def of(fingerprint: str, resume_version: int | None = None) -> Accepts:
    return lambda engine: (
        engine.offer.fingerprint == fingerprint
        and resume_version in (None, engine.offer.resume_version)
    )


@pytest.mark.parametrize(
    ("reason", "returns"),
    [("goodbye", False), ("disconnected", True), ("failed", True), ("replaced", True)],
)
def test_an_engine_that_did_not_take_its_leave_is_started_again(
    reason: LossReason, returns: bool
) -> None:
    directory = EngineDirectory(lambda model: None)
    assert directory.may_return("m", of("1"))  # nobody knows of one
    go(directory, come(directory, "a", fingerprint="1"), reason)
    assert directory.may_return("m", of("1")) is returns
    assert directory.may_return("m", of("2"))
    assert directory.may_return("other", of("1"))


def test_of_several_kinds_that_could_do_the_work_the_last_counts() -> None:
    directory = EngineDirectory(lambda model: None)
    first, second = (
        come(directory, str(version), fingerprint="1", resume_version=version) for version in (1, 2)
    )
    go(directory, first)
    go(directory, second, "disconnected")
    assert directory.may_return("m", of("1"))
    assert not directory.may_return("m", of("1", 1))
    go(directory, come(directory, "1 again", fingerprint="1", resume_version=1))
    assert not directory.may_return("m", of("1"))


def test_weights_of_long_ago_are_forgotten_and_those_of_a_model_that_is() -> None:
    directory = EngineDirectory(lambda model: None)
    for number in range(20):
        go(directory, come(directory, str(number), fingerprint=str(number)))
    left = [number for number in range(20) if not directory.may_return("m", of(str(number)))]
    assert left == list(range(12, 20))
    directory.forget_absent(["m"])
    assert directory.may_return("m", of("19"))
