"""Large packages that some tests compare with, imported when they are first used: each process of a
run collects all tests, and few processes use these, which take seven seconds."""

import importlib
from typing import Any


class _Late:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


torch: Any = _Late("torch")
safetensors_torch: Any = _Late("safetensors.torch")
transformers: Any = _Late("transformers")
mxfp4: Any = _Late("transformers.integrations.mxfp4")
finegrained_fp8: Any = _Late("transformers.integrations.finegrained_fp8")
modeling_rope_utils: Any = _Late("transformers.modeling_rope_utils")
anthropic: Any = _Late("anthropic")
mcp: Any = _Late("mcp")
kubernetes_validate: Any = _Late("kubernetes_validate")
