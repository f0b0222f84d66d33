"""What becomes of each keyword of JSON Schema; docs/structured-outputs.md has it as a table."""

from enum import StrEnum
from typing import Final


class Treatment(StrEnum):
    """What is done about a keyword.

    `enforced`: always, or else it is named. `partly`: in the forms that the table tells; in others
    it is named and left to the model. `unenforced`: always so. `annotation`: says nothing about
    which values are valid.
    """

    ENFORCED = "enforced"
    PARTLY = "partly"
    UNENFORCED = "unenforced"
    ANNOTATION = "annotation"


_ENFORCED: Final = (
    "type enum const allOf properties required additionalProperties items prefixItems"
    " additionalItems minItems maxItems minLength maxLength"
)
_PARTLY: Final = (
    "$ref anyOf dependentRequired minimum maximum exclusiveMinimum exclusiveMaximum"
    " oneOf not if then else patternProperties propertyNames minProperties maxProperties"
    " dependentSchemas dependencies uniqueItems contains minContains pattern format multipleOf"
    " unevaluatedProperties unevaluatedItems $dynamicRef $recursiveRef"
)
_UNENFORCED: Final = "maxContains"
_ANNOTATIONS: Final = (
    "$schema $id id $anchor $dynamicAnchor $recursiveAnchor $vocabulary $comment $defs definitions"
    " title description default examples deprecated readOnly writeOnly contentEncoding"
    " contentMediaType contentSchema"
)

TREATMENTS: Final[dict[str, Treatment]] = {
    keyword: treatment
    for treatment, keywords in (
        (Treatment.ENFORCED, _ENFORCED),
        (Treatment.PARTLY, _PARTLY),
        (Treatment.UNENFORCED, _UNENFORCED),
        (Treatment.ANNOTATION, _ANNOTATIONS),
    )
    for keyword in keywords.split()
}
"""By keyword; any other is an annotation."""

SUBSCHEMA_KEYWORDS: Final = frozenset(
    [
        "additionalProperties",
        "items",
        "contains",
        "not",
        "if",
        "then",
        "else",
        "propertyNames",
        "additionalItems",
        "unevaluatedItems",
        "unevaluatedProperties",
        "contentSchema",
    ]
)
SUBSCHEMA_LISTS: Final = frozenset(["allOf", "anyOf", "oneOf", "prefixItems", "items"])
SUBSCHEMA_MAPS: Final = frozenset(
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"]
)
