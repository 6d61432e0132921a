"""What a part of the harness tried and what survived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fewshot_blo.records.tables import markdown


@dataclass
class Row:
    """One kind of fault.

    Attributes:
        part: what was done to the program, such as kills.
        name: to which part of it.
        tried: number of faults.
        survived: number of them after which all was as promised.
        failures: what was not, a sentence each.
    """

    part: str
    name: str
    tried: int = 0
    survived: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, failure: str | None) -> None:
        """Counts one fault, with what went wrong, or None."""
        self.tried += 1
        if failure is None:
            self.survived += 1
        else:
            self.failures.append(failure)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, with the failures below it."""
    cells = [[row.part, row.name, str(row.tried), str(row.survived)] for row in rows]
    lines = [markdown(["fault", "of", "tried", "survived"], cells)]
    for row in rows:
        lines += [f"- {row.part}, {row.name}: {failure}" for failure in row.failures]
    return "\n".join(lines)
