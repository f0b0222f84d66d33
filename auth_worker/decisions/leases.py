"""Leases: what running requests have reserved, in the order in which they expire."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from msgspec import Struct, field

from auth_worker.decisions.plans import NOTHING, Needs, Plan
from auth_worker.principals.prices import Price
from auth_worker.records.operations import LeaseRow
from protocol.wire.messages import StreamUsage

MAX_STREAMS_A_LEASE = 4096
MAX_STREAM_NAME_CHARS = 256


class Lease(Struct, eq=False, gc=False):
    """One running request's reservation; nothing that it names leads back to it.

    Attributes:
        granted_at_ms: Unix milliseconds.
        prompt_tokens: Reserved, as is `completion_tokens`.
        reported_prompt_tokens: Used so far by the last report, as is the next.
        expires_s: On the monotonic clock.
        plan: The limits that it counts in; None when none holds for it.
        counted_s: When its request was counted in the windows, on the monotonic clock; None when
            it wasn't.
        held: What it holds of them.
        price: What its tokens cost; None when nobody has said.
        user_id: Of its key when it was granted, as is `team_id`.
        is_forgotten: A kill forgot it, so what it counts in and holds isn't known.
        may_have_ended: It was open on the disk at the start of this process, and its gateway hasn't
            said since that it runs: a kill may have forgotten its end, and whom that made room for.
        may_be_booked: An engine's report opened it, so the ledger may have its line already.
            Nothing of it runs: it takes none of the places of requests that do.
        streams: Prompt and completion tokens of its streams, as far as they were reported apart.
    """

    lease_id: str
    request_id: str
    key_id: str
    model: str
    granted_at_ms: int
    prompt_tokens: int
    completion_tokens: int
    expires_s: float
    plan: Plan | None
    counted_s: float | None = None
    held: Needs = NOTHING
    price: Price | None = None
    endpoint: str = ""
    end_user: str = ""
    user_id: str = ""
    team_id: str = ""
    is_forgotten: bool = False
    may_have_ended: bool = False
    may_be_booked: bool = False
    reported_prompt_tokens: int = 0
    reported_completion_tokens: int = 0
    streams: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def reserved_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def note_streams(self, usages: Iterable[StreamUsage]) -> None:
        """Each stream has used at least this; the lease's report is never below their sum."""
        for usage in usages:
            if (
                usage.stream not in self.streams and len(self.streams) >= MAX_STREAMS_A_LEASE
            ) or len(usage.stream) > MAX_STREAM_NAME_CHARS:
                continue
            prompt, completion = self.streams.get(usage.stream, (0, 0))
            self.streams[usage.stream] = (
                max(prompt, usage.prompt_tokens),
                max(completion, usage.completion_tokens),
            )
        self.note_totals(
            sum(prompt for prompt, _ in self.streams.values()),
            sum(completion for _, completion in self.streams.values()),
        )

    def note_totals(self, prompt_tokens: int, completion_tokens: int) -> None:
        """The lease has used at least this; reports never run backwards."""
        self.reported_prompt_tokens = max(self.reported_prompt_tokens, prompt_tokens)
        self.reported_completion_tokens = max(self.reported_completion_tokens, completion_tokens)

    def row(self) -> LeaseRow:
        """What the database should remember of it."""
        return LeaseRow._make(  # takes half the time of a call of the class
            (
                self.lease_id,
                self.request_id,
                self.key_id,
                self.model,
                self.granted_at_ms,
                self.prompt_tokens,
                self.completion_tokens,
                self.reported_prompt_tokens,
                self.reported_completion_tokens,
                self.endpoint,
                self.end_user,
                self.user_id,
                self.team_id,
            )
        )


class LeaseTable:
    """The open leases, and when each expires.

    Every term has the same length, so the oldest renewal expires first. Leases whose gateway died
    stand in a second line with a shorter term; a renewal takes them back into the first.

    Args:
        duration_s: The term of a lease.
        orphan_term_s: What is left to a lease once its gateway is known to be gone.
    """

    def __init__(self, duration_s: float, orphan_term_s: float) -> None:
        self.duration_s = duration_s
        self._orphan_term_s = orphan_term_s
        self._leases: OrderedDict[str, Lease] = OrderedDict()
        self._orphans: OrderedDict[str, Lease] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases) + len(self._orphans)

    def get(self, lease_id: str) -> Lease | None:
        """An open lease."""
        return self._leases.get(lease_id) or self._orphans.get(lease_id)

    def open(self, lease: Lease) -> None:
        """Add a lease whose term begins now."""
        self._leases[lease.lease_id] = lease

    def renew(self, lease: Lease, now_s: float) -> None:
        """Begin a new term."""
        lease.expires_s = now_s + self.duration_s
        self._orphans.pop(lease.lease_id, None)
        self._leases[lease.lease_id] = lease
        self._leases.move_to_end(lease.lease_id)

    def orphan(self, lease: Lease, now_s: float) -> None:
        """Its gateway is gone: let it expire soon; a lease that is orphaned already stays so."""
        if self._leases.pop(lease.lease_id, None) is not None:
            lease.expires_s = now_s + self._orphan_term_s
            self._orphans[lease.lease_id] = lease

    def close(self, lease_id: str) -> Lease | None:
        """Take a lease out."""
        return self._leases.pop(lease_id, None) or self._orphans.pop(lease_id, None)

    def pop_expired(self, now_s: float) -> Iterator[Lease]:
        """Take out, one by one, the leases whose term is over."""
        for line in (self._leases, self._orphans):
            while line:
                lease_id, lease = next(iter(line.items()))
                if lease.expires_s > now_s:
                    break
                del line[lease_id]
                yield lease
