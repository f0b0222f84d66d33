"""top-k, top-p and min-p against a float64 oracle that sorts."""

from collections.abc import Callable, Iterator
from functools import cache

import jax
import numpy as np
import numpy.typing as npt
import pytest

from engine_worker.compute.sampling import filters
from engine_worker.compute.sampling.filters import MAX_VOCAB_SIZE, lowest_allowed
from engine_worker.compute.sampling.params import SamplingRows
from tests.fakes.sampling_rows import sampling_rows

Floats = npt.NDArray[np.float32]


@pytest.fixture(params=["candidates", "bisection"], scope="module")
def num_candidates(request: pytest.FixtureRequest) -> Iterator[int]:
    """Both ways to find a bound: with 4 candidates almost every bound lies below them."""
    patch = pytest.MonkeyPatch()
    if request.param == "bisection":
        patch.setattr(filters, "NUM_CANDIDATES", 4)
    yield filters.NUM_CANDIDATES
    patch.undo()


@cache
def program(_num_candidates: int) -> Callable[[Floats, SamplingRows], jax.Array]:
    """Compiled apart for each number: jit alone would remember that of another fixture."""
    return jax.jit(lambda scores, rows: lowest_allowed(scores, rows))


def bounds_of(scores: Floats, rows: SamplingRows) -> Floats:
    return np.asarray(program(filters.NUM_CANDIDATES)(scores, rows))


def allowed_by_sorting(
    scores: Floats, top_k: float = 0, top_p: float = 1.0, min_p: float = 0.0
) -> npt.NDArray[np.bool_]:
    """Which tokens of one row stay: [V] bool. All of a tie at a bound stay."""
    exact = scores.astype(np.float64)
    allowed = np.ones(len(scores), np.bool_)
    if top_k:
        allowed &= exact >= np.sort(exact)[::-1][min(int(top_k), len(exact)) - 1]
    if top_p < 1.0:
        weights = np.where(allowed, np.exp(exact - exact.max()), 0.0)
        order = np.argsort(-exact, kind="stable")
        masses = np.cumsum(weights[order]) / weights.sum()
        last = int(np.searchsorted(masses, top_p))
        allowed &= exact >= exact[order[min(last, len(order) - 1)]]
    if min_p > 0.0:
        allowed &= np.exp(exact - exact.max()) >= min_p
    return allowed


CASES: list[dict[str, float]] = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 90},
    {"top_k": 100_000},
    {"top_p": 1e-9},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"top_k": 40, "top_p": 0.5},
    {"top_k": 5, "top_p": 0.95, "min_p": 0.1},
    {},
]


@pytest.mark.parametrize("num_tokens", [100, 1000])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_exactly_the_tokens_of_the_oracle_are_allowed(
    num_candidates: int, num_tokens: int, spread: float
) -> None:
    assert num_candidates > 0
    generator = np.random.default_rng(int(spread * 10) + num_tokens)
    scores = generator.standard_normal((len(CASES), num_tokens), np.float32) * np.float32(spread)
    scores[:, 17] = -np.inf
    min_ps = np.array([case.get("min_p", 0.0) for case in CASES])
    with np.errstate(divide="ignore"):
        rows = sampling_rows(
            len(CASES),
            top_ks=[case.get("top_k", 0) for case in CASES],
            top_ps=[case.get("top_p", 1.0) for case in CASES],
            log_min_ps=np.log(min_ps),
        )
    bounds = bounds_of(scores, rows)
    for index, case in enumerate(CASES):
        expected = allowed_by_sorting(scores[index], **case)
        np.testing.assert_array_equal(scores[index] >= bounds[index], expected, str(case))


def test_all_of_a_tie_at_the_bound_are_allowed(num_candidates: int) -> None:
    assert num_candidates > 0
    scores = np.array([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0, 2.0, -4.0]] * 2, np.float32)
    rows = sampling_rows(2, top_ks=[2, 0], top_ps=[1.0, 0.5])
    bounds = bounds_of(scores, rows)
    np.testing.assert_array_equal(bounds, [2.0, 2.0])


def test_the_two_ways_to_a_bound_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    scores = generator.standard_normal((40, 500), np.float32) * np.float32(2)
    rows = sampling_rows(40, top_ks=generator.integers(0, 60, 40), top_ps=generator.random(40))
    by_candidates = bounds_of(scores, rows)
    monkeypatch.setattr(filters, "NUM_CANDIDATES", 2)
    by_bisection = bounds_of(scores, rows)
    np.testing.assert_array_equal(by_candidates, by_bisection)


def test_the_largest_vocabulary_overflows_no_sum() -> None:
    """Almost equal scores make the largest masses: half of them are half of the tokens."""
    scores = np.linspace(0.0, 1e-6, MAX_VOCAB_SIZE, dtype=np.float32)[None]
    scores = np.where(np.arange(MAX_VOCAB_SIZE) % 2, scores, -1e-3).astype(np.float32)
    bound = bounds_of(scores, sampling_rows(1, top_ps=[0.4]))
    assert bound[0] > -1e-3
    share = np.mean(scores >= bound[0])
    assert 0.19 < share <= 0.5
    (every,) = bounds_of(scores, sampling_rows(1, top_ps=[0.9999999]))
    assert every == scores.min()
