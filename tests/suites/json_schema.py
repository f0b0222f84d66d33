"""JSON schemas through the engine's own grammars: a standard's test suite, and real schemas.

A schema is compiled or refused. If it is compiled, each valid instance, written as the engine
writes JSON, must be accepted token by token and be whole at its end, and no invalid one may be.
Where a keyword is left to the model, and named, invalid instances are counted apart; so are
instances that JSON can't write in one way (1.0 for an integer), or that only annotations forbid.
Random sentences of a schema must be valid. What is otherwise has its reason in
`json_schema_reasons.py`, or the suite fails.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped]

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.compiler import CompiledGrammar, GrammarCompiler
from protocol.wire.messages import Grammar
from tests.fakes.grammar_texts import compiler_for, random_walk
from tests.fakes.tiny_tokenizers import byte_level_tokenizer
from tests.suites.json_schema_reasons import FIRST, why_refused, why_wrong
from tests.suites.report import SuiteReport

DRAFT_7: Final = "http://json-schema.org/draft-07/schema#"
# What one whose writer can't foresee members may put anywhere: so many orders are tried.
_CONTENT: Final = frozenset(("contentMediaType", "contentEncoding", "contentSchema"))
_MAX_ORDERS: Final = 120
_MAX_INVALID_ORDERS: Final = 8
_MAX_ORDERED: Final = 4
_NUM_SENTENCES: Final = 2
_COLUMNS: Final = (
    *("set", "schemas", "compiled", "nothing satisfies", "refused", "valid accepted"),
    *(
        "invalid accepted",
        "left to the model",
        "invalid accepted there",
        "sentences valid",
        "apart",
    ),
)
_COMPARED: Final = ("set", "compiled", "valid accepted", "invalid accepted", "sentences valid")


@dataclass(frozen=True, slots=True)
class Case:
    """One schema with its instances."""

    name: str
    schema: Any
    tests: Sequence[dict[str, Any]]


@dataclass(slots=True)
class Figures:
    """What a set of schemas showed.

    Attributes:
        counts: By column.
        refusals: Reasons, with how many schemas each.
        keywords: Those left to the model, with how many schemas each.
        valid_refused: Reasons for valid instances that were refused, with how many each.
        wrong_sentences: Reasons for sentences that another validator finds invalid, likewise.
        wrong: What must not be: invalid instances that were accepted although every keyword is
            enforced, and what is refused or wrong without a reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    keywords: Counter[str] = field(default_factory=Counter)
    valid_refused: Counter[str] = field(default_factory=Counter)
    wrong_sentences: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def row(self, name: str) -> list[str]:
        """The table's row."""
        counts = self.counts
        return [
            name,
            str(counts["schemas"]),
            f"{counts['compiled']} ({_share(counts['compiled'], counts['schemas'])})",
            str(counts["never"]),
            str(sum(self.refusals.values())),
            _of(counts["valid_ok"], counts["valid"]),
            _of(counts["invalid_ok"], counts["invalid"]),
            str(counts["left"]),
            _of(counts["left_invalid_ok"], counts["left_invalid"]),
            _of(counts["sentences_ok"], counts["sentences"]),
            str(counts["apart"]),
        ]

    def compared(self, name: str, first: Sequence[str]) -> list[str]:
        """The row of the table that compares with the first report."""
        counts = self.counts
        now = (
            _of(counts["compiled"], counts["schemas"]),
            _of(counts["valid_ok"], counts["valid"]),
            _of(counts["invalid_ok"], counts["invalid"]),
            _of(counts["sentences_ok"], counts["sentences"]),
        )
        return [name, *(f"{old} → {new}" for old, new in zip(first, now, strict=True))]


def run(data: Path) -> list[SuiteReport]:
    """All sets; skipped where the data isn't there."""
    report = SuiteReport("JSON schemas", _COLUMNS)
    compared = SuiteReport("JSON schemas: the first report (2026-11-28) and now", _COMPARED)
    compared.notes += [
        "Before the grammars became rules of ours (commit `ebeb6c9`) 169 of the 383 schemas of"
        " 2020-12 compiled, and 82.8 % of 600 real ones; no invalid instance was accepted."
    ]
    folder = data / "json-schema"
    if not folder.is_dir():
        report.skipped = f"there is no {folder}."
        return [report]
    standard = folder / "test-suite" / "tests"
    tokenizer = byte_level_tokenizer()
    with compiler_for(tokenizer) as compiler:
        for name, cases in (
            (
                "JSON-Schema-Test-Suite 2020-12",
                suite(standard / "draft2020-12", None, is_optional=False),
            ),
            ("the same, optional", suite(standard / "draft2020-12", None, is_optional=True)),
            ("JSON-Schema-Test-Suite 7", suite(standard / "draft7", DRAFT_7, is_optional=False)),
            ("the same, optional", suite(standard / "draft7", DRAFT_7, is_optional=True)),
            ("real schemas", sample(folder / "sample")),
        ):
            figures = Figures()
            for case in cases:
                _judge(case, compiler, figures)
            report.rows.append(figures.row(name))
            compared.rows.append(figures.compared(name, FIRST[len(compared.rows)]))
            report.notes += _notes(name, figures)
            report.has_failed = report.has_failed or bool(figures.wrong)
    return [report, compared]


def suite(folder: Path, dialect: str | None, *, is_optional: bool) -> Iterator[Case]:
    """The schemas of one draft; optional ones are those of formats and corner cases."""
    for path in sorted(folder.rglob("*.json")):
        if ("optional" in path.relative_to(folder).parts) is not is_optional:
            continue
        for group in json.loads(path.read_text(encoding="utf-8")):
            schema = group["schema"]
            if dialect is not None and isinstance(schema, dict):
                schema = {"$schema": dialect, **schema}
            yield Case(f"{path.stem}: {group['description']}", schema, group["tests"])


def sample(folder: Path) -> Iterator[Case]:
    """Real schemas of ten groups."""
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        yield Case(path.stem, content["schema"], content["tests"])


def _judge(case: Case, compiler: GrammarCompiler, figures: Figures) -> None:
    counts = figures.counts
    counts["schemas"] += 1
    try:
        grammar = Grammar(kind="json_schema", source=json.dumps(case.schema))
        compiled = compiler.compile(grammar)
    except UnsupportedGrammarError as error:
        if "no value is valid" in error.message and not any(one["valid"] for one in case.tests):
            counts["never"] += 1
        else:
            figures.refusals[error.message[:120]] += 1
        return
    counts["compiled"] += 1
    left = getattr(compiled.start(jumps=False), "unenforced", ())
    counts["left"] += bool(left)
    figures.keywords.update({place.rsplit("/", 1)[-1] for place in left})
    for test in case.tests:
        has_two = test["valid"] and _has_two_spellings(test["data"])
        if has_two or (not test["valid"] and _is_annotated(case.schema)):
            counts["apart"] += 1
            continue
        max_orders = _MAX_ORDERS if test["valid"] else _MAX_INVALID_ORDERS
        is_accepted = _accepts_written(compiled, case.schema, test["data"], max_orders=max_orders)
        kind = "valid" if test["valid"] else "left_invalid" if left else "invalid"
        counts[kind] += 1
        counts[f"{kind}_ok"] += is_accepted
        told = f"{case.name}: {json.dumps(test['data'])[:100]}"
        if kind == "invalid" and is_accepted:
            figures.wrong.append(f"accepted although invalid: {told}")
        elif kind == "valid" and not is_accepted:
            reason = why_refused(case.name, test.get("description", ""), has_left=bool(left))
            if reason is None:
                figures.wrong.append(f"refused although valid: {told}")
            else:
                figures.valid_refused[reason] += 1
    if not left and isinstance(case.schema, dict):
        _try_sentences(case, compiled, figures)


def _try_sentences(case: Case, compiled: CompiledGrammar, figures: Figures) -> None:
    """Random sentences, held to the schema by another validator where that can read it."""
    tokenizer = byte_level_tokenizer()
    try:
        validator = jsonschema.validators.validator_for(case.schema)(case.schema)
    except Exception:  # noqa: BLE001 - whatever it can't read
        return
    for seed in range(_NUM_SENTENCES):
        constraint = compiled.start(jumps=True)
        token_ids, is_whole = random_walk(constraint, tokenizer.eos_token_ids, seed=seed)
        if not is_whole:
            continue
        try:
            value = json.loads(tokenizer.decode(token_ids))
            is_valid = validator.is_valid(value)
        except Exception:  # noqa: BLE001 - its own references and patterns may fail
            continue
        figures.counts["sentences"] += 1
        figures.counts["sentences_ok"] += is_valid
        reason = None if is_valid else why_wrong(case.name)
        if reason is not None:
            figures.wrong_sentences[reason] += 1
        elif not is_valid:
            figures.wrong.append(
                f"written although invalid: {case.name}: {json.dumps(value)[:100]}"
            )


def _accepts_written(
    compiled: CompiledGrammar, schema: Any, instance: Any, *, max_orders: int
) -> bool:
    """Whether an instance is accepted as the engine writes it, or in another order of members."""
    orders = itertools.islice(_orders(instance), max_orders)
    ways = (_arranged(instance, [schema], schema), *orders)
    written = (json.dumps(one, ensure_ascii=False) for one in ways)
    return any(_accepts(compiled, text) for text in dict.fromkeys(written))


