"""Commands for embeddings: checked, cut, batched over requests, each with exactly one answer."""

import io
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engine_worker.demo import demo_model_path
from engine_worker.embedding.embedder import Embedder, shorten
from engine_worker.embedding.pooling import PoolingSpec
from engine_worker.embedding.queue import TextQueue
from engine_worker.embedding.row_programs import batch_shapes, rows_of_batches
from engine_worker.embedding.service import MAX_INPUTS, Embeddings
from engine_worker.text.tokenizer import Tokenizer
from protocol.errors import ErrorCode
from protocol.runtime import logs
from protocol.wire.messages import Embed, Embedded, Failure, Message

MAX_TOKENS = 16


class CountingModel:
    """Each row's vector is its length and its first id; compiles nothing heavy."""

    num_dimensions = 4
    leaves = ()

    def hidden(self, leaves: Any, token_ids: Any, type_ids: Any, lengths: Any) -> Any:
        import jax.numpy as jnp

        ones = jnp.ones(token_ids.shape, jnp.float32)
        return jnp.stack([lengths[:, None] * ones, token_ids[:, :1] * ones, ones, ones], axis=-1)


class Lab:
    def __init__(self) -> None:
        self.now = 10.0
        self.sent: list[tuple[str, Message]] = []
        pooling = PoolingSpec("mean", normalize=False)
        self.embedder = Embedder(CountingModel(), pooling, MAX_TOKENS)
        tokenizer = Tokenizer.load(demo_model_path())
        self.vocab_size = tokenizer.num_tokens
        self.embeddings = Embeddings(self.embedder, tokenizer, self.vocab_size)
        self.queue = TextQueue(self.embeddings, self, clock=lambda: self.now)

    def send(self, gateway_id: str, message: Message) -> None:
        self.sent.append((gateway_id, message))

    def submit(self, request_id: str, tenant: str = "t", **fields: Any) -> None:
        inputs = fields if "texts" in fields else {"token_ids": ((1,),), **fields}
        command = Embed(**{"request_id": request_id, "tenant": tenant, "deadline_s": 5.0, **inputs})
        self.queue.submit("gw", command)

    def run(self) -> None:
        while self.queue.num_unfinished:
            self.queue.run_once(block=False)

    def answered(self) -> list[str]:
        return [message.request_id for _, message in self.sent]  # type: ignore[attr-defined]

    def failures(self) -> dict[str, ErrorCode]:
        return {m.request_id: m.code for _, m in self.sent if isinstance(m, Failure)}

    def ask(self, **fields: Any) -> Message:
        command = Embed(**{"request_id": "r", "deadline_s": 5.0, **fields})
        self.queue.submit("gw", command)
        self.queue.run_once()
        return self.sent[-1][1]


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab()


def vectors(answer: Message) -> Any:
    assert isinstance(answer, Embedded), answer
    return np.frombuffer(answer.vectors, "<f4").reshape(-1, answer.num_dimensions)


def test_vectors_come_in_the_order_of_the_inputs(lab: Lab) -> None:
    rows = ((7, 1, 1), (9,), (8, *[1] * 14), (5, 5))
    answer = lab.ask(token_ids=rows)
    assert isinstance(answer, Embedded)
    assert answer.num_tokens == (3, 1, 15, 2)
    expected = [[3, 7], [1, 9], [15, 8], [2, 5]]
    np.testing.assert_allclose(vectors(answer)[:, :2], expected, rtol=1e-6)


def test_requests_that_wait_are_computed_together_and_answered_apart(lab: Lab) -> None:
    lab.sent.clear()
    before = lab.queue.num_batches
    for name in ("a", "b", "c"):
        lab.queue.submit(name, Embed(request_id=name, deadline_s=5.0, token_ids=((1, 2),)))
    assert lab.queue.num_unfinished == 3
    lab.queue.run_once()
    assert [gateway for gateway, _ in lab.sent] == ["a", "b", "c"]
    assert (lab.queue.num_batches - before, lab.queue.num_unfinished) == (1, 0)


