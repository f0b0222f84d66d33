"""Every family that is served."""

from engine_worker.compute.models.families import (
    cohere,
    deepseek,
    gemma,
    glm,
    gpt2,
    gpt_oss,
    granite,
    lfm2,
    llama,
    mistral,
    moe,
    olmo,
    phi,
)
from engine_worker.compute.models.families.family import Family

_FILES = (
    llama,
    mistral,
    gemma,
    phi,
    granite,
    olmo,
    glm,
    cohere,
    gpt2,
    moe,
    gpt_oss,
    lfm2,
    deepseek,
)

FAMILIES: dict[str, Family] = {
    family.architecture: family for file in _FILES for family in file.FAMILIES
}
"""By the name in `architectures`, in the order in which they are listed for people."""
