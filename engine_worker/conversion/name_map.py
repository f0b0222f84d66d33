"""A mapping file: how the tensors of a custom model are called in the architecture that serves it.

    {
      "root": "model",
      "config": {"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, …},
      "tensors": {
        "tok.weight": "model.embed_tokens.weight",
        "blocks.{n}.attn.qkv.weight": {
          "to": [
            "model.layers.{n}.self_attn.q_proj.weight",
            "model.layers.{n}.self_attn.k_proj.weight",
            "model.layers.{n}.self_attn.v_proj.weight"
          ],
          "rows": [2048, 512, 512]
        },
        "blocks.{n}.mlp.out.weight": {
          "to": "model.layers.{n}.mlp.down_proj.weight",
          "transpose": true
        },
        "blocks.{n}.attn.mask": null
      }
    }

`{n}` and other names in braces stand for whole numbers; null leaves a tensor out. A tensor that no
rule names keeps its name.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from engine_worker.errors import ModelConfigError

_MAX_BYTES: Final = 8 * 2**20
_MAX_RULES: Final = 10_000
_FIELD: Final = re.compile(r"\{([a-z_]+)\}")
_KEYS: Final = {"root", "config", "tensors"}


@dataclass(frozen=True, slots=True)
class Target:
    """What becomes of a tensor, or of some of its rows.

    Attributes:
        name: Its new one.
        rows: First row and the one behind the last, counted after `transpose`; None is all.
        transpose: Its last two axes change places.
    """

    name: str
    rows: tuple[int, int] | None = None
    transpose: bool = False


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class NameMap:
    """A mapping file, read.

    Attributes:
        root: Key of the dictionary of tensors in the PyTorch file; None finds it.
        config: Fields that go into `config.json`, before those of an existing one.
    """

    root: str | None
    config: Mapping[str, Any]
    _rules: tuple[_Rule, ...]

    def targets(self, name: str) -> Iterator[Target]:
        """What becomes of a tensor; nothing where it is left out."""
        for rule in self._rules:
            found = rule.pattern.fullmatch(name)
            if found is not None:
                for target in rule.targets:
                    parts = _FIELD.split(target.name)
                    parts[1::2] = [found[field] for field in parts[1::2]]
                    yield Target("".join(parts), target.rows, target.transpose)
                return
        yield Target(name)


NO_MAP: Final = NameMap(None, {}, ())


def read_map(path: Path) -> NameMap:
    """Reads a mapping file.

    Raises:
        ModelConfigError: It is missing, no JSON, or says something without a meaning.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelConfigError(f"{path}: larger than {_MAX_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict) or set(content) - _KEYS:
        raise ModelConfigError(f"{path}: must hold an object of {', '.join(sorted(_KEYS))}")
    root, config = content.get("root"), content.get("config", {})
    rules = content.get("tensors", {})
    if not (root is None or isinstance(root, str)) or not isinstance(config, dict):
        raise ModelConfigError(f"{path}: root must be a string, config an object")
    if not isinstance(rules, dict) or len(rules) > _MAX_RULES:
        raise ModelConfigError(f"{path}: tensors must be an object of at most {_MAX_RULES} rules")
    return NameMap(root, config, tuple(_rule(path, *item) for item in rules.items()))


def _rule(path: Path, source: str, told: Any) -> _Rule:
    given = told if isinstance(told, dict) else {"to": told}
    names = given.get("to")
    names = [] if names is None else names if isinstance(names, list) else [names]
    transpose, rows = given.get("transpose", False), given.get("rows")
    # No expression of the file's: names in braces are whole numbers, the rest is itself.
    parts = _FIELD.split(source)
    fields = set(parts[1::2])
    is_good = (
        not set(given) - {"to", "transpose", "rows"}
        and isinstance(transpose, bool)
        and all(isinstance(name, str) and set(_FIELD.findall(name)) <= fields for name in names)
        and len(fields) == len(parts[1::2])
        and (len(names) < 2 or rows is not None)
        and (rows is None or (isinstance(rows, list) and len(rows) == len(names)))
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in rows or ())
    )
    if not is_good:
        raise ModelConfigError(
            f"{path}: the rule {source!r:.120} must be a name, null, or an object of `to` (a name, "
            "or several with as many `rows`) and `transpose`, with its own fields in braces"
        )
    pattern = "".join(
        f"(?P<{part}>[0-9]{{1,6}})" if index % 2 else re.escape(part)
        for index, part in enumerate(parts)
    )
    ends = accumulate(rows or [0] * len(names))
    targets = tuple(
        Target(name, None if rows is None else (end - size, end), transpose)
        for name, end, size in zip(names, ends, rows or [0] * len(names), strict=True)
    )
    return _Rule(re.compile(pattern), targets)
