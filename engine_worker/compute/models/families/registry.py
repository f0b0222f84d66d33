"""Every family that is served."""

from engine_worker.compute.models.families import gpt_oss, lfm2, llama, moe
from engine_worker.compute.models.families.family import Family

FAMILIES: dict[str, Family] = {
    family.architecture: family
    for families in (
        llama.FAMILIES,
        moe.FAMILIES,
        gpt_oss.FAMILIES,
        lfm2.FAMILIES,
    )
    for family in families
}
"""By the name in `architectures`, in the order in which they are listed for people."""
