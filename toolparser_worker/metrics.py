"""What a parser worker counts, by the formats of the text; gateways show it on /metrics."""

from collections import Counter
from collections.abc import Callable

from protocol.messages import ParsedDelta
from protocol.metrics import MetricRegistry
from toolparser_worker.sessions import Session

_FORMATS = ("tool_format", "reasoning_format")


class BatchCounts:
    """Counts over the deltas of one batch, so that the metrics are locked once and not for each."""

    def __init__(self) -> None:
        self.deltas: Counter[tuple[str, str]] = Counter()
        self.events: Counter[tuple[str, str]] = Counter()
        self.malformed: Counter[tuple[str, str]] = Counter()

    def add(self, session: Session, parsed: ParsedDelta) -> None:
        """One more delta was parsed."""
        names = session.format_names
        self.deltas[names] += 1
        self.events[names] += len(parsed.events)
        if session.num_new_malformed:
            self.malformed[names] += session.num_new_malformed


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
        self._streams = counter(
            "penstock_parser_streams", "Choices of opened parser sessions.", _FORMATS
        )
        self._deltas = counter("penstock_parser_deltas", "Pieces of text parsed.", _FORMATS)
        self._events = counter("penstock_parser_events", "Events found in text.", _FORMATS)
        self._malformed = counter(
            "penstock_parser_malformed_calls",
            "Tool calls that broke, or were cut off, after their name was out.",
            _FORMATS,
        )

    def opened(self, session: Session) -> None:
        """A session was opened."""
        self._streams.add(session.num_choices, *session.format_names)

    def add(self, counts: BatchCounts) -> None:
        """A batch was parsed."""
        for metric, values in (
            (self._deltas, counts.deltas),
            (self._events, counts.events),
            (self._malformed, counts.malformed),
        ):
            for names, value in values.items():
                metric.add(value, *names)
