"""Regular expressions of the formats of strings; what they match has the format."""

from typing import Final

_MONTH_DAY: Final = (
    "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_LEAP_YEAR: Final = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DATE: Final = f"([0-9]{{4}}-{_MONTH_DAY}|{_LEAP_YEAR}-02-29)"
_OFFSET: Final = "([zZ]|[-+]([01][0-9]|2[0-3]):[0-5][0-9])"
# A leap second is the last one of a day in UTC; elsewhere it has other hours, which are left out.
_TIME: Final = (
    rf"(([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?{_OFFSET}"
    r"|23:59:60(\.[0-9]+)?([zZ]|[-+]00:00))"
)
_OCTET: Final = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4: Final = rf"{_OCTET}(\.{_OCTET}){{3}}"
_GROUP: Final = "[0-9a-fA-F]{1,4}"
_LAST: Final = f"({_GROUP}:{_GROUP}|{_IPV4})"
# RFC 4291 by how many groups stand before `::`.
_IPV6: Final = "|".join(
    (
        f"({_GROUP}:){{6}}{_LAST}",
        f"::({_GROUP}:){{5}}{_LAST}",
        f"({_GROUP})?::({_GROUP}:){{4}}{_LAST}",
        f"(({_GROUP}:){{0,1}}{_GROUP})?::({_GROUP}:){{3}}{_LAST}",
        f"(({_GROUP}:){{0,2}}{_GROUP})?::({_GROUP}:){{2}}{_LAST}",
        f"(({_GROUP}:){{0,3}}{_GROUP})?::{_GROUP}:{_LAST}",
        f"(({_GROUP}:){{0,4}}{_GROUP})?::{_LAST}",
        f"(({_GROUP}:){{0,5}}{_GROUP})?::{_GROUP}",
        f"(({_GROUP}:){{0,6}}{_GROUP})?::",
    )
)
# No `--` at the third and fourth place: labels in other scripts (RFC 5890) are left out.
_END: Final = "[a-zA-Z0-9]"
_INNER: Final = "[-a-zA-Z0-9]"
_LABEL: Final = (
    f"{_END}({_END}|{_INNER}{_END}|{_INNER}{_INNER}{_END}"
    f"|{_INNER}({_END}{_INNER}|-{_END}){_INNER}{{0,58}}{_END})?"
)

OWN_FORMATS: Final = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[tT]{_TIME}",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "json-pointer": "(/([^~/]|~[01])*)*",
    "relative-json-pointer": "(0|[1-9][0-9]*)(#|(/([^~/]|~[01])*)*)",
}
MAX_LENGTHS: Final = {"hostname": 253}
NATIVE_FORMATS: Final = frozenset({"duration", "email", "uuid", "uri"})
"""Those that llguidance knows exactly enough."""
UNDECIDED: Final = {
    "time": (":60",),
    "date-time": (":60",),
    "hostname": ("--",),
    "email": ('"', "["),
}
"""Parts of texts that may have a format although none like it is ever written."""
UNENFORCED_FORMATS: Final = frozenset(
    ["idn-email", "idn-hostname", "iri", "iri-reference", "regex", "uri-reference", "uri-template"]
)
"""Formats of JSON Schema that no regular expression here holds."""
FORMATS: Final = OWN_FORMATS.keys() | NATIVE_FORMATS | UNENFORCED_FORMATS
"""Those that say something; any other is an annotation."""
