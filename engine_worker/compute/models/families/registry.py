"""Every family that is served."""

from engine_worker.compute.models.families import (
    cohere,
    deepseek,
    gemma,
    gemma_nano,
    glm,
    gpt2,
    gpt_oss,
    granite,
    lfm2,
    llama,
    llama4,
    mamba,
    mamba_hybrids,
    mistral,
    moe,
    nemotron,
    olmo,
    olmo_hybrid,
    phi,
    qwen_hybrid,
    qwen_vision,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.families.outside import outside_families
from engine_worker.compute.models.spec import DecoderSpec

_FILES = (
    llama,
    qwen_vision,
    mistral,
    gemma,
    gemma_nano,
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
    qwen_hybrid,
    mamba,
    mamba_hybrids,
    nemotron,
    olmo_hybrid,
    llama4,
)

FAMILIES: dict[str, Family] = {
    family.architecture: family for file in _FILES for family in file.FAMILIES
}
"""By the name in `architectures`, in the order in which they are listed for people."""


def find_family(architecture: str) -> Family | None:
    """The family of an architecture: one of these, or one that an installed package brings.

    Raises:
        FamilyPackageError: None of these has it, and an installed package can't be loaded.
    """
    if architecture in FAMILIES:
        return FAMILIES[architecture]
    outside = outside_families().get(architecture)
    return None if outside is None else outside.family


def family_of(spec: DecoderSpec) -> Family:
    """The family that read a spec."""
    family = find_family(spec.architecture)
    assert family is not None, spec.architecture
    return family


def origin_of(architecture: str) -> str:
    """The package and version that an architecture's family comes from; empty for one of these."""
    return "" if architecture in FAMILIES else outside_families()[architecture].origin


def every_family() -> dict[str, Family]:
    """Those and these; errors as `find_family`."""
    return FAMILIES | {name: found.family for name, found in outside_families().items()}
