"""What a parser worker counts, by the formats of the text; gateways show it on /metrics."""

from collections.abc import Callable

from protocol.runtime.metrics import MetricRegistry

FormatNames = tuple[str, str]
"""The names of a tool format and a reasoning format."""

_LABELS = ("tool_format", "reasoning_format")


class FormatCounts:
    """Counts of one pair of formats since they were last taken over into the metrics.

    Sessions count here with every delta, so there is no lock; only the worker's loop touches it.
    """

    __slots__ = ("num_deltas", "num_events", "num_malformed", "num_streams")

    def __init__(self) -> None:
        self.num_streams = 0
        self.num_deltas = 0
        self.num_events = 0
        self.num_malformed = 0


class ParserMetrics:
    """The worker's metrics.

    Args:
        num_sessions: How many sessions are open.

    Attributes:
        registry: Holds them for the gateways' reports.
    """

    def __init__(self, num_sessions: Callable[[], int]) -> None:
        self.registry = MetricRegistry()
        counter = self.registry.counter
        self.registry.gauge(
            "penstock_parser_open_sessions", "Requests whose text is parsed.", num_sessions
        )
        self._counters = {
            "num_streams": counter(
                "penstock_parser_streams", "Choices of opened parser sessions.", _LABELS
            ),
            "num_deltas": counter("penstock_parser_deltas", "Pieces of text parsed.", _LABELS),
            "num_events": counter("penstock_parser_events", "Events found in text.", _LABELS),
            "num_malformed": counter(
                "penstock_parser_malformed_calls",
                "Tool calls that broke, or were cut off, after their name was out.",
                _LABELS,
            ),
        }
        self._counts: dict[FormatNames, FormatCounts] = {}

    def counts(self, names: FormatNames) -> FormatCounts:
        """Where a session of these formats counts; they are declared, so there are few."""
        return self._counts.setdefault(names, FormatCounts())

    def take_over(self) -> None:
        """Adds to the metrics what was counted since the last time."""
        for names, counts in self._counts.items():
            for attribute, counter in self._counters.items():
                amount = getattr(counts, attribute)
                if amount:
                    counter.add(amount, *names)
                    setattr(counts, attribute, 0)
