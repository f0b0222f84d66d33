"""A batch: what was asked for, how far it is, and how that is kept."""

from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

PREFIX: Final = "batch_"
ENDPOINTS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
)
WINDOW_S: Final = 24 * 3600
"""How long the lines of a batch are begun; the one `completion_window` that there is."""
LINE_PRIORITY: Final = 10
"""Behind every priority that a key can have."""

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
ENDED: Final = ("failed", "completed", "expired", "cancelled")


@dataclass(frozen=True, slots=True)
class LineError:
    """Why a batch can't be run."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(slots=True)
class Counts:
    """What was used so far, and how many lines there are."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(slots=True)
class Batch:
    """One batch; times are Unix seconds, None where they have not come.

    Attributes:
        tenant: Whose it is.
        key_digest: Whose key runs the lines, hexadecimal; empty where keys are not asked for.
        key_id: Of that key, for logs.
        address: Of the client that made it.
        end_user: For whom it is, as a header of that client said.
        made_id: Names the request that made it, whichever gateway went on with that.
        stamps: `in_progress_at` and the like.
        outcome: How it is to end once it is finalized; empty before.
    """

    id: str
    tenant: str
    key_digest: str
    key_id: str
    address: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    end_user: str = ""
    made_id: str = ""
    metadata: dict[str, str] | None = None
    output_lifetime_s: int | None = None
    status: Status = "validating"
    stamps: dict[str, int] = field(default_factory=dict)
    errors: list[LineError] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    output_file_id: str = ""
    error_file_id: str = ""
    outcome: str = ""

    def as_record(self) -> dict[str, Any]:
        """For the disk."""
        record = asdict(self)
        if not self.made_id:
            del record["made_id"]  # gateways of before it was there read the others
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Batch":
        """From the disk.

        Raises:
            TypeError: It is no batch of this release.
        """
        errors = [LineError(**one) for one in record.get("errors", ())]
        counts = Counts(**record.get("counts", {}))
        return cls(**(record | {"errors": errors, "counts": counts}))

    def as_object(self) -> dict[str, Any]:
        """As OpenAI's API tells it."""
        counts = self.counts
        found: dict[str, Any] = {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": None,
            "error_file_id": None,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
        }
        for name in (
            *("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at"),
            *("cancelling_at", "cancelled_at"),
        ):
            found[name] = self.stamps.get(name)
        if self.errors:
            found["errors"] = {"object": "list", "data": [asdict(error) for error in self.errors]}
        if self.status in ENDED:
            found["output_file_id"] = self.output_file_id or None
            found["error_file_id"] = self.error_file_id or None
        found["request_counts"] = {
            "total": counts.total,
            "completed": counts.completed,
            "failed": counts.failed,
        }
        found["usage"] = {
            "input_tokens": counts.prompt_tokens,
            "input_tokens_details": {"cached_tokens": counts.cached_tokens},
            "output_tokens": counts.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
            "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        }
        found["metadata"] = self.metadata
        return found
