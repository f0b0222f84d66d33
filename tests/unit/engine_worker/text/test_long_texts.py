"""Long texts are tokenised in a process of their own, as any others are, and given up in time."""

import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe

import psutil
import pytest

from engine_worker.demo import demo_model_path
from engine_worker.errors import AbandonedError, EngineError, InvalidRequestError
from engine_worker.text import long_text_process
from engine_worker.text.long_texts import _IN_PLACE_BYTES, LONG_BYTES, LongTexts
from engine_worker.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(demo_model_path())
LONG = "Ein Wort, w1f und <|im_end|> — naïve ☃. " * (LONG_BYTES // 30)


def always() -> bool:
    return True


@pytest.fixture
def helpers() -> Iterator[Callable[[], list[psutil.Process]]]:
    """The processes that the test has started."""
    before = set(psutil.Process().children())
    yield lambda: [one for one in psutil.Process().children() if one not in before]
    for process in set(psutil.Process().children()) - before:
        process.kill()
        process.wait(60)


def test_a_long_text_has_the_tokens_that_it_has_in_the_process_itself(
    helpers: Callable[[], list[psutil.Process]],
) -> None:
    assert len(LONG) > LONG_BYTES
    for adds in (True, False):
        expected = TOKENIZER.encode(LONG, add_special_tokens=adds)
        assert TOKENIZER.encode(LONG, add_special_tokens=adds, is_wanted=always) == expected
    (helper,) = helpers()
    assert helper.nice() > psutil.Process().nice()


def test_who_leaves_ends_the_process_and_the_next_text_has_another(
    helpers: Callable[[], list[psutil.Process]],
) -> None:
    texts = LongTexts(TOKENIZER.serialized)
    seen: list[int] = []

    def never() -> bool:
        seen.extend(one.pid for one in helpers())
        return False

    with pytest.raises(AbandonedError):
        texts.encode(LONG.encode() * 20, add_special_tokens=False, is_wanted=never)
    assert len(seen) == 1
    assert not helpers()
    ids = texts.encode(b"ab", add_special_tokens=False, is_wanted=always)
    assert ids == TOKENIZER.encode("ab", add_special_tokens=False)
    assert [one.pid for one in helpers()] != seen


def test_a_process_that_has_ended_is_replaced_and_one_that_always_dies_is_an_error(
    helpers: Callable[[], list[psutil.Process]],
) -> None:
    texts = LongTexts(TOKENIZER.serialized)
    texts.encode(b"ab", add_special_tokens=False, is_wanted=always)
    for helper in helpers():
        helper.kill()
    assert texts.encode(b"ab", add_special_tokens=False, is_wanted=always)
    with pytest.raises(EngineError, match="its process died"):
        LongTexts(lambda: "no tokenizer").encode(b"ab", add_special_tokens=False, is_wanted=always)


def test_nothing_is_left_of_a_tokenizer_that_is_let_go(
    helpers: Callable[[], list[psutil.Process]],
) -> None:
    texts = LongTexts(TOKENIZER.serialized)
    texts.encode(b"ab", add_special_tokens=False, is_wanted=always)
    assert len(helpers()) == 1
    del texts
    assert not helpers()


def test_a_lone_surrogate_is_refused_before() -> None:
    with pytest.raises(InvalidRequestError, match="lone surrogate"):
        TOKENIZER.encode(LONG + "\ud800", add_special_tokens=False, is_wanted=always)


def test_the_process_ends_after_a_while_without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text_process, "IDLE_S", 0.0)
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send_bytes(TOKENIZER.serialized().encode())
        thread = threading.Thread(target=long_text_process.serve, args=(theirs,))
        thread.start()
        thread.join(60)
        assert not thread.is_alive()


def test_while_the_process_is_busy_a_text_is_tokenised_in_place_unless_it_is_very_long(
    helpers: Callable[[], list[psutil.Process]],
) -> None:
    expected = TOKENIZER.encode(LONG, add_special_tokens=False)
    very_long = LONG * (_IN_PLACE_BYTES // len(LONG) + 1)
    with TOKENIZER._long_texts._lock:
        assert TOKENIZER.encode(LONG, add_special_tokens=False, is_wanted=always) == expected
        with pytest.raises(AbandonedError):
            TOKENIZER.encode(very_long, add_special_tokens=False, is_wanted=lambda: False)
    assert TOKENIZER.encode(LONG, add_special_tokens=False, is_wanted=always) == expected


def test_a_process_gets_no_secret_of_the_engines_environment(
    helpers: Callable[[], list[psutil.Process]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    texts = LongTexts(TOKENIZER.serialized)
    texts.encode(b"ab", add_special_tokens=False, is_wanted=always)
    (helper,) = helpers()
    assert "hf_secret" not in helper.environ().values()
