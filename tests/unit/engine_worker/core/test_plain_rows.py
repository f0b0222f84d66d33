"""Plain rows, whose tokens are told together, say what they would say one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.core.choice.cache_group import CacheGroup
from engine_worker.core.choice_output import ChoiceOutput
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.engine import Engine
from engine_worker.core.engine_output import GatewayOutput
from engine_worker.core.metrics import EngineMetrics
from engine_worker.text.detokenizer import TokenTexts
from engine_worker.text.output_text import OutputText
from protocol.errors import ErrorCode
from protocol.wire.messages import Delta, Extend, Failure, Finished, Generate, SamplingParams
from tests.fakes.fake_runner import DeterministicFakeRunner, NextToken, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
EOS = TOKENIZER.encode("<|im_end|>", add_special_tokens=False)[0]
SPECIAL = TOKENIZER.encode("<|im_start|>", add_special_tokens=False)[0]
LETTERS = tuple(b"abcdefgh")
USUAL = (*LETTERS, 256, 257, 258, *"é€".encode(), 0xFF, SPECIAL, TOKENIZER.num_tokens - 1)
WINDOWED = (CacheGroup(64), CacheGroup(64, reach=7))


class Clock:
    """Goes on by as much with each look, so that steps take time, and always the same."""

    now = 100.0

    def __call__(self) -> float:
        self.now += 1e-3
        return self.now


@dataclass(frozen=True)
class Case:
    """Requests that run together, and on what."""

    requests: tuple[Generate, ...]
    runner: dict[str, Any]
    speculation: SpeculationMode


def one_of(token_ids: Sequence[int]) -> NextToken:
    """A model that draws from some tokens."""
    drawn = hashed_token(len(token_ids))
    return lambda seen: token_ids[drawn(seen)]


def request(name: str, sampling: SamplingParams, **changes: Any) -> Generate:
    options: dict[str, Any] = {
        "choice": 0,
        "attempt": 1,
        "prompt_token_ids": (*name.encode(), 5, 6),
        "lease_tokens": 1000,
        "deadline_s": 3600.0,
        **changes,
    }
    return Generate(request_id=name, sampling=sampling, **options)


def samplings() -> st.SearchStrategy[SamplingParams]:
    """Half of them leave rows plain."""
    plain = st.builds(
        SamplingParams,
        temperature=st.just(0.0),
        max_tokens=st.integers(1, 40),
        stop_token_ids=st.sampled_from([(), (LETTERS[3],), tuple(range(200, 210))]),
        ignore_eos=st.booleans(),
        skip_special_tokens=st.booleans(),
        include_stop_str_in_output=st.booleans(),
    )
    other = st.builds(
        SamplingParams,
        temperature=st.just(0.0),
        max_tokens=st.integers(12, 40),
        min_tokens=st.sampled_from([0, 9]),
        stop=st.sampled_from([(), ("ab", "hc"), ("é",)]),
        bad_words=st.sampled_from([(), ("a",)]),
        logit_bias=st.sampled_from([(), ((1, 1.0),)]),
    )
    return st.one_of(plain, other)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    requests = []
    for index in range(draw(st.integers(1, 5))):
        output = draw(st.sampled_from([(), tuple("aé".encode()), tuple("bc€".encode()[:-1])]))
        requests.append(
            request(
                f"r{index}",
                draw(samplings()),
                want_token_ids=draw(st.booleans()),
                is_streaming=draw(st.booleans()),
                lease_tokens=draw(st.sampled_from([5, 1000])),
                output_token_ids=output,
                num_sent_characters=draw(st.integers(0, 4)) if output else 0,
                keep_special_tokens=draw(st.sampled_from([(), ("<|im_start|>",)])),
            )
        )
    runner = draw(
        st.fixed_dictionaries(
            {
                "max_new_tokens": st.sampled_from([1, 4]),
                "groups": st.sampled_from([(), WINDOWED]),
                "num_blocks": st.sampled_from([64, 20]),
                "decode_rows": st.sampled_from([(1, 2, 4), (1, 2, 4, 8)]),
                "runs_ahead": st.booleans(),
            }
        )
    )
    modes = st.sampled_from([SpeculationMode.OFF, SpeculationMode.ALWAYS])
    return Case(tuple(requests), runner, draw(modes))


def engine_of(next_token: NextToken, case: Case) -> tuple[Engine, EngineMetrics]:
    metrics, clock = EngineMetrics(), Clock()
    engine = Engine(
        DeterministicFakeRunner(next_token, **case.runner),
        TOKENIZER,
        vocab_size=TOKENIZER.num_tokens,
        max_model_len=64,
        speculation=case.speculation,
        metrics=metrics,
        clock=clock,
    )
    for command in case.requests:
        engine.add("odd" if command.want_token_ids else "even", command)
    return engine, metrics


def all_that_is_told(next_token: NextToken, case: Case) -> list[object]:
    """Each step's outputs, with load and what gateways hold; at last what was counted."""
    engine, metrics = engine_of(next_token, case)
    told: list[object] = []
    for _ in range(2):
        while engine.has_work():
            told += [engine.step(), engine.held(), engine.load()]
            assert len(told) < 5000, "the engine doesn't come to rest"
        for command in case.requests:
            gateway_id = "odd" if command.want_token_ids else "even"
            extend = Extend(request_id=command.request_id, choice=0, attempt=1, lease_tokens=1000)
            engine.extend(gateway_id, extend)
    assert engine.num_unfinished == 0
    return [*told, metrics.registry.message()]


