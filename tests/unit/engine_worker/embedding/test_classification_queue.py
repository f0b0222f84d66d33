"""Commands to classify: pairs over several turns, what was cut, what is refused, poison alone."""

from array import array
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from tokenizers.processors import BertProcessing

from engine_worker.embedding.classification import MAX_INPUTS, Classifications
from engine_worker.embedding.classifier import Classifier
from engine_worker.embedding.labels import Labels
from engine_worker.embedding.queue import TextQueue
from engine_worker.errors import InvalidRequestError
from engine_worker.text.tokenizer import Tokenizer
from engine_worker.text.tokenizer_files import TokenizerFiles
from protocol.errors import ErrorCode
from protocol.wire.messages import Classified, Classify, Failure, Message

MAX_TOKENS = 16
WORDS = ["a", "b", "c", "poison"]


class CountingModel:
    """Each token's vector is the row's length and how many of its tokens are of type 1."""

    num_dimensions = 2
    leaves = ()

    def hidden(self, leaves: Any, token_ids: Any, type_ids: Any, lengths: Any) -> Any:
        import jax.numpy as jnp

        ones = jnp.ones(token_ids.shape, jnp.float32)
        return jnp.stack(
            [lengths[:, None] * ones, type_ids.sum(axis=1, keepdims=True) * ones], axis=-1
        )


class FirstToken:
    """Logits that are the first token's vector."""

    weights = ()

    def logits(self, leaves: Any, weights: Any, hidden: Any, lengths: Any) -> Any:
        return hidden[:, 0]


def tokenizer() -> Tokenizer:
    vocabulary = {"[CLS]": 0, "[SEP]": 1} | {word: 2 + n for n, word in enumerate(WORDS)}
    backend = Backend(models.WordLevel(vocabulary, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    backend.post_processor = BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    return Tokenizer(TokenizerFiles(backend, {}, None), frozenset())


class Lab:
    def __init__(self) -> None:
        self.sent: list[Message] = []
        labels = Labels(("x", "y"), "single_label")
        self.classifier = Classifier(CountingModel(), FirstToken(), labels, MAX_TOKENS)
        task = Classifications(self.classifier, tokenizer(), 6)
        self.queue = TextQueue(task, self, takes=Classify)

    def send(self, gateway_id: str, message: Message) -> None:
        self.sent.append(message)

    def submit(self, request_id: str = "r", **fields: Any) -> None:
        command = Classify(**{"request_id": request_id, "deadline_s": 60.0, **fields})
        self.queue.submit("gw", command)

    def run(self) -> None:
        while self.queue.num_unfinished:
            self.queue.run_once(block=False)

    def ask(self, **fields: Any) -> Message:
        self.submit(**fields)
        self.run()
        return self.sent[-1]


def logits(answer: Message) -> list[float]:
    assert isinstance(answer, Classified), answer
    values = array("f")
    values.frombytes(answer.logits)
    return values.tolist()


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab()


def test_pairs_have_the_types_of_their_template(lab: Lab) -> None:
    answer = lab.ask(texts=("a b",), second_texts=("c", "c b a"))
    assert logits(answer) == [6.0, 2.0, 8.0, 4.0]
    assert isinstance(answer, Classified)
    assert (answer.num_labels, answer.num_tokens, answer.truncated) == (2, (6, 8), ())


def test_single_texts_and_token_ids_have_one_type(lab: Lab) -> None:
    assert logits(lab.ask(texts=("a b c", "a"))) == [5.0, 0.0, 3.0, 0.0]
    assert logits(lab.ask(token_ids=((0, 2, 1),))) == [3.0, 0.0]


def test_what_was_cut_is_told_over_several_turns() -> None:
    lab = Lab()
    seconds = tuple("a " * (40 if number % 100 == 7 else 2) for number in range(600))
    lab.submit("large", texts=("b",), second_texts=seconds, truncate_prompt_tokens=-1)
    lab.submit("small", texts=("a",), tenant="another")
    lab.run()
    small, large = lab.sent
    assert isinstance(large, Classified)
    assert isinstance(small, Classified)
    assert large.truncated == (7, 107, 207, 307, 407, 507)
    assert large.num_tokens[6:9] == (6, 16, 6)
    assert len(large.num_tokens) == 600


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "Give texts"),
        ({"texts": ("a",), "token_ids": ((1,),)}, "Give texts"),
        ({"texts": ("a", "b"), "second_texts": ("a", "b", "c")}, "Give texts"),
        ({"token_ids": ((6,),)}, "between 0 and 5"),
        ({"token_ids": ((),)}, "Input 0 is empty"),
        ({"texts": ("a " * 20,)}, "maximum context length is 16"),
        ({"texts": ("a",), "second_texts": ("a", "a " * 20)}, "input 1 has 24"),
        ({"texts": ("a",), "truncate_prompt_tokens": 17}, "truncate_prompt_tokens"),
        ({"texts": ("a",), "second_texts": ("a",), "max_second_tokens": 0}, "at least 1"),
        ({"texts": ("a",) * (MAX_INPUTS + 1)}, "at most 10000"),
    ],
)
def test_what_makes_no_sense_is_refused(lab: Lab, fields: dict[str, Any], named: str) -> None:
    answer = lab.ask(**fields)
    assert isinstance(answer, Failure)
    assert named in answer.message


