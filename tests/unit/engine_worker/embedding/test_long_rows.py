"""Long rows go in pieces: others have their turn between two, and one row takes memory at a time.

That their vectors are right: `tests/integration/test_embedding_parity.py`.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.weights.loader import load_weights
from engine_worker.config import ModelSettings
from engine_worker.embedding.embedder import Embedder
from engine_worker.embedding.inputs import Row
from engine_worker.embedding.long_rows import LongRows, _lengths, long_row_bytes
from engine_worker.embedding.models import DecoderModel
from engine_worker.embedding.pooling import PoolingSpec
from engine_worker.embedding.queue import TextQueue
from engine_worker.embedding.row_programs import Vectors, whole_and_piece_tokens
from engine_worker.loading import text_length
from engine_worker.loading.encoder import decoder_embedder
from engine_worker.loading.text_length import longest_text
from protocol.errors import ErrorCode
from protocol.wire.messages import Embed, Embedded, Failure, Message
from tests.fakes.tiny_checkpoint import TINY_LLAMA, write_checkpoint

WHOLE, PIECES = 4, 5


class Pieces:
    """Computes rows above `WHOLE` tokens in `PIECES` pieces; notes what ran."""

    max_inputs = 100
    max_whole_tokens = WHOLE

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.between: Callable[[int], None] = lambda piece: None

    def num_inputs(self, command: Embed) -> int:
        return len(command.token_ids)

    def rows(self, command: Embed, first: int, count: int) -> list[Row]:
        return [Row(list(ids)) for ids in command.token_ids[first : first + count]]

    def compute(
        self,
        rows: Sequence[Row],
        is_wanted: Callable[[Sequence[int]], bool],
        on_done: Callable[[Sequence[int], Vectors], None],
        goes_on: Callable[[int], bool],
    ) -> Vectors:
        for index, row in sorted(enumerate(rows), key=lambda one: len(one[1]) > WHOLE):
            name = f"{row.token_ids[0]}"
            if not is_wanted([index]):
                continue
            is_done = True
            if len(row) > WHOLE:
                for piece in range(PIECES):
                    self.between(piece)
                    if piece and not goes_on(index):
                        is_done = False
                        break
                    self.ran.append(f"{name}.{piece}")
            else:
                self.ran.append(name)
            if is_done:
                on_done([index], np.ones((1, 2), np.float32))
        return np.ones((len(rows), 2), np.float32)

    def answer(
        self,
        command: Embed,
        vectors: Vectors,
        num_tokens: Sequence[int],
        truncated: Sequence[int],
    ) -> Message:
        return Embedded(command.request_id, vectors.shape[1], b"", tuple(num_tokens))


class Bench:
    def __init__(self) -> None:
        self.task = Pieces()
        self.answered: list[str] = []
        self.failed: list[tuple[str, ErrorCode]] = []
        self.charged: dict[str, int | None] = {}
        self.now = 10.0
        self.queue = TextQueue(self.task, self, clock=lambda: self.now)

    def send(self, gateway_id: str, message: Message) -> None:
        if isinstance(message, Failure):
            self.failed.append((message.request_id, message.code))
            usage = message.usage
            self.charged[message.request_id] = None if usage is None else usage.prompt_tokens
            return
        assert isinstance(message, Embedded), message
        self.answered.append(message.request_id)

    def submit(self, number: int, length: int, tenant: str = "t", rows: int = 1) -> None:
        ids = ((number,) * length,) * rows
        command = Embed(str(number), deadline_s=60.0, tenant=tenant, token_ids=ids)
        self.queue.submit("gw", command)

    def at_piece(self, wanted: int, act: Callable[[], Any]) -> None:
        """Does something once, before a piece of whichever row is first there."""

        def between(piece: int) -> None:
            if piece == wanted:
                self.task.between = lambda piece: None
                act()

        self.task.between = between

    def run(self) -> None:
        while self.queue.num_unfinished:
            self.queue.run_once(block=False)


@pytest.mark.parametrize("tenant", ["another", "t"])
def test_short_texts_have_their_turn_between_two_pieces_of_a_long_one(tenant: str) -> None:
    bench = Bench()
    bench.submit(1, 9)
    bench.at_piece(2, lambda: bench.submit(2, 3, tenant))
    bench.run()
    assert bench.task.ran == ["1.0", "1.1", "2", "1.2", "1.3", "1.4"]
    assert bench.answered == ["2", "1"]


def test_a_second_long_text_waits_for_the_first_and_keeps_nobody_behind_it() -> None:
    bench = Bench()
    bench.submit(1, 9)

    def more() -> None:
        bench.submit(2, 9, "another")
        bench.submit(3, 3, "another")

    bench.at_piece(2, more)
    bench.run()
    assert bench.task.ran[:3] == ["1.0", "1.1", "3"]
    assert bench.task.ran[3:] == ["1.2", "1.3", "1.4", *(f"2.{piece}" for piece in range(PIECES))]
    assert bench.answered == ["3", "1", "2"]


def test_many_texts_of_others_and_the_pieces_of_a_long_one_take_turns() -> None:
    bench = Bench()
    bench.submit(1, 9)
    bench.at_piece(1, lambda: bench.submit(2, 3, "another", rows=6))
    bench.run()
    runs = [bench.task.ran[first : first + 2] for first in (1, 3, 5)]
    assert runs == [["2", "1.1"], ["2", "1.2"], ["2", "1.3"]]
    assert sorted(bench.answered) == ["1", "2"]


def test_a_long_text_that_nobody_waits_for_ends_at_its_next_piece() -> None:
    bench = Bench()
    bench.submit(1, 9)
    bench.at_piece(3, lambda: bench.queue.cancel("gw", "1"))
    bench.run()
    assert (bench.task.ran, bench.answered) == (["1.0", "1.1", "1.2"], [])


def test_a_long_text_whose_time_is_over_ends_at_its_next_piece() -> None:
    bench = Bench()
    bench.submit(1, 9)
    bench.submit(2, 3, "another")

    def expire() -> None:
        bench.now += 60.0

    bench.at_piece(3, expire)
    bench.run()
    assert bench.task.ran == ["2", "1.0", "1.1", "1.2"]
    assert bench.answered == ["2"]
    assert bench.failed == [("1", ErrorCode.DEADLINE_EXCEEDED)]
    assert bench.charged == {"1": 9}


def test_a_request_whose_time_is_over_between_two_turns_says_what_was_computed() -> None:
    bench = Bench()
    bench.task.max_inputs = 300
    bench.submit(1, 3, rows=300)
    bench.queue.run_once(block=False)
    num_computed = 3 * bench.task.ran.count("1")
    assert 0 < num_computed < 900
    bench.now += 60.0
    bench.submit(2, 3)
    bench.run()
    assert bench.failed == [("1", ErrorCode.DEADLINE_EXCEEDED)]
    bench.submit(3, 3)
    bench.now += 60.0
    bench.run()
    assert bench.charged == {"1": num_computed, "3": None}
    assert bench.answered == ["2"]


def test_each_piece_of_a_long_text_is_progress_of_the_engine() -> None:
    """A gateway takes an engine for dead whose counter stands for a minute with work running."""
    bench = Bench()
    bench.submit(1, 9)
    told: list[int] = []
    bench.task.between = lambda piece: told.append(bench.queue.num_batches)
    bench.run()
    told.append(bench.queue.num_batches)
    assert told == [1, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("longest", "lengths"),
    [
        (1200, [1200]),
        (8192, [2048, 4096, 8192]),
        (32_768, [2048, 4096, 8192, 16_384, 32_768]),
        (20_000, [2048, 4096, 8192, 20_000]),
    ],
)
def test_a_long_row_holds_the_vectors_of_about_twice_its_tokens_at_most(
    longest: int, lengths: list[int]
) -> None:
    assert list(_lengths(512, longest)) == lengths


def test_closing_ends_a_long_text_at_its_next_piece() -> None:
    bench = Bench()
    bench.submit(1, 9)
    bench.at_piece(1, bench.queue.close)
    assert not bench.queue.run_once(block=False)
    assert (bench.task.ran, bench.answered) == (["1.0"], [])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> PackedDecoder:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, {**TINY_LLAMA, "max_position_embeddings": 32_768})
    weights = load_weights(folder, declare(load_spec(folder), np.float32))
    return PackedDecoder(XlaBackend(weights.graph), weights.leaves)


def test_a_text_may_be_as_long_as_the_model_was_made_for(
    decoder: PackedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All programs of such texts are compiled at the start: what runs later compiles none."""
    compiled: list[int] = []
    monkeypatch.setattr(Embedder, "_program", lambda embedder, shape: compiled.append(0))
    monkeypatch.setattr(LongRows, "programs", lambda rows, length: compiled.append(length))
    settings = ModelSettings(path=Path("/none"), name="m", pooling="last")
    embedder = decoder_embedder(settings, decoder, 32_768, lambda done, text: None)
    assert embedder is not None
    assert embedder.max_tokens == 32_768
    assert [length for length in compiled if length] == [2048, 4096, 8192, 16_384, 32_768]


