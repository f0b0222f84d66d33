"""A setting, declared once beside the field that it fills: name, kind, bounds, default, meaning.

    @dataclass(frozen=True)
    class Settings:
        max_queue: int = setting(
            whole_number("MAX_QUEUE", 512, minimum=1, meaning="requests that wait")
        )

    Settings, read: `read_settings(Settings, os.environ)`

Reading, checking, the options of `penstock serve`, the environment of its children and the tables
of docs/operations.md all come from the declaration. A bad value raises a ConfigurationError that
names the setting, the value and what would be good.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from protocol.errors import ConfigurationError
from protocol.runtime.setting_kinds import (
    Choice,
    FilePath,
    Kind,
    Number,
    Size,
    Switch,
    Text,
    UnfitValueError,
    WholeNumber,
    Words,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ValueT = TypeVar("ValueT")
DefaultT = TypeVar("DefaultT")
WordT = TypeVar("WordT", bound=str)
SettingsT = TypeVar("SettingsT", bound="DataclassInstance")

NO_DEFAULT = "none"
"""How the documentation writes the default of a setting that has none."""

_METADATA_KEY = "setting"
_UNSET: Any = object()


@dataclass(frozen=True)
class Setting(Generic[ValueT]):
    """One setting of one or more processes.

    Attributes:
        name: Its environment variable.
        kind: Its values.
        default: Its value while it is unset.
        meaning: For the documentation and `--help`: a phrase without capital and full stop.
        aliases: Other variables that are read when `name` is unset, first come first.
        option: Its option of `penstock serve`, such as `--tools/--no-tools`, or its argument.
        key: Its name in the file of `--config`; the option's with underscores unless given.
        shown_default: What the documentation says instead of `default`.
    """

    name: str
    kind: Kind[Any]
    default: ValueT
    meaning: str
    aliases: tuple[str, ...] = ()
    option: str = ""
    key: str = ""
    shown_default: str = ""

    def __post_init__(self) -> None:
        if not self.key and self.option.startswith("--"):
            object.__setattr__(self, "key", self.flag.removeprefix("--").replace("-", "_"))

    @property
    def flag(self) -> str:
        """What `penstock serve` calls it: the option that turns it on, the variable without one."""
        return self.option.split("/")[0] or self.name

    def find(self, environ: Mapping[str, str]) -> ValueT | None:
        """The value in a mapping such as `os.environ`; None when unset.

        An empty value counts as unset, because Compose hands unset variables on as empty ones.

        Raises:
            ConfigurationError: The value is wrong.
        """
        for variable in (self.name, *self.aliases):
            text = environ.get(variable, "").strip()
            if not text:
                continue
            try:
                return cast(ValueT, self.kind.parse(text))
            except UnfitValueError as error:
                raise ConfigurationError(
                    f"{self.name} must be {error.good}, not {error.value}."
                ) from None
        return None

    def read(self, environ: Mapping[str, str]) -> ValueT:
        """As `find`, with the default for what is unset.

        Raises:
            ConfigurationError: The value is wrong.
        """
        found = self.find(environ)
        if found is not None:
            return found
        default = self.default
        return cast(ValueT, in_home(default, self.name)) if isinstance(default, Path) else default

    def accept(self, value: object, name: str) -> ValueT:
        """The value of a file or an option that goes by `name`.

        Raises:
            ConfigurationError: The value is wrong.
        """
        try:
            return cast(ValueT, self.kind.accept(value))
        except UnfitValueError as error:
            if error.wrong:
                raise ConfigurationError(f"{name}: {error.value} {error.wrong}.") from None
            raise ConfigurationError(f"{name} must be {error.good}, not {error.value}.") from None

    def default_text(self) -> str:
        """The default, for people."""
        if self.shown_default:
            return self.shown_default
        return NO_DEFAULT if self.default in (None, ()) else self.kind.show(self.default)


@overload
def setting(declared: Setting[ValueT]) -> ValueT: ...
@overload
def setting(declared: Setting[ValueT], default: DefaultT) -> ValueT | DefaultT: ...
def setting(declared: Setting[Any], default: Any = _UNSET) -> Any:
    """The field of a dataclass that a setting fills.

    Args:
        declared: The setting.
        default: The field's, where this process has another one than the declaration.
    """
    value = declared.default if default is _UNSET else default
    metadata = {_METADATA_KEY: declared}
    if isinstance(value, Path):
        make = functools.partial(in_home, value, declared.name)
        return dataclasses.field(default_factory=make, metadata=metadata)
    return dataclasses.field(default=value, metadata=metadata)


def in_home(path: Path, name: str) -> Path:
    """A path with the home that it begins with.

    Args:
        path: As given, or a default.
        name: Of its setting.

    Raises:
        ConfigurationError: There is no such home, as where a container has no name for its user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigurationError(
            f"{name}: {str(path)!r} begins with a home that can't be found."
        ) from None


