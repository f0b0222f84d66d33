"""Secrets are compared in constant time: `==` ends at the first byte that differs, and tells it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("auth_worker", "gateway/http", "gateway/request/callers", "gateway/request/idempotency")
SECRET_WORDS = ("digest", "secret", "signature", "hmac", "presented", "token_hash")
FINE = {
    # Hashes that whoever may read the audit log and the ledger has, and nobody shows to get in.
    ("auth_worker/auditing/money_check.py", "group_digest(digests) != detail['digest']"),
    # The database compares them: it finds a row by the digest of a key, which is no secret itself.
    ("auth_worker/storage/key_table.py", "_columns.digest == key.digest"),
    # A name of a column, and the form of a token.
    ("auth_worker/storage/resource_table.py", "name == 'secret'"),
    ("gateway/http/access/presented.py", "presented.count('.') == 2"),
}
COMPARING = {
    "auth_worker/principals/keys.py",
    "auth_worker/principals/tokens.py",
    "auth_worker/records/audit_signing.py",
    "auth_worker/serving/token_desk.py",
    "gateway/request/idempotency/sealing.py",
}
"""Who compares what somebody showed with what is kept."""


def sources() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def compared(tree: ast.AST) -> Iterator[str]:
    """Every `==` and `!=` with a side that is named like a secret."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        if not any(isinstance(one, ast.Eq | ast.NotEq) for one in node.ops):
            continue
        for side in (node.left, *node.comparators):
            text = ast.unparse(side)
            if text.startswith("len(") or text.isupper():
                continue
            name = side.attr if isinstance(side, ast.Attribute) else text
            if any(word in name.lower() for word in SECRET_WORDS):
                yield ast.unparse(node)


def test_no_secret_is_compared_by_a_comparison_that_ends_early() -> None:
    found = {
        (str(path.relative_to(ROOT)), text)
        for path in sources()
        for text in compared(ast.parse(path.read_text()))
    }
    assert found == FINE


def test_whoever_compares_secrets_does_so_in_constant_time() -> None:
    calls = {
        str(path.relative_to(ROOT)) for path in sources() if "compare_digest(" in path.read_text()
    }
    assert calls == COMPARING


def test_such_comparisons_would_be_found() -> None:
    for wrong in ("key.digest == digest", "secret != given", "a.signature == b"):
        assert list(compared(ast.parse(wrong))) != []