def test_memory_cuts_what_a_text_may_have_and_the_log_says_so(
    decoder: PackedDecoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = DecoderModel(decoder)
    _, piece = whole_and_piece_tokens()
    budget = long_row_bytes(model, 3 * 1024, piece)
    monkeypatch.setattr(text_length, "default_kv_memory_bytes", lambda *_: budget + 5)
    with caplog.at_level(logging.WARNING):
        assert longest_text("m", model, 3 * 1024) == 3 * 1024
        assert not caplog.text
        assert longest_text("m", model, 32_768) == 3 * 1024
    assert "texts of at most 3072 tokens, not of 32768" in caplog.text
    # What one program computes has no cache that grows.
    monkeypatch.setattr(text_length, "default_kv_memory_bytes", lambda *_: 0)
    whole, _ = whole_and_piece_tokens()
    assert longest_text("m", model, 32_768) == whole


def test_a_row_takes_no_more_than_was_counted(
    decoder: PackedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DecoderModel(decoder)
    embedder = Embedder(model, PoolingSpec("last"), 1200)
    (length,) = embedder._long.lengths  # type: ignore[union-attr]
    most = 0

    def alive() -> int:
        return sum(a.nbytes for a in jax.live_arrays())  # type: ignore[no-untyped-call]

    def goes_on(index: int) -> bool:
        nonlocal most
        most = max(most, alive() - before)
        return True

    before = alive()
    vectors = embedder.compute([[3] * 1100], goes_on=goes_on)
    assert np.isfinite(vectors).all()
    _, piece = whole_and_piece_tokens()
    counted = long_row_bytes(model, 1200, piece)
    assert counted == long_row_bytes(model, length, piece)
    assert 0 < most <= counted


def test_a_row_that_is_stopped_is_not_told(decoder: PackedDecoder) -> None:
    embedder = Embedder(DecoderModel(decoder), PoolingSpec("last"), 1200)
    told: list[Sequence[int]] = []
    vectors = embedder.compute(
        [[3] * 1100], on_done=lambda indexes, _: told.append(indexes), goes_on=lambda index: False
    )
    assert told == []
    assert not vectors.any()
