"""How test processes compile in `make test`, and how engines do."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final

import pytest

EVERYDAY: Final = "not long and not parity"
"""The option `-m` of `make test`."""
_HAS_OLD_EMITTERS: Final = version("jaxlib").startswith("0.10.")
"""Later ones know nothing of the flag, and XLA ends a process that is given an unknown one."""
QUICK: Final = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        *(["--xla_cpu_use_fusion_emitters=false"] if _HAS_OLD_EMITTERS else []),
    ]
)
"""XLA's flags for programs that run once or twice: a fifth of the time to compile."""
AS_ENGINES: Final[dict[str, str | bool | int]] = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_parallel_codegen_split_count": 32,
    **({"xla_cpu_use_fusion_emitters": True} if _HAS_OLD_EMITTERS else {}),
}
"""XLA's usual values of the same, as options of one program: where the very bits are the test."""


def two_lengths(max_tokens: int, *_: Any) -> tuple[Any, ...]:
    """Stands in for `batch_shapes` of texts: fewer programs to compile than users' engines have."""
    from engine_worker.embedding.row_programs import BatchShape

    return tuple(BatchShape(rows, length) for length in (32, max_tokens) for rows in (1, 4))


@contextmanager
def few_decode_programs() -> Iterator[None]:
    """Runners that are made meanwhile decode with programs of one row and of all, none between."""
    from engine_worker.compute.runner import buckets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "DECODE_ROWS", (1,))
        yield


@contextmanager
def compile_as_engines() -> Iterator[None]:
    """What is compiled meanwhile is compiled as engines do; what was before is not used."""
    import jax
    from jax._src import compiler

    options_of = compiler.get_compile_options

    def get_compile_options(*arguments: Any, **options: Any) -> Any:
        more = options.get("env_options_overrides") or {}
        options["env_options_overrides"] = {**AS_ENGINES, **more}
        return options_of(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        # jax takes such options for one program only, and these make dozens.
        patch.setattr(compiler, "get_compile_options", get_compile_options)
        jax.clear_caches()  # type: ignore[no-untyped-call]
        yield
    jax.clear_caches()  # type: ignore[no-untyped-call]
