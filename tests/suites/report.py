"""Tables of what suites show, for the terminal and for a page."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class SuiteReport:
    """What one suite showed.

    Attributes:
        columns: Names of the figures, the first of the row.
        rows: One for each part of the suite.
        notes: Sentences below the table.
        skipped: Why nothing was tried; empty when something was.
        has_failed: It showed what must not be.
    """

    title: str
    columns: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""
    has_failed: bool = False

    def markdown(self) -> str:
        """A section of a page."""
        lines = [f"## {self.title}", ""]
        if self.skipped:
            return "\n".join([*lines, f"Skipped: {self.skipped}", ""])
        lines += [_row(self.columns), _row(["---"] * len(self.columns))]
        lines += [_row(row) for row in self.rows]
        lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join([*lines, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