@settings(deadline=None)
@given(cases(), st.sampled_from([(*USUAL, EOS), LETTERS]))
def test_plain_rows_are_told_what_they_would_be_told_one_by_one(
    case: Case, token_ids: tuple[int, ...]
) -> None:
    next_token = one_of(token_ids)
    together = all_that_is_told(next_token, case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChoiceOutput, "settle", lambda output: None)
        assert together == all_that_is_told(next_token, case)


def run(engine: Engine) -> GatewayOutput:
    told = GatewayOutput()
    while engine.has_work():
        for output in engine.step().values():
            told.deltas += output.deltas
            told.ends += output.ends
    return told


GREEDY = SamplingParams(temperature=0.0, max_tokens=20)
ALONE = Case((request("r", GREEDY, want_token_ids=True),), {}, SpeculationMode.OFF)


def test_only_the_first_and_the_last_token_of_a_plain_row_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at = []
    push = OutputText.push

    def counted(text: OutputText, choice: Any, **options: Any) -> Any:
        looked_at.append(choice.num_output_tokens)
        return push(text, choice, **options)

    monkeypatch.setattr(OutputText, "push", counted)
    engine, _ = engine_of(one_of(LETTERS), ALONE)
    told = run(engine)
    assert looked_at == [1, 20]
    assert sum(len(delta.token_ids) for delta in told.deltas) == 20
    assert [delta.token_ends for delta in told.deltas] == [(number,) for number in range(1, 21)]


def test_a_bug_at_one_plain_token_ends_its_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = TOKENIZER.detokenizer(()).texts
    assert isinstance(texts, TokenTexts)
    monkeypatch.setattr(TokenTexts, "__missing__", broken)
    good = request("good", GREEDY)
    bad = request("bad", GREEDY)
    texts.clear()
    texts.update({token_id: chr(token_id) for token_id in b"ab"})

    def next_token(seen: Sequence[int]) -> int:
        is_bad = tuple(seen[:3]) == tuple(b"bad")
        return b"c"[0] if is_bad and len(seen) == 9 else b"ab"[len(seen) % 2]

    engine, _ = engine_of(next_token, Case((good, bad), {}, SpeculationMode.OFF))
    told = run(engine)
    texts.clear()
    ends = {end.request_id: end for end in told.ends}
    assert isinstance(ends["good"], Finished)
    failure = ends["bad"]
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.INTERNAL_ERROR
    assert engine.num_unfinished == 0


def broken(_texts: TokenTexts, token_id: int) -> str:
    raise RuntimeError(f"no text of {token_id}")


def test_what_a_delta_says_of_plain_tokens_is_all_that_it_says() -> None:
    engine, _ = engine_of(one_of(LETTERS[:1]), ALONE)
    engine.step()
    told = engine.step()["odd"]
    assert told.deltas == [
        Delta(request_id="r", choice=0, attempt=1, text="a", token_ids=(97,), token_ends=(2,))
    ]
