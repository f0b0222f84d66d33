"""Memory of the cache is given back between steps, and nobody's output is other for it."""

from engine_worker.core.engine import Engine
from engine_worker.core.engine_output import GatewayOutput
from protocol.wire.messages import Generate, SamplingParams
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
BEGINNING = tuple(range(100, 113))


def make_engine() -> tuple[Engine, DeterministicFakeRunner]:
    runner = DeterministicFakeRunner(hashed_token(250), num_blocks=40)
    engine = Engine(runner, TOKENIZER, vocab_size=TOKENIZER.num_tokens, max_model_len=100)
    return engine, runner


def add(engine: Engine, request_id: str, *end: int) -> None:
    command = Generate(
        request_id=request_id,
        choice=0,
        attempt=1,
        prompt_token_ids=(*BEGINNING, *end),
        sampling=SamplingParams(max_tokens=9, temperature=0.0),
        lease_tokens=100,
        deadline_s=1e6,
        want_token_ids=True,
    )
    engine.add("g", command)


def outputs(engine: Engine, *, releases: bool) -> dict[str, tuple[int, ...]]:
    """What three requests get, of which the last begins with what the others computed."""
    tokens: dict[str, tuple[int, ...]] = {}
    add(engine, "a", 1)
    add(engine, "b", 2)
    for _ in range(60):
        if not engine.has_work():
            if "c" in tokens:
                return tokens
            tokens["c"] = ()
            add(engine, "c", 1, 7)
        for delta in engine.step().get("g", GatewayOutput()).deltas:
            tokens[delta.request_id] = tokens.get(delta.request_id, ()) + delta.token_ids
        if releases:
            engine.release_memory()
    raise AssertionError("no rest")


def test_what_runs_and_what_is_cached_is_never_given_back() -> None:
    plain, _ = make_engine()
    releasing, runner = make_engine()
    expected = outputs(plain, releases=False)
    assert outputs(releasing, releases=True) == expected
    assert all(len(token_ids) == 9 for token_ids in expected.values())
    # The three full blocks of the common beginning were found, not computed again.
    assert sum(len(row.token_ids) for batch in runner.batches for row in batch.rows) < 3 * 20
    assert len(releasing.cached_blocks()) + runner.released[-1][0] == 40


def test_what_was_cached_is_given_back_when_it_is_forgotten() -> None:
    engine, runner = make_engine()
    outputs(engine, releases=False)
    num_cached = len(engine.cached_blocks())
    assert num_cached > 0
    assert engine.clear_cache() == num_cached
    assert runner.released == [[40]]
