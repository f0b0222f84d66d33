"""What bodies share that say settings of a key or of another resource."""

from typing import Annotated, Any

from pydantic import Field

from gateway.http.schemas.base.body import RequestModel

MAX_LIMIT = 2**53 - 1
LAST_SECOND = 253_402_300_799
"""The end of year 9999, in Unix seconds: no calendar goes further."""

Amount = Annotated[int, Field(ge=0, le=MAX_LIMIT)]
Globs = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=100)]
Tags = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=32)]
Metadata = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    Field(max_length=16),
]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Id = Annotated[str, Field(max_length=64)]


class SettingsModel(RequestModel):
    """Settings by name; what isn't sent stays, and null is the same as the default."""

    def given(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        """The names of the fields that were sent, and the values of those that aren't null."""
        values: dict[str, Any] = {}
        for name in self.model_fields_set:
            value = getattr(self, name)
            if value is not None:
                values[name] = tuple(value) if isinstance(value, list) else value
        return tuple(sorted(self.model_fields_set)), values
