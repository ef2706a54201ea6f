"""What a measurement says: one row for each side at each piece of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from maskrcnn.bench.measure import Ratio, Timing, times_faster

Value = float | int | str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One side at one piece of work.

    work: what was done; rows of the same work stand in one table. part: of it, such as a stage; "" for the whole.
    side: who did it. timing: seconds for one `unit`. ratio: how many times faster than the peer; None for the peer.
    memory_mb: MB (2**20 bytes) at the peak. facts: what else there is to say, by a name that holds its unit.
    """

    work: str
    side: str
    part: str = ""
    unit: str = "picture"
    timing: Timing | None = None
    ratio: Ratio | None = None
    memory_mb: float | None = None
    facts: Mapping[str, Value] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For bench.json; what a row has not is left out."""
        record = {name: value for name, value in asdict(self).items() if value not in (None, "", {})}
        if self.timing is not None:
            record["timing"] = {
                "median": self.timing.median,
                "fastest": self.timing.fastest,
                "slowest": self.timing.slowest,
                "rounds": list(self.timing.seconds),
            }
        return record


def timed_rows(
    work: str,
    timings: Mapping[str, Timing],
    peer: str,
    *,
    unit: str = "picture",
    part: str = "",
    facts: Mapping[str, Mapping[str, Value]] | None = None,
) -> list[Row]:
    """A row for each side, the others with how many times faster than `peer` they were."""
    facts = facts or {}
    return [
        Row(
            work=work,
            side=side,
            part=part,
            unit=unit,
            timing=timing,
            ratio=None if side == peer else times_faster(timing, timings[peer]),
            facts=facts.get(side, {}),
        )
        for side, timing in timings.items()
    ]


def works_of(rows: Sequence[Row]) -> list[str]:
    """Each work once, in the order of the rows."""
    return list(dict.fromkeys(row.work for row in rows))
