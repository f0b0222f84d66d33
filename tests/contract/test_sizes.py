"""Files, classes and functions stay small enough to be read at once, or say why they don't.

The product's files, classes and functions, the files of tests, tools and benchmarks, and all files
of C++.

A class with more methods than most says in its docstring that it is long, because of what: "It is
long because …". `REASONS` has those that say so nowhere else, and files.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache

from tests.contract.test_imports import ROOT
from tests.fakes.source_trees import tree_of

PACKAGES = (
    "auth_worker",
    "engine_worker",
    "gateway",
    "penstock",
    "protocol",
    "toolparser_worker",
)
BESIDE = ("benchmarks", "examples", "tests", "tools")
"""Held to the length of a file only: a test reads from its first line to its last."""
MAX_LINES = 500
MAX_METHODS = 15
MAX_FUNCTION_LINES = 100
_CPP = (".h", ".cc")
_SAID = re.compile(r"\blong because\b")

REASONS = {
    "benchmarks/auth.py": "one table: each floor beside what is measured against it",
    "auth_worker/administration/key_administration.py Administration": "a method a command",
    "auth_worker/administration/resource_administration.py": "the rules of every kind of resource",
    "auth_worker/administration/resource_administration.py ResourceAdministration": (
        "a method a kind of resource and of change"
    ),
    "auth_worker/decisions/authority.py": "the class below",
    "auth_worker/decisions/authority.py Authority": "a method a command; decisions are in parts",
    "auth_worker/decisions/meter_table.py": "the class below",
    "auth_worker/decisions/meter_table.py MeterTable": "all that changes the numbers of limits",
    "auth_worker/decisions/meters.py SlidingMeter": "a meter's questions, each of a line or two",
    "auth_worker/decisions/open_leases.py": "the class below",
    "auth_worker/decisions/plans.py Plan": "a question about a plan each, of a line or two",
    "auth_worker/records/operations.py": "every record that is written, declared once",
    "auth_worker/serving/handler.py AuthHandler": "a method a command",
    "auth_worker/storage/postgres_database.py PostgresDatabase": "the methods of `Database`",
    "auth_worker/storage/resource_table.py ResourceTable": "a query each",
    "auth_worker/storage/sql_store.py SqlStore": "a record's write each",
    "engine_worker/compute/backends/cpu_native/backend.py": "the class below",
    "engine_worker/compute/backends/cpu_native/backend.py CpuNativeBackend": (
        "the methods of `Backend`, a block each"
    ),
    "engine_worker/compute/backends/cpu_native/calls.py": "one declaration a native call",
    "engine_worker/compute/backends/cpu_native/src/attention.h": (
        "one class: a softmax over pages, whose steps share its scores and sums"
    ),
    "engine_worker/compute/backends/cpu_native/src/xla_ffi_c_api.h": "XLA's own header, as it is",
    "engine_worker/compute/models/config_fields.py ConfigFields": "a reader each kind of value",
    "engine_worker/conversion/restricted_pickle.py _Reader": "a method an opcode",
    "engine_worker/core/choice/batch.py ModelRunner": "the port between engine and device",
    "engine_worker/core/choice_progress.py ChoiceProgress": "all that can become of a choice",
    "engine_worker/core/engine.py Engine": "what may be asked of an engine, and each step's parts",
    "engine_worker/core/scheduling/block_pool.py BlockPool": "a question about blocks each",
    "engine_worker/core/scoring.py Scoring": "each step of a Score's life, and its ends",
    "engine_worker/embedding/queue.py TextQueue": "each step of a command's way, in one lock",
    "engine_worker/grammar/constraint.py Constraint": "questions about one state, a few lines each",
    "engine_worker/grammar/json_schema/reader.py": "the class below",
    "engine_worker/grammar/json_schema/reader.py SchemaReader": "a method a keyword",
    "engine_worker/text/tokenizer.py Tokenizer": "a question each, of a few lines",
    "gateway/config.py": "every setting of the gateway, declared once",
    "tests/fakes/published_models.py": "one table: the config of each published model",
    "tests/fakes/block_oracle.py": "blocks of every kind, computed again in float64",
    "tests/fakes/fake_workers.py": "a scripted worker a role, and what they share",
    "tests/fakes/gguf_newer_families.py": "a config of each family, and what converting does to it",
    "tests/fakes/sample_bodies.py": "a good body of every route",
    "tests/unit/engine_worker/embedding/test_embedding_queue.py": "every turn of a queue",
    "tests/integration/test_engine_failover.py": "every way of an engine to be lost",
    "tests/integration/test_hosted_tools.py": "every way of a call, at one deployment",
    "tests/integration/test_worker_life.py": "every step of a worker's life, over real sockets",
    "tests/unit/auth_worker/test_key_life.py": "every command about keys, on one bench",
    "tests/unit/auth_worker/test_postgres_database.py": "every way of a server to fail",
    "tests/unit/engine_worker/compute/models/test_hf_config.py": "what each family's config says",
    "tests/unit/engine_worker/core/scheduling/test_scheduler_model.py": (
        "a scheduler and a plain model of it, compared step by step"
    ),
    "tests/unit/engine_worker/core/test_engine.py": "all that may be asked of an engine",
    "tests/unit/engine_worker/grammar/test_json_schema.py": "a table of every keyword",
    "tests/unit/engine_worker/serving/test_handler_and_step_loop.py": (
        "commands and the loop that carries them out, which share one harness"
    ),
    "tests/unit/gateway/request/kinds/test_questions.py": "every kind of question to an engine",
    "tests/unit/gateway/storage/test_store.py": "what is kept, for whom, how much, who may write",
    "tests/unit/gateway/workers/test_worker_links.py": "the three links, over one noted wire",
    "tests/unit/toolparser_worker/test_parser_handler.py": "every command, on one handler",
    "toolparser_worker/machine/call_states.py CallStates": "a method a state",
}
"""Path, or path and class, and why it is longer than most."""


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def too_long() -> dict[str, str]:
    """What is longer than it may be without a reason, and how long."""
    return dict(_too_long())


def _too_long() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            yield from too_long_in(path.relative_to(ROOT).as_posix(), text)
    files = [path for folder in BESIDE for path in (ROOT / folder).rglob("*.py")]
    for folder in (*PACKAGES, *BESIDE):
        files += [path for end in _CPP for path in (ROOT / folder).rglob(f"*{end}")]
    for path in files:
        yield from too_long_file(
            path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        )


def too_long_file(name: str, text: str) -> Iterator[tuple[str, str]]:
    """The file itself, when it is too long."""
    num_lines = text.count("\n")
    if num_lines > MAX_LINES:
        yield name, f"{num_lines} lines"


def too_long_in(name: str, text: str) -> Iterator[tuple[str, str]]:
    """The same in one file, and its classes and functions."""
    yield from too_long_file(name, text)
    for node in ast.walk(tree_of(text)):
        if isinstance(node, ast.ClassDef):
            methods = [one for one in node.body if isinstance(one, _FUNCTIONS)]
            if len(methods) > MAX_METHODS and not _SAID.search(_words(node)):
                yield f"{name} {node.name}", f"{len(methods)} methods"
        elif isinstance(node, _FUNCTIONS):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{name} {node.name}", f"{length} lines"


def _words(node: ast.ClassDef) -> str:
    """A docstring in one line."""
    return " ".join((ast.get_docstring(node) or "").split())


def test_what_is_long_says_why() -> None:
    unexplained = {name: size for name, size in too_long().items() if name not in REASONS}
    assert not unexplained, "split it along one reason to change, or say why it is long"


def test_reasons_are_given_for_what_is_there_and_long() -> None:
    for name in REASONS:
        assert name in too_long(), f"{name} needs no reason any more"
        place, _, class_name = name.partition(" ")
        assert (ROOT / place).is_file(), name
        text = (ROOT / place).read_text(encoding="utf-8")
        assert not class_name or f"class {class_name}" in text, name


def test_a_class_with_many_methods_and_no_reason_is_found() -> None:
    methods = "\n".join(f"    def m{number}(self): ..." for number in range(MAX_METHODS + 1))
    plain = f'class A:\n    """Short."""\n{methods}\n'
    assert list(too_long_in("a.py", plain)) == [("a.py A", f"{MAX_METHODS + 1} methods")]
    explained = f'class A:\n    """It is long\n    because of that."""\n{methods}\n'
    assert not list(too_long_in("a.py", explained))
    body = "    pass\n" * MAX_FUNCTION_LINES
    assert list(too_long_in("a.py", f"def f():\n{body}")) == [("a.py f", "101 lines")]
    assert list(too_long_in("a.py", "\n" * (MAX_LINES + 1))) == [("a.py", "501 lines")]
