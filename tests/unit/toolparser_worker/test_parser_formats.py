"""The registry of formats, and that declarations are data."""

import ast
from pathlib import Path

import pytest

from protocol.errors import ErrorCode
from toolparser_worker import formats
from toolparser_worker.errors import UnknownFormatError
from toolparser_worker.formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    find_reasoning_format,
    find_tool_format,
)
from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat

DECLARATIONS = sorted(
    path for path in Path(formats.__file__).parent.glob("*.py") if path.stem != "__init__"
)
ALLOWED = (ast.Expr, ast.ImportFrom, ast.Assign)


@pytest.mark.parametrize("path", DECLARATIONS, ids=lambda path: path.stem)
def test_a_declaration_holds_data_and_no_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert all(isinstance(node, ALLOWED) for node in tree.body)
    for node in ast.walk(tree):
        assert not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef | ast.For | ast.If)
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            assert node.func.id in {"ToolFormat", "ReasoningFormat", "JsonObjectBody"}


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "llama4_json"])
def test_tool_formats_are_found_by_name_and_alias(name: str) -> None:
    assert isinstance(find_tool_format(name), ToolFormat)
    assert name in TOOL_FORMATS


@pytest.mark.parametrize("name", ["think", "qwen3", "deepseek_r1", "deepseek-r1"])
def test_reasoning_formats_are_found_by_name_and_alias(name: str) -> None:
    assert isinstance(find_reasoning_format(name), ReasoningFormat)
    assert name in REASONING_FORMATS


@pytest.mark.parametrize("name", [None, "none"])
def test_none_is_no_format(name: str | None) -> None:
    assert find_tool_format(name) is None
    assert find_reasoning_format(name) is None


def test_an_unknown_format_names_the_closest_and_all_known_ones() -> None:
    with pytest.raises(UnknownFormatError, match="Did you mean 'hermes'") as caught:
        find_tool_format("hermess")
    assert "llama3_json" in caught.value.message
    assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_a_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(UnknownFormatError) as caught:
        find_reasoning_format("x" * 10_000)
    assert "Did you mean" not in caught.value.message
    assert len(caught.value.message) < 400