def test_a_text_that_breaks_its_batch_fails_only_its_own_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab()
    compute = lab.classifier.compute

    def break_at_poison(rows: Any, *rest: Any, **options: Any) -> Any:
        if any(2 + WORDS.index("poison") in row for row in rows):
            raise RuntimeError("no device")
        return compute(rows, *rest, **options)

    monkeypatch.setattr(lab.classifier, "compute", break_at_poison)
    for name in ("good 1", "poison", "good 2"):
        lab.submit(name, texts=("poison" if name == "poison" else "a",))
    lab.run()
    kinds = {message.request_id: type(message) for message in lab.sent}  # type: ignore[attr-defined]
    assert kinds == {"good 1": Classified, "good 2": Classified, "poison": Failure}


def test_a_long_pair_counts_as_several_while_it_waits() -> None:
    lab = Lab()
    for number in range(20):
        lab.submit(str(number), texts=("a",), second_texts=("b" * 10_000_000,))
    refused = [message for message in lab.sent if isinstance(message, Failure)]
    assert len(refused) == 17
    assert {message.code for message in refused} == {ErrorCode.OVERLOADED}


def test_a_pair_without_a_token_is_refused_instead_of_scored_by_padding() -> None:
    backend = Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain = Tokenizer(TokenizerFiles(backend, {}, None), frozenset())
    task = Classifications(Lab().classifier, plain, 6)
    texts = Classify(request_id="r", deadline_s=1.0, texts=("",), second_texts=("b", ""))
    assert [len(row) for row in task.rows(texts, 0, 1)] == [1]
    with pytest.raises(InvalidRequestError, match="Pair 1 is empty"):
        task.rows(texts, 0, 2)


def test_who_leaves_is_told_what_was_computed_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab()
    compute = lab.classifier.compute

    def left_meanwhile(rows: Any, *rest: Any, is_wanted: Any, **options: Any) -> Any:
        def asked(indexes: Any) -> bool:
            wanted: bool = is_wanted(indexes)
            lab.queue.cancel("gw", "r")  # while the first program runs
            return wanted

        return compute(rows, *rest, is_wanted=asked, **options)

    monkeypatch.setattr(lab.classifier, "compute", left_meanwhile)
    lab.submit(texts=("a",) * 600)  # three tokens each, 32 in a program
    lab.run()
    (told,) = lab.sent
    assert isinstance(told, Classified)
    assert (told.logits, told.num_tokens) == (b"", (3 * 32,))
    lab.submit("waits", texts=("a",))
    lab.queue.cancel("gw", "waits")
    lab.queue.cancel("gw", "unknown")
    assert [one.num_tokens for one in lab.sent[1:] if isinstance(one, Classified)] == [(0,)]


def test_what_a_broken_batch_computed_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab()
    compute = lab.classifier.compute

    def break_together(rows: Any, *rest: Any, is_wanted: Any, **options: Any) -> Any:
        is_wanted(range(len(rows)))
        if len(rows) > 1:
            raise RuntimeError("no device")
        if lab.sent:
            return compute(rows, *rest, is_wanted=is_wanted, **options)
        lab.queue.cancel("gw", "one")
        return compute(rows, *rest, is_wanted=lambda _: False, **options)

    monkeypatch.setattr(lab.classifier, "compute", break_together)
    lab.submit("one", texts=("a",))
    lab.submit("two", texts=("b",))
    lab.run()
    told = lab.sent[0]
    assert isinstance(told, Classified)
    assert (told.request_id, told.num_tokens) == ("one", (3,))
