"""A suspect runs with nothing beside it, from before its first token until it has proved itself."""

from engine_worker.serving.isolation import HOLD_S, Isolation
from protocol.errors import ErrorCode
from protocol.wire.messages import NUM_ALONE_TOKENS, Delta, Failure

SUSPECT = ("g", "suspect", 0)
OTHER = ("h", "other", 0)


class Bench:
    """An isolation whose clock the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.isolation = Isolation(lambda: self.now)

    def admits(self, key: tuple[str, str, int], num_unfinished: int = 0) -> bool:
        return self.isolation.admits(key, is_alone=key == SUSPECT, num_unfinished=num_unfinished)

    def tell(self, num_tokens: int, key: tuple[str, str, int] = SUSPECT) -> None:
        delta = Delta(
            request_id=key[1], choice=key[2], attempt=1, token_ids=tuple(range(num_tokens))
        )
        self.isolation.on_output(key[0], [delta], [])


def test_nobody_begins_beside_a_suspect_until_it_has_made_enough_tokens() -> None:
    bench = Bench()
    assert bench.admits(SUSPECT)
    assert not bench.admits(OTHER, 1)
    bench.tell(NUM_ALONE_TOKENS - 1)
    bench.tell(NUM_ALONE_TOKENS, OTHER)
    assert not bench.admits(OTHER, 1)
    bench.tell(1)
    assert bench.admits(OTHER, 1)


def test_a_suspect_that_ends_lets_others_in() -> None:
    bench = Bench()
    assert bench.admits(SUSPECT)
    end = Failure(
        request_id="suspect", choice=0, attempt=1, code=ErrorCode.WORKER_LOST, message="step"
    )
    bench.isolation.on_output("g", [], [end])
    assert bench.admits(OTHER)


def test_an_engine_with_work_runs_empty_for_a_suspect_and_nobody_gets_in_before_it() -> None:
    bench = Bench()
    assert not bench.admits(SUSPECT, num_unfinished=2)
    assert not bench.admits(OTHER, num_unfinished=2)
    assert not bench.admits(SUSPECT, num_unfinished=1)
    assert bench.admits(SUSPECT)


def test_a_suspect_that_never_asks_again_keeps_nobody_away_for_long() -> None:
    bench = Bench()
    assert not bench.admits(SUSPECT, num_unfinished=1)
    bench.now += HOLD_S
    assert bench.admits(OTHER, num_unfinished=1)


def test_a_suspect_goes_with_its_gateway() -> None:
    bench = Bench()
    assert bench.admits(SUSPECT)
    bench.isolation.forget_gateway("h")
    assert not bench.admits(OTHER)
    bench.isolation.forget_gateway("g")
    assert bench.admits(OTHER)
    assert not bench.admits(SUSPECT, num_unfinished=1)
    bench.isolation.forget_gateway("g")
    assert bench.admits(OTHER)
