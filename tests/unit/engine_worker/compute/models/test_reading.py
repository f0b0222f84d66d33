"""A spec as text tells what it says, and nothing of what it leaves as it is."""

from dataclasses import dataclass, make_dataclass, replace

from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.reading import reading_of
from engine_worker.compute.models.spec import QkNorm
from tests.fakes.tiny_checkpoint import TINY_LLAMA


@dataclass(frozen=True)
class Part:
    width: int
    norm: QkNorm = QkNorm.NONE
    scales: tuple[float, ...] = ()


def test_values_are_told_by_their_fields() -> None:
    part = Part(3, QkNorm.PER_HEAD, (0.5, 2.0))
    assert reading_of(part) == f"Part(width=3, norm={QkNorm.PER_HEAD.value!r}, scales=[0.5, 2.0])"


def test_a_field_that_a_later_version_adds_counts_where_it_says_something() -> None:
    later = make_dataclass("Part", [("width", int), ("gate", bool, False)], frozen=True)
    assert reading_of(later(3)) == reading_of(Part(3))
    assert reading_of(later(3, gate=True)) != reading_of(Part(3))


def test_every_field_of_a_decoder_counts_but_how_much_of_it_is_served() -> None:
    spec = decoder_spec(TINY_LLAMA)
    assert reading_of(replace(spec, served_length=64)) == reading_of(spec)
    assert reading_of(replace(spec, logits_multiplier=0.5)) != reading_of(spec)
    last = replace(spec.layers[-1], mlp_multiplier=0.5)
    assert reading_of(replace(spec, layers=(*spec.layers[:-1], last))) != reading_of(spec)
