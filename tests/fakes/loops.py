"""One test of many small cases: to run and to count a test takes longer than most of them do."""

from collections.abc import Callable, Iterable
from typing import Any


def of_each(
    names: str, cases: Iterable[Any]
) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Stands where `pytest.mark.parametrize` would; a failure of the one test names the case.

    Args:
        names: Of the arguments, separated by commas.
        cases: Their values; with one name a value each, with several as many.
    """
    arguments = names.split(",")

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        def test() -> None:
            for case in cases:
                values = [case] if len(arguments) == 1 else case
                try:
                    check(**dict(zip(arguments, values, strict=True)))
                except BaseException as error:
                    error.add_note(f"With {names} = {case!r:.200}")
                    raise

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate
