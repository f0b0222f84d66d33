"""docs/models.md has a row for every family, and each cell says what code or measurement do."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine_worker.compute.backends.cpu_native import coverage
from engine_worker.compute.models.families.registry import FAMILIES
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.spec import DecoderSpec, LayerSpec, MoeSpec
from engine_worker.compute.weights.gguf.encoder_families import ENCODERS
from engine_worker.compute.weights.gguf.families import FAMILIES as GGUF_FAMILIES
from engine_worker.text.format_detection import detect_formats
from tests.fakes.late import transformers
from tests.fakes.model_families import CASES, FamilyCase
from tests.fakes.published_models import PUBLISHED, PublishedModel
from tests.models_table import agreement, declared, gguf_names, memory_row, written
from tests.parity.page import read_page

PAGE = Path(__file__).parents[5] / "docs" / "models.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = ("embedding", "attention", "mlp", "head")
TYPES = (
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("int8", "bfloat16"),
    ("int4", "bfloat16"),
)


class Row(NamedTuple):
    models: str
    gguf: str
    formats: str
    native: str
    agreement: str
    cases: tuple[str, ...]


def rows() -> Mapping[str, Row]:
    found: dict[str, Row] = {}
    for line in TEXT.splitlines():
        match = re.fullmatch(r"\| `(\w+)`" + r" \| (.+)" * 6 + r" \|", line)
        if match:
            name, models, gguf, formats, native, shares, cases = match.groups()
            assert name not in found, f"{name} has two rows"
            by_name = tuple(re.findall(r"`(\w+)`", cases))
            found[name] = Row(models, gguf, formats, native, shares, by_name)
    return found


ROWS = rows()


def spec_of(case: FamilyCase) -> DecoderSpec:
    config: Any = getattr(transformers, case.config)(**case.values)
    values = config.to_dict()
    if case.wrapped_as:
        values = {"text_config": values}
    if not values.get("architectures"):
        values["architectures"] = [architecture_of(case)]
    return decoder_spec(values)


def architecture_of(case: FamilyCase) -> str:
    if case.wrapped_as:
        return case.wrapped_as
    if not case.model.startswith("Auto"):
        return case.model
    mapping = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    name: str = mapping[getattr(transformers, case.config).model_type]
    return name


def native_blocks(specs: list[DecoderSpec]) -> str:
    """`all`, or those that are computed natively in all types and layers of all cases.

    Behind them, those of which only the products are.
    """
    layers = [(spec, layer) for spec in specs for layer in spec.layers]
    is_hybrid = not all(layer.is_attention for _, layer in layers)
    blocks = (*BLOCKS, "recurrent") if is_hybrid else BLOCKS
    native = [
        block
        for block in blocks
        if all(
            coverage.uncovered(spec, layer, block, weights, cache, 32) is None
            for spec, layer in layers
            for weights, cache in TYPES
            if _has(layer, block)
        )
    ]
    if len(native) == len(blocks):
        return "all"
    multiplied = [
        block
        for block in blocks
        if block not in native
        and not (block == "mlp" and any(isinstance(layer.mlp, MoeSpec) for _, layer in layers))
    ]
    return "; products of ".join(", ".join(part) for part in (native, multiplied) if part)


def _has(layer: LayerSpec, block: str) -> bool:
    if block in {"attention", "recurrent"}:
        return layer.is_attention == (block == "attention")
    return block != "mlp" or layer.mlp is not None


def test_every_family_has_a_row_and_every_row_a_family() -> None:
    assert list(ROWS) == list(FAMILIES)


def test_every_parity_case_stands_in_the_row_of_its_architecture() -> None:
    listed = {case: name for name, row in ROWS.items() for case in row.cases}
    assert listed == {name: architecture_of(case) for name, case in CASES.items()}
    assert all(row.cases for row in ROWS.values())


def test_the_formats_of_a_row_are_what_its_model_type_is_taken_for() -> None:
    for name, row in ROWS.items():
        found = detect_formats(None, model_type=FAMILIES[name].model_type)
        tool, reasoning = found.tool_format or "none", found.reasoning_format or "none"
        assert row.formats == f"{tool}, {reasoning}", name


def test_the_native_blocks_of_a_row_are_those_that_the_kernels_cover() -> None:
    for name, row in ROWS.items():
        specs = {case: spec_of(CASES[case]) for case in row.cases}
        native = native_blocks(list(specs.values()))
        if native != "all":
            whole = [f"`{case}`" for case, spec in specs.items() if native_blocks([spec]) == "all"]
            native += f" ({', '.join(whole)})" if whole else ""
        assert row.native == native, name


def test_the_gguf_files_of_a_row_are_those_that_are_read() -> None:
    for name, row in ROWS.items():
        assert row.gguf == gguf_names(name), name


def test_every_family_of_gguf_files_stands_in_a_row() -> None:
    named = {name for row in ROWS.values() for name in re.findall(r"`([^`]+)`", row.gguf)}
    assert named == GGUF_FAMILIES.keys() - {name for name, _ in ENCODERS}


def test_those_of_which_no_gguf_file_is_read_are_named() -> None:
    """README says of whom GGUF isn't served by this list."""
    page = (PAGE.parent / "gguf.md").read_text(encoding="utf-8")
    absent = [f"`{name}`" for name, row in ROWS.items() if row.gguf == "–"]
    assert f"no GGUF file: {', '.join(absent)}, and the encoders that aren't above." in " ".join(
        page.split()
    )
    readme = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    number = {4: "four", 5: "five", 6: "six", 7: "seven"}[len(absent)]
    assert f"but for [{number} architectures](docs/gguf.md#families)" in " ".join(readme.split())


PARITY = read_page((PAGE.parent / "measurements" / "parity.md").read_text(encoding="utf-8"))


def test_the_agreement_of_a_row_is_the_least_that_was_measured_of_its_cases() -> None:
    for name, row in ROWS.items():
        assert row.agreement == agreement(row.cases, PARITY), name
        assert row.agreement.split()[0] in ("100", "–"), name


EVERYDAY = {
    *("Llama 3.2 1B", "Gemma 3 270M", "Granite 4.0 H Micro", "Mixtral 8x7B", "gpt-oss 20b"),
    "DeepSeek V2 Lite",
}
"""One model of each kind of cache and of experts; to declare all of them takes half a minute."""


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=() if model.name in EVERYDAY else pytest.mark.long)
        for model in PUBLISHED
    ],
    ids=lambda model: model.name,
)
def test_the_memory_of_a_published_model_is_what_an_engine_would_ask_for(
    model: PublishedModel,
) -> None:
    graphs = declared(model)
    assert {graph.num_parameters for graph in graphs.values()} == {model.num_parameters}
    assert memory_row(model, graphs) in TEXT.splitlines()


def test_the_table_of_memory_has_those_models_and_no_others() -> None:
    table = re.search(r"^\| model \|.+?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    assert table is not None
    listed = [line.split(" | ")[0].removeprefix("| ") for line in table[0].splitlines()[2:-1]]
    assert listed == [model.name for model in PUBLISHED]


def test_the_page_is_written_as_it_is() -> None:
    """The columns that are written, without the table that takes a while to compute."""
    assert written(TEXT, PARITY, memory=None) == TEXT