def test_a_wrong_request_in_a_batch_fails_alone(lab: Lab) -> None:
    lab.sent.clear()
    lab.queue.submit("gw", Embed(request_id="bad", deadline_s=5.0, token_ids=((10**6,),)))
    lab.queue.submit("gw", Embed(request_id="good", deadline_s=5.0, token_ids=((1,),)))
    lab.queue.run_once()
    kinds = {message.request_id: type(message) for _, message in lab.sent}  # type: ignore[attr-defined]
    assert kinds == {"bad": Failure, "good": Embedded}


def test_dimensions_keep_the_first_numbers_and_scale_them(lab: Lab) -> None:
    answer = lab.ask(token_ids=((4, 1, 1),), dimensions=2)
    np.testing.assert_allclose(vectors(answer), [[0.6, 0.8]], rtol=1e-6)


def test_a_long_input_is_refused_with_both_numbers_or_cut(lab: Lab) -> None:
    long = tuple(range(1, 21))
    refused = lab.ask(token_ids=(long,))
    assert isinstance(refused, Failure)
    assert refused.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert "16" in refused.message
    assert "20" in refused.message
    assert lab.ask(token_ids=(long,), truncate_prompt_tokens=-1).num_tokens == (16,)  # type: ignore[attr-defined]
    assert lab.ask(token_ids=(long,), truncate_prompt_tokens=5).num_tokens == (5,)  # type: ignore[attr-defined]
    assert lab.ask(texts=("many words " * 50,), truncate_prompt_tokens=9).num_tokens == (9,)  # type: ignore[attr-defined]


