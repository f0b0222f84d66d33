"""Which model a name is served by: aliases always, fallbacks where the model itself can't."""

import orjson
import pytest

from gateway.errors import ModelNotFoundError
from gateway.request.jobs.model_names import ModelNames
from gateway.workers.engine_directory import EngineDirectory
from protocol.wire.peers import Peer
from tests.fakes.request_parts import Parts, engine_offer, peer


class Engines:
    """A directory, and engines that come and go."""

    def __init__(self) -> None:
        self.directory = EngineDirectory(lambda model: None)
        self.peers: dict[str, Peer] = {}

    def serve(
        self, model: str, max_model_len: int = 100, tokenizer: str = "", vocab_size: int = 0
    ) -> None:
        offer = engine_offer(
            model=model,
            max_model_len=max_model_len,
            tokenizer_info_json=tokenizer,
            vocab_size=vocab_size,
        )
        self.peers[model] = peer("engine", model, engine=offer)
        self.directory.update(self.peers[model])

    def stop(self, model: str) -> None:
        self.directory.remove(self.peers[model])

    def names(
        self,
        aliases: dict[str, str] | None = None,
        fallbacks: dict[str, tuple[str, ...]] | None = None,
    ) -> ModelNames:
        return ModelNames(aliases or {}, fallbacks or {}, self.directory)


def test_an_alias_stands_for_its_model_whoever_else_serves_that_name() -> None:
    engines = Engines()
    engines.serve("large")
    engines.serve("best")
    names = engines.names({"best": "large"})
    assert names.served("best") == "large"
    assert names.served("large") == "large"
    assert names.choose("best") == "large"
    assert names.offered("best").model == "large"


def test_an_alias_of_an_alias_is_not_followed() -> None:
    assert Engines().names({"a": "b", "b": "c"}).served("a") == "b"


def test_a_model_that_was_served_is_known_and_another_is_named_with_those_there_are() -> None:
    engines = Engines()
    for model in ("b", "a"):
        engines.serve(model)
    engines.stop("a")
    names = engines.names({"alias": "gone"})
    assert names.offered("a").model == "a"
    with pytest.raises(ModelNotFoundError) as raised:
        names.offered("alias")
    assert (raised.value.model, raised.value.known) == ("alias", ("a", "b"))


def test_the_first_fallback_that_is_there_is_taken_while_the_model_is_not() -> None:
    engines = Engines()
    for model in ("m", "second", "third"):
        engines.serve(model)
    names = engines.names({"alias": "second"}, {"m": ("first", "alias", "third")})
    assert names.choose("m") == "m"
    engines.stop("m")
    assert names.choose("m") == "second"
    engines.stop("second")
    assert names.choose("m") == "third"


def test_errors_speak_of_the_model_that_was_meant_when_no_fallback_is_there() -> None:
    names = Engines().names({"alias": "m"}, {"m": ("n",)})
    assert names.choose("alias") == "m"
    assert names.choose("unknown") == "unknown"


def test_fallbacks_of_a_fallback_do_not_count() -> None:
    engines = Engines()
    engines.serve("c")
    assert engines.names({}, {"a": ("b",), "b": ("c",)}).choose("a") == "a"


def test_what_every_model_falls_back_to_counts_for_models_without_own_fallbacks() -> None:
    engines = Engines()
    engines.serve("any")
    names = engines.names({}, {"*": ("any",), "own": ("other",)})
    assert names.choose("m") == "any"
    assert names.choose("own") == "own"


def test_a_fallback_that_is_the_model_itself_is_none() -> None:
    engines = Engines()
    engines.serve("m")
    names = engines.names({"alias": "m"}, {"*": ("alias", "m")})
    assert names.longer("m", "m") is None


def test_token_ids_go_to_a_model_with_the_same_tokenizer_only() -> None:
    same, longer, other = (
        orjson.dumps({"eos_token": eos, "model_max_length": length}).decode()
        for eos, length in (("</s>", 1), ("</s>", 2), ("<eos>", 1))
    )
    engines = Engines()
    engines.serve("m", tokenizer=same, vocab_size=10)
    engines.serve("other", tokenizer=other, vocab_size=10)
    engines.serve("larger", tokenizer=same, vocab_size=11)
    engines.serve("alike", tokenizer=longer, vocab_size=10)
    engines.stop("m")
    names = engines.names({}, {"m": ("other", "larger", "alike")})
    assert names.choose("m") == "other"
    assert names.choose("m", names_token_ids=True) == "alike"


@pytest.mark.parametrize("said", ["{", ""])
def test_token_ids_stay_away_from_models_whose_tokenizer_is_not_known_to_be_the_same(
    said: str,
) -> None:
    engines = Engines()
    engines.serve("n", tokenizer=said)
    names = engines.names({}, {"m": ("n",)})
    assert names.choose("m") == "n"
    assert names.choose("m", names_token_ids=True) == "m"


def test_engines_that_say_nothing_of_their_tokenizers_differ_by_their_vocabulary_only() -> None:
    engines = Engines()
    engines.serve("m", vocab_size=10)
    engines.serve("n", vocab_size=10)
    engines.stop("m")
    assert engines.names({}, {"m": ("n",)}).choose("m", names_token_ids=True) == "n"


def test_a_prompt_that_is_too_long_goes_to_the_first_fallback_with_a_longer_context() -> None:
    engines = Engines()
    engines.serve("m", max_model_len=100)
    engines.serve("equal", max_model_len=100)
    engines.serve("gone", max_model_len=400)
    engines.serve("longer", max_model_len=200)
    engines.serve("longest", max_model_len=300)
    engines.stop("gone")
    names = engines.names({}, {"m": ("unknown", "equal", "gone", "longer", "longest")})
    assert names.longer("m", "m") == "longer"
    assert names.longer("m", "longer") == "longest"
    assert names.longer("m", "longest") is None
    assert names.longer("equal", "equal") is None


def test_any_fallback_is_longer_than_a_model_of_which_nothing_is_known() -> None:
    engines = Engines()
    engines.serve("n", max_model_len=1)
    assert engines.names({}, {"m": ("n",)}).longer("m", "m") == "n"


def test_a_long_prompt_of_token_ids_needs_the_same_tokenizer_as_well() -> None:
    engines = Engines()
    engines.serve("m", max_model_len=100, vocab_size=10)
    engines.serve("n", max_model_len=200, vocab_size=11)
    names = engines.names({}, {"m": ("n",)})
    assert names.longer("m", "m") == "n"
    assert names.longer("m", "m", names_token_ids=True) is None


def test_globs_of_a_caller_name_models_for_their_aliases_and_each_once() -> None:
    names = Engines().names({"gpt": "m", "other": "m"})
    assert names.served_globs(["gpt", "x*", "m", "other", "n"]) == ("m", "x*", "n")
    assert names.served_globs([]) == ()


async def test_requests_find_the_longer_model_behind_the_one_that_was_tried() -> None:
    parts = Parts(aliases={"alias": "m"}, fallbacks={"m": ("middle", "long"), "long": ("m",)})
    for number, model in enumerate(("m", "middle", "long"), 1):
        parts.engine(model, model=model, max_model_len=1000 * number)
    longer = parts.factory.longer_model
    assert [longer("alias", tried) for tried in ("m", "middle", "long")] == ["middle", "long", None]
    assert longer("long", "m") is None  # its own stand-in is no longer than what was tried