def _accepts(compiled: CompiledGrammar, text: str) -> bool:
    # At once, not one by one through the constraint: it is the same, and minutes less.
    matcher = compiled.start(jumps=False)._matcher
    try:
        token_ids = list(text.encode())
    except UnicodeEncodeError:
        return False
    return bool(matcher.try_consume_tokens(token_ids) == len(token_ids)) and matcher.is_accepting()


def _is_annotated(schema: Any) -> bool:
    """Whether content keywords stand in a schema, which are annotations for us as for the
    standard."""
    return isinstance(schema, dict) and not _CONTENT.isdisjoint(schema)


def _has_two_spellings(value: Any) -> bool:
    if isinstance(value, float):
        return value == int(value)
    if isinstance(value, list):
        return any(map(_has_two_spellings, value))
    return isinstance(value, dict) and any(map(_has_two_spellings, value.values()))


def _orders(value: Any) -> Iterator[Any]:
    """A value with the members of its small objects in every order."""
    if isinstance(value, dict):
        # A few of each: the orders of nested objects multiply beyond any memory.
        inner = [[(name, one) for one in _few_orders(item)] for name, item in value.items()]
        is_small = len(inner) <= _MAX_ORDERED
        for order in itertools.permutations(inner) if is_small else (inner,):
            for members in itertools.product(*order):
                yield dict(members)
    elif isinstance(value, list):
        yield from map(list, itertools.product(*map(_few_orders, value)))
    else:
        yield value


def _few_orders(value: Any) -> list[Any]:
    return list(itertools.islice(_orders(value), _MAX_ORDERS))


def _arranged(value: Any, schemas: list[Any], root: Any) -> Any:
    """A value with its members in the order in which its schemas name them.

    Of alternatives the first one that names all of its members has the order.
    """
    members, items, orders = _described(schemas, root)
    if isinstance(value, dict):
        order = next((one for one in orders if value.keys() <= set(one)), list(members))
        names = [name for name in order if name in value]
        names += [name for name in value if name not in members]
        others = members.get("", [])
        return {name: _arranged(value[name], members.get(name, others), root) for name in names}
    if isinstance(value, list):
        return [_arranged(item, items, root) for item in value]
    return value


def _described(
    schemas: list[Any], root: Any
) -> tuple[dict[str, list[Any]], list[Any], list[list[str]]]:
    """Schemas of members by name (those of any other under the empty one), of items, and orders."""
    members: dict[str, list[Any]] = {}
    orders: list[list[str]] = []
    items: list[Any] = []
    waiting, seen = list(schemas), set[int]()
    required: list[str] = []
    while waiting:
        schema = waiting.pop(0)
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        seen.add(id(schema))
        orders.append(list(_mapping(schema, "properties")))
        for name, inner in _mapping(schema, "properties").items():
            members.setdefault(name, []).append(inner)
        required += schema["required"] if isinstance(schema.get("required"), list) else []
        waiting.append(_local(schema.get("$ref"), root))
        for keyword in ("allOf", "anyOf", "oneOf"):
            waiting += schema[keyword] if isinstance(schema.get(keyword), list) else []
        waiting += [schema.get(keyword) for keyword in ("if", "then", "else")]
        for keyword in ("dependentSchemas", "dependencies"):
            waiting += _mapping(schema, keyword).values()
        for keyword in ("items", "prefixItems"):
            inner = schema.get(keyword)
            items += inner if isinstance(inner, list) else [inner]
        others = [
            schema.get("additionalProperties"),
            *_mapping(schema, "patternProperties").values(),
        ]
        members.setdefault("", []).extend(others)
    for name in required:
        members.setdefault(name, [])
    members[""] = members.pop("", [])
    return members, items, orders


def _mapping(schema: dict[str, Any], keyword: str) -> dict[str, Any]:
    value = schema.get(keyword)
    return value if isinstance(value, dict) else {}


def _local(reference: Any, root: Any) -> Any:
    """What a reference by pointer goes to; None for any other."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    target = root
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        target = target.get(key) if isinstance(target, dict) else None
    return target


def _notes(name: str, figures: Figures) -> list[str]:
    notes = []
    if figures.keywords:
        listed = ", ".join(f"`{key}` {number}" for key, number in figures.keywords.most_common(12))
        notes.append(f"{name}, left to the model (schemas): {listed}.")
    notes += [
        f"{name}, refused ({number}): {reason}"
        for reason, number in figures.refusals.most_common(12)
    ]
    notes += [
        f"{name}, valid and refused ({number}): {reason}."
        for reason, number in figures.valid_refused.most_common()
    ]
    notes += [
        f"{name}, sentences that another validator refuses ({number}): {reason}."
        for reason, number in figures.wrong_sentences.most_common()
    ]
    notes += [f"{name}, **{wrong}**" for wrong in figures.wrong]
    return notes


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole}"