def declared_fields(
    settings: "DataclassInstance | type[DataclassInstance]",
) -> Iterator[tuple[str, Setting[Any]]]:
    """The fields of a dataclass that settings fill: name and declaration, in order."""
    for field in dataclasses.fields(settings):
        if _METADATA_KEY in field.metadata:
            yield field.name, field.metadata[_METADATA_KEY]


def fill_settings(
    cls: type[SettingsT], find: Callable[[Setting[Any]], Any | None], **given: Any
) -> SettingsT:
    """A settings object from wherever values lie.

    Args:
        cls: A dataclass with fields made by `setting`.
        find: The value of a setting; None takes the field's default.
        given: Values of fields that nothing has to be found for.
    """
    found = {name: find(declared) for name, declared in declared_fields(cls) if name not in given}
    return cls(**given, **{name: value for name, value in found.items() if value is not None})


def read_settings(cls: type[SettingsT], environ: Mapping[str, str], **given: Any) -> SettingsT:
    """A settings object from a mapping such as `os.environ`; `given` fields are not read.

    To let command-line options win over the environment, pass `ChainMap(options, os.environ)`.

    Raises:
        ConfigurationError: A value is wrong; the message names its setting.
    """
    return fill_settings(cls, lambda declared: declared.find(environ), **given)


def environment_of(
    settings: "DataclassInstance", handed_on: Sequence[Setting[Any]]
) -> dict[str, str]:
    """The environment that tells another process what a settings object says.

    Args:
        settings: Whose fields to tell; what is None is left out.
        handed_on: The settings that the other process may read.
    """
    return {
        declared.name: _as_variable(value)
        for name, declared in declared_fields(settings)
        if declared in handed_on and (value := getattr(settings, name)) is not None
    }


def _as_variable(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def text(
    name: str,
    default: DefaultT,
    *,
    meaning: str,
    aliases: tuple[str, ...] = (),
    option: str = "",
    key: str = "",
    shown_default: str = "",
) -> Setting[str | DefaultT]:
    """A text, stripped."""
    return Setting(name, Text(), default, meaning, aliases, option, key, shown_default)


def whole_number(
    name: str,
    default: DefaultT,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    meaning: str,
    option: str = "",
    shown_default: str = "",
) -> Setting[int | DefaultT]:
    """A whole number within bounds, both inclusive."""
    kind = WholeNumber(minimum, maximum)
    return Setting(name, kind, default, meaning, option=option, shown_default=shown_default)


def number(
    name: str,
    default: float,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    meaning: str,
    option: str = "",
    key: str = "",
) -> Setting[float]:
    """A finite number within bounds, both inclusive."""
    return Setting(name, Number(minimum, maximum), default, meaning, option=option, key=key)


def switch(
    name: str, default: bool, *, meaning: str, option: str = "", shown_default: str = ""
) -> Setting[bool]:
    """On or off: 1/true/yes/on or 0/false/no/off, in any case."""
    return Setting(name, Switch(), default, meaning, option=option, shown_default=shown_default)


def file_path(
    name: str,
    default: DefaultT,
    *,
    meaning: str,
    aliases: tuple[str, ...] = (),
    option: str = "",
    shown_default: str = "",
) -> Setting[Path | DefaultT]:
    """A path with `~` expanded, also in the default; whether it exists is the caller's business."""
    kind = FilePath()
    return Setting(name, kind, default, meaning, aliases, option, shown_default=shown_default)


def choice(
    name: str,
    default: WordT,
    choices: Sequence[WordT],
    *,
    meaning: str,
    option: str = "",
    shown_default: str = "",
) -> Setting[WordT]:
    """One of a few words, given in any case."""
    kind = Choice(tuple(choices))
    return Setting(name, kind, default, meaning, option=option, shown_default=shown_default)


def words(
    name: str,
    default: tuple[str, ...] = (),
    *,
    each: Callable[[str], str] = str,
    meaning: str,
) -> Setting[tuple[str, ...]]:
    """A comma-separated list, empty by default.

    Args:
        name: As everywhere.
        default: As `each` makes them.
        each: Makes a member of a word, or raises UnfitValueError.
        meaning: As everywhere.
    """
    return Setting(name, Words(each), default, meaning, shown_default=",".join(default))


def size(
    name: str,
    default: DefaultT,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    meaning: str,
    option: str = "",
    shown_default: str = "",
) -> Setting[int | DefaultT]:
    """Bytes, such as `1048576`, `512MiB`, `2GB` or `1.5G`; `KB` is 1000, `KiB` and `K` are 1024."""
    kind = Size(minimum, maximum)
    return Setting(name, kind, default, meaning, option=option, shown_default=shown_default)