def test_a_cut_text_keeps_the_special_token_at_its_end(lab: Lab) -> None:
    special = min(Tokenizer.load(demo_model_path()).special_token_ids)
    row = (*range(10, 30), special)
    command = Embed(request_id="r", deadline_s=1.0, token_ids=(row,), truncate_prompt_tokens=4)
    (cut,) = lab.embeddings.rows(command, 0, 1)
    assert (cut.token_ids, cut.is_cut) == ([10, 11, 12, special], True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"texts": ("a",), "token_ids": ((1,),)}, "input"),
        ({"token_ids": ((),)}, "input"),
        ({"token_ids": ((-1,),)}, "input"),
        ({"token_ids": ((1,),) * (MAX_INPUTS + 1)}, "input"),
        ({"token_ids": ((1,),), "dimensions": 5}, "dimensions"),
        ({"token_ids": ((1,),), "dimensions": 0}, "dimensions"),
        ({"token_ids": ((1,),), "truncate_prompt_tokens": 17}, "truncate_prompt_tokens"),
        ({"token_ids": ((1,),), "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    lab: Lab, fields: dict[str, Any], param: str
) -> None:
    answer = lab.ask(**fields)
    assert isinstance(answer, Failure)
    assert answer.param == param


def test_a_request_out_of_time_is_not_computed(lab: Lab) -> None:
    lab.queue.submit("gw", Embed(request_id="late", deadline_s=1.0, token_ids=((1,),)))
    lab.now += 2.0
    lab.queue.run_once()
    answer = lab.sent[-1][1]
    assert isinstance(answer, Failure)
    assert answer.code is ErrorCode.DEADLINE_EXCEEDED


def test_what_a_lost_gateway_wanted_is_dropped(lab: Lab) -> None:
    lab.queue.submit("lost", Embed(request_id="x", deadline_s=1.0, token_ids=((1,),)))
    lab.queue.forget_gateway("lost")
    lab.sent.clear()
    num_batches = lab.queue.num_batches
    lab.queue.run_once(block=False)
    assert not lab.sent
    assert (lab.queue.num_unfinished, lab.queue.num_batches) == (0, num_batches)


def test_a_tenant_with_too_much_waiting_is_refused_at_once_and_others_are_not() -> None:
    lab = Lab()
    rows = ((1,),) * MAX_INPUTS
    for number in range(5):
        lab.submit(str(number), "flood", token_ids=rows)
    lab.submit("calm", "calm")
    ((_, refused),) = lab.sent
    assert isinstance(refused, Failure)
    assert (refused.request_id, refused.code) == ("4", ErrorCode.OVERLOADED)
    assert lab.queue.num_unfinished == 5


def test_too_much_waiting_work_of_all_tenants_is_refused_at_once() -> None:
    lab = Lab()
    rows = ((1,),) * MAX_INPUTS
    for number in range(9):
        lab.submit(str(number), str(number), token_ids=rows)
    assert lab.answered() == ["8"]


def test_long_texts_count_as_several_so_that_what_waits_is_bounded_in_bytes() -> None:
    lab = Lab()
    for number in range(20):
        lab.submit(str(number), texts=("x" * 10_000_000,))
    assert lab.queue.num_unfinished == 3


def test_a_tenants_many_texts_delay_anothers_first_by_one_turn() -> None:
    lab = Lab()
    for number in range(4):
        lab.submit(f"flood {number}", "flood", token_ids=((1,),) * MAX_INPUTS)
    lab.queue.run_once()
    lab.submit("calm", "calm")
    lab.queue.run_once()
    assert not lab.sent
    lab.queue.run_once()
    assert lab.answered() == ["calm"]
    lab.run()
    assert lab.answered() == ["calm", *(f"flood {number}" for number in range(4))]
    assert lab.queue.num_unfinished == 0


def test_long_texts_of_a_tenant_delay_anothers_first_by_few_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()
    begun: list[int] = []
    rows = lab.embeddings.rows

    def counting(command: Embed, first: int, count: int) -> Any:
        begun.append(count)
        return rows(command, first, count)

    monkeypatch.setattr(lab.embeddings, "rows", counting)
    lab.submit("flood", "flood", texts=("word " * 1000,) * 200, truncate_prompt_tokens=-1)
    lab.submit("one", "third", texts=("word " * 100_000,), truncate_prompt_tokens=-1)
    lab.queue.run_once()
    lab.submit("calm", "calm")
    lab.queue.run_once()
    # 65,536 characters, 8,192 at a time; the text that is longer by itself has a turn of its own.
    assert begun[:8] == [1] * 8
    assert lab.answered() == ["one", "calm"]
    lab.run()
    assert lab.answered() == ["one", "calm", "flood"]
    assert sum(begun) == 202


class Programs:
    """The programs that run for a lab: the rows of each, and what was answered before it."""

    def __init__(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[int]] = []
        self.answered: list[list[str]] = []
        self.on_run: Callable[[], None] = lambda: None
        run = lab.embedder._run

        def watched(shape: Any, rows: Any, type_ids: Any) -> Any:
            self.rows.append([row[0] for row in rows])
            self.answered.append(lab.answered())
            self.on_run()
            return run(shape, rows, type_ids)

        monkeypatch.setattr(lab.embedder, "_run", watched)


def test_a_small_request_doesnt_wait_for_a_large_one_in_its_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()
    programs = Programs(lab, monkeypatch)
    lab.submit("flood", "flood", token_ids=((2,),) * 100)
    lab.submit("calm", "calm", token_ids=((7,),))
    lab.queue.run_once()
    assert programs.rows[0][0] == 7
    assert programs.answered[:2] == [[], ["calm"]]
    assert lab.answered() == ["calm", "flood"]


def test_who_comes_while_a_batch_runs_waits_for_one_program_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()
    programs = Programs(lab, monkeypatch)

    def come() -> None:
        programs.on_run = lambda: None
        lab.submit("calm", "calm", token_ids=((7,),))

    programs.on_run = come
    rows = tuple((number,) for number in range(100, 200))
    lab.submit("flood", "flood", token_ids=rows)
    lab.queue.run_once()
    assert len(programs.rows) == 1
    lab.queue.run_once()
    assert programs.rows[1][0] == 7
    assert programs.answered[1:3] == [[], ["calm"]]
    # Nothing is computed twice, and everything is where it was.
    assert sorted(row for rows in programs.rows for row in rows) == [7, *range(100, 200)]
    (flood,) = [m for _, m in lab.sent if isinstance(m, Embedded) and m.request_id == "flood"]
    assert vectors(flood)[:, 1].tolist() == list(range(100, 200))


def test_who_comes_while_a_large_request_is_tokenised_waits_for_no_program_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()
    programs = Programs(lab, monkeypatch)
    read: list[int] = []
    rows = lab.embeddings.rows

    def reading(command: Embed, first: int, count: int) -> Any:
        if command.request_id == "flood":
            read.append(count)
            if len(read) == 2:
                lab.submit("calm", "calm")
        return rows(command, first, count)

    monkeypatch.setattr(lab.embeddings, "rows", reading)
    texts = ("word " * 1000,) * 20
    lab.submit("flood", "flood", texts=texts, truncate_prompt_tokens=-1)
    lab.queue.run_once()
    assert (len(read), programs.rows) == (2, [])
    lab.queue.run_once()
    assert lab.answered() == ["calm"]
    # However often others come, each second turn computes something of it.
    for number in range(2 * len(texts)):
        lab.submit(f"calm {number}", "calm")
        lab.queue.run_once()
    lab.run()
    assert lab.answered().count("flood") == 1
    (flood,) = [m for _, m in lab.sent if isinstance(m, Embedded) and m.request_id == "flood"]
    assert len(flood.num_tokens) == len(texts)


def test_a_request_of_one_batch_is_computed_whoever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab()
    rows = lab.embeddings.rows

    def reading(command: Embed, first: int, count: int) -> Any:
        if command.request_id == "first":
            lab.submit("second", "other")
        return rows(command, first, count)

    monkeypatch.setattr(lab.embeddings, "rows", reading)
    lab.submit("first", "calm")
    lab.queue.run_once()
    assert lab.answered() == ["first"]


def test_a_tenants_next_request_doesnt_cut_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab()
    programs = Programs(lab, monkeypatch)
    programs.on_run = lambda: lab.submit(f"next {len(programs.rows)}", "flood")
    lab.submit("flood", "flood", token_ids=((1,),) * 100)
    lab.queue.run_once()
    assert sum(map(len, programs.rows)) == 100
    assert lab.answered() == ["flood"]


def test_a_request_of_several_turns_keeps_the_order_of_its_inputs() -> None:
    lab = Lab()
    rows = tuple((number % 1000 + 1,) * (1 + number % 3) for number in range(600))
    lab.submit("large", token_ids=rows)
    lab.submit("small", "other")
    lab.run()
    (answer,) = [m for _, m in lab.sent if isinstance(m, Embedded) and m.request_id == "large"]
    assert answer.num_tokens == tuple(map(len, rows))
    expected = [[len(row), row[0]] for row in rows]
    np.testing.assert_allclose(vectors(answer)[:, :2], expected, rtol=1e-6)


def test_a_wrong_input_of_a_later_turn_is_named_by_its_place() -> None:
    """And nothing is said of the inputs before it, so their computation is charged to nobody."""
    lab = Lab()
    lab.submit("r", token_ids=(*((1,),) * 300, ()))
    lab.run()
    assert lab.queue.num_batches > 0
    ((_, refused),) = lab.sent
    assert isinstance(refused, Failure)
    assert "Input 300 is empty" in refused.message


def test_what_is_cancelled_before_it_began_is_not_computed() -> None:
    lab = Lab()
    lab.submit("cancelled")
    lab.submit("other")
    lab.queue.cancel("gw", "cancelled")
    lab.queue.cancel("gw", "cancelled")
    lab.queue.cancel("someone else", "other")
    assert lab.queue.num_unfinished == 1
    lab.run()
    assert lab.answered() == ["other"]


def test_of_what_is_cancelled_while_it_runs_the_rest_is_not_computed() -> None:
    lab = Lab()
    lab.submit("large", token_ids=((1,),) * MAX_INPUTS)
    lab.queue.run_once()
    num_batches = lab.queue.num_batches
    assert num_batches > 0
    lab.queue.cancel("gw", "large")
    lab.queue.run_once(block=False)
    assert (lab.queue.num_batches, lab.queue.num_unfinished) == (num_batches, 0)
    assert not lab.sent


def test_of_what_is_cancelled_within_a_batch_no_further_program_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()
    run, shapes = lab.embedder._run, []

    def run_and_cancel(shape: Any, rows: Any, type_ids: Any) -> Any:
        shapes.append(shape)
        lab.queue.cancel("gw", "large")
        return run(shape, rows, type_ids)

    monkeypatch.setattr(lab.embedder, "_run", run_and_cancel)
    lab.submit("large", token_ids=((1,),) * 200)
    lab.queue.run_once()
    assert len(shapes) == 1
    assert not lab.sent


def test_what_is_cancelled_during_its_last_batch_is_not_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()
    compute = lab.embedder.compute

    def cancel_meanwhile(rows: Any, **options: Any) -> Any:
        lab.queue.cancel("gw", "r")
        return compute(rows, **options)

    monkeypatch.setattr(lab.embedder, "compute", cancel_meanwhile)
    lab.submit("r")
    lab.submit("other")
    lab.run()
    assert lab.answered() == ["other"]
    assert lab.queue.num_unfinished == 0


class PanicException(BaseException):
    """No Exception, like the panic of a native library."""


@pytest.mark.parametrize("error", [RuntimeError("no device"), PanicException("a panic")])
def test_an_input_that_breaks_its_batch_fails_only_its_own_request(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    lab = Lab()
    compute, calls = lab.embedder.compute, []

    def break_at_poison(rows: Any, **options: Any) -> Any:
        calls.append(len(rows))
        if [666] in rows:
            raise error
        return compute(rows, **options)

    monkeypatch.setattr(lab.embedder, "compute", break_at_poison)
    for name in ("good 1", "poison", "good 2"):
        lab.submit(name, token_ids=((666 if name == "poison" else 1,),))
    lab.run()
    assert {type(m) for _, m in lab.sent if m.request_id.startswith("good")} == {Embedded}  # type: ignore[attr-defined]
    assert lab.failures() == {"poison": ErrorCode.INTERNAL_ERROR}
    assert calls == [3, 1, 1, 1]
    assert lab.queue.num_unfinished == 0
    assert "could not be computed" in caplog.text


def test_a_panic_of_the_tokenizer_fails_only_its_own_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()
    rows = lab.embeddings.rows

    def panic(command: Embed, first: int, count: int) -> Any:
        if command.texts == ("poison",):
            raise PanicException("a panic")
        return rows(command, first, count)

    monkeypatch.setattr(lab.embeddings, "rows", panic)
    lab.submit("bad", texts=("poison",))
    lab.submit("good")
    lab.run()
    assert lab.failures() == {"bad": ErrorCode.INTERNAL_ERROR}
    assert sorted(lab.answered()) == ["bad", "good"]


def test_a_bug_of_the_thread_itself_fails_its_round_and_the_thread_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()
    answered = threading.Semaphore(0)
    send = lab.send

    def send_and_tell(gateway_id: str, message: Message) -> None:
        send(gateway_id, message)
        answered.release()

    monkeypatch.setattr(lab, "send", send_and_tell)
    thread = threading.Thread(target=lab.queue.run, daemon=True)
    with monkeypatch.context() as patch:
        patch.setattr(lab.queue, "_compute", lambda items: items.no_such_attribute)
        lab.submit("bad")
        thread.start()
        assert answered.acquire(timeout=60)
    lab.submit("good")
    assert answered.acquire(timeout=60)
    assert lab.failures() == {"bad": ErrorCode.INTERNAL_ERROR}
    assert lab.answered() == ["bad", "good"]
    lab.queue.close()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_a_hopeless_text_is_refused_by_its_length_before_it_is_tokenised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()

    def encode(text: str, *, add_special_tokens: bool) -> Any:
        raise AssertionError("tokenised")

    monkeypatch.setattr(lab.embeddings._reader.tokenizer, "encode", encode)
    answer = lab.ask(texts=("a" * 1_000_000,))
    assert isinstance(answer, Failure)
    assert answer.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert "at least" in answer.message


def test_what_is_logged_of_a_request_carries_its_id_and_its_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter("engine"))
    logger = logging.getLogger("penstock.embedding")
    logger.addHandler(handler)
    monkeypatch.setattr(lab.embedder, "compute", lambda rows, **options: 1 // 0)
    try:
        lab.submit("bad", trace_id="mine-1")
        lab.run()
    finally:
        logger.removeHandler(handler)
    line = json.loads(stream.getvalue())
    assert (line["request_id"], line["trace_id"]) == ("bad", "mine-1")


def test_a_batch_that_raises_fails_its_requests_and_the_next_one_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()

    def broken(rows: Any, **options: Any) -> Any:
        raise RuntimeError("no device")

    with monkeypatch.context() as patch:
        patch.setattr(lab.embedder, "compute", broken)
        answer = lab.ask(token_ids=((1,),))
    assert isinstance(answer, Failure)
    assert answer.code is ErrorCode.INTERNAL_ERROR
    assert isinstance(lab.ask(token_ids=((1,),)), Embedded)


def test_no_program_is_larger_than_it_has_to_be() -> None:
    shapes = batch_shapes(256, 2048)
    lengths = sorted({shape.num_tokens for shape in shapes})
    assert lengths == [16, 32, 48, 64, 96, 128, 192, 256]
    assert all(shape.num_rows * shape.num_tokens <= 2048 for shape in shapes)
    assert [shape.num_rows for shape in shapes if shape.num_tokens == 64] == [1, 4, 32]
    small = batch_shapes(256, 512)
    assert [shape.num_rows for shape in small if shape.num_tokens == 64] == [1, 4, 8]
    assert [shape.num_rows for shape in small if shape.num_tokens == 256] == [1, 2]
    halved = batch_shapes(512, 512, 256)
    rows = {length: [s.num_rows for s in halved if s.num_tokens == length] for length in lengths}
    assert (rows[64], rows[96], rows[128]) == ([1, 4, 8], [1, 4, 5], [1, 2])
    assert [shape.num_rows for shape in halved if shape.num_tokens > 128] == [1] * 4
    assert {shape.num_tokens for shape in batch_shapes(10, 2048)} == {10}
    # Long ones are few: each is a program that takes long to compile.
    assert {shape.num_tokens for shape in batch_shapes(8192, 2048) if shape.num_tokens > 600} == {
        *(1024, 2048),
        *(4096, 8192),
    }


@pytest.mark.parametrize("sizes", [(1, 4, 32), (1, 2), (1, 4, 5), (1,)])
def test_few_places_of_programs_stay_empty(sizes: tuple[int, ...]) -> None:
    """Two texts of one length were computed as 32."""
    for num_rows in range(1, 150):
        batches = rows_of_batches(num_rows, sizes)
        assert sum(batches) == num_rows
        assert max(batches) <= sizes[-1]
        places = sum(next(size for size in sizes if size >= one) for one in batches)
        assert places <= 2 * num_rows


def test_rows_of_every_number_and_length_keep_their_order() -> None:
    lab = Lab()
    for num_rows in (2, 3, 7, 37):
        rows = tuple((5 + number, *(1,) * (number % 15)) for number in range(num_rows))
        answer = lab.ask(token_ids=rows)
        expected = [[len(row), row[0]] for row in rows]
        np.testing.assert_allclose(vectors(answer)[:, :2], expected, rtol=1e-6)


def test_shortened_vectors_have_length_one() -> None:
    short = shorten(np.array([[3.0, 4.0, 9.0]], np.float32), 2)
    np.testing.assert_allclose(short, [[0.6, 0.8]])
