"""What `auto` loses where drafts hardly pay and the times of steps say little.

No clock and no model: rows go on by a text, steps take what a table says times what a busy machine
adds, and only the table's time counts.
"""

import random
from collections.abc import Callable, Sequence

import pytest

from engine_worker.core.choice.batch import RowSampling, RowWork
from engine_worker.core.choice.choice import Choice
from engine_worker.core.decoding.speculation import Account, Speculation, SpeculationMode
from engine_worker.demo import demo_model_path

TEXT = (demo_model_path() / "quality.txt").read_bytes()
SONG = b"the song goes round and round; " * 80
NUM_PROMPT, NUM_OUTPUT, SPARE = 128, 256, 40
# Milliseconds by rows: what SmolLM2-135M's shape takes on the native kernels, and a machine on
# which every row costs as much as the first.
NATIVE = {1: 10.0, 2: 10.5, 4: 12.0, 8: 16.5, 16: 28.0, 32: 50.0}
DEAR = {1: 10.0, 2: 19.5, 4: 38.0, 8: 75.0, 16: 150.0, 32: 300.0}

Noise = Callable[[], float]


def calm(_seed: int) -> Noise:
    return lambda: 1.0


def mild(seed: int) -> Noise:
    rng = random.Random(seed)
    return lambda: rng.lognormvariate(0, 0.15) * (1 if rng.random() > 0.03 else 3)


def heavy(seed: int) -> Noise:
    """Up to eight times as long, for some twenty steps at a time."""
    rng = random.Random(seed)
    level = 1.0

    def noise() -> float:
        nonlocal level
        if rng.random() < 0.05:
            level = rng.choice([1, 1, 1.5, 2, 4, 8])
        return level * rng.lognormvariate(0, 0.4)

    return noise


def rate(
    text: Sequence[int], num_rows: int, step_ms: dict[int, float], noise: Noise, seed: int
) -> float:
    """Tokens for the time that they took, over those of plain steps for as long."""
    rng = random.Random(seed)
    speculation = Speculation(SpeculationMode.AUTO, tuple(step_ms))

    def begun() -> tuple[Choice, Sequence[int]]:
        start = rng.randrange(len(text) - NUM_PROMPT - NUM_OUTPUT - SPARE)
        tokens = text[start : start + NUM_PROMPT + NUM_OUTPUT + SPARE]
        choice = Choice(
            gateway_id="g",
            request_id="r",
            index=0,
            attempt=1,
            prompt_token_ids=tuple(tokens[:NUM_PROMPT]),
            sampling=RowSampling(),
            max_output_tokens=NUM_OUTPUT,
            lease_tokens=NUM_OUTPUT,
            deadline=1.0,
            output_token_ids=[tokens[NUM_PROMPT]],
        )
        return choice, tokens

    def size(num: int) -> float:
        return next(ms for rows, ms in step_ms.items() if rows >= num)

    rows = [begun() for _ in range(num_rows)]
    plain_ms = taken_ms = 0.0
    for _ in range(400 if num_rows > 1 else 1200):
        choices = [choice for choice, _ in rows]
        works = [
            RowWork(slot, (choice.output_token_ids[-1],), 0, (), True, RowSampling())
            for slot, choice in enumerate(choices)
        ]
        drafts = speculation.drafts(choices, works) or [()] * num_rows
        num_drafted, num_right = sum(map(len, drafts)), 0
        for (choice, tokens), draft in zip(rows, drafts, strict=True):
            known, right = choice.num_tokens, 0
            while right < len(draft) and draft[right] == tokens[known + right]:
                right += 1
            choice.output_token_ids += tokens[known : known + right + 1]
            num_right += right
        step = size(num_rows + num_drafted)
        speculation.measure(num_rows, num_drafted, num_right, 1, step * noise())
        taken_ms += step
        plain_ms += (num_rows + num_right) * size(num_rows) / num_rows
        rows = [begun() if row[0].num_output_tokens >= NUM_OUTPUT else row for row in rows]
    return plain_ms / taken_ms


@pytest.mark.parametrize("step_ms", [NATIVE, DEAR])
@pytest.mark.parametrize("noise", [calm, mild, heavy])
@pytest.mark.parametrize("num_rows", [1, 8])
def test_what_is_written_once_loses_little(
    num_rows: int, noise: Callable[[int], Noise], step_ms: dict[int, float]
) -> None:
    rates = [rate(TEXT, num_rows, step_ms, noise(seed), seed) for seed in range(3)]
    assert sum(rates) / len(rates) > (0.94 if noise is heavy else 0.97)


@pytest.mark.parametrize(
    ("num_rows", "noise", "least"),
    [(1, calm, 3.0), (1, mild, 3.0), (1, heavy, 1.5), (8, calm, 1.1)],
)
def test_what_repeats_gains_all_the_same(
    num_rows: int, noise: Callable[[int], Noise], least: float
) -> None:
    rates = [rate(SONG, num_rows, NATIVE, noise(seed), seed) for seed in range(3)]
    assert sum(rates) / len(rates) > least


def is_open(account: Account) -> bool:
    """A call, so that what it was before isn't believed to hold."""
    return account.is_open


def test_losses_end_drafts_until_plain_steps_make_up_for_them() -> None:
    account = Account()
    account.add_drafting(num_plain=1.5, tokens_a_row=1.0)
    assert is_open(account)
    account.add_drafting(num_plain=1.5, tokens_a_row=1.0)
    assert not is_open(account)
    num_steps = 0
    while not is_open(account):
        account.add_plain(1)
        num_steps += 1
    assert 0.2 / num_steps < 0.01
    # However much was gained, no more can be lost afterwards.
    for _ in range(5):
        account.add_drafting(num_plain=1.5, tokens_a_row=16.0)
    for _ in range(4):
        assert is_open(account)
        account.add_drafting(num_plain=2.0, tokens_a_row=1.0)
    assert not is_open(account)
