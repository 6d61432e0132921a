"""``Sharing``: how work is divided among processes and machines."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting
from fewshot_blo.records.shard import Shard


@checked
@dataclass(frozen=True)
class Sharing:
    """How the work is divided among processes.

    Attributes:
        shard: do part i/n only, as 2/4 for the second of four, so that processes and machines each
            do another part; all by default.
        jobs: processes of this machine that the work is divided among, and its threads with it.
    """

    shard: str = ""
    jobs: Counting = 1

    @property
    def part(self) -> Shard | None:
        """The part that is to be done; None for all."""
        return Shard.read(self.shard) if self.shard else None

    def __post_init__(self) -> None:
        _ = self.part  # Checked now.
        check_jobs(self.jobs)


def check_jobs(jobs: int) -> None:
    """Refuses more processes than a machine can run.

    Raises:
        ConfigurationError: if there are more than four for each core.
    """
    most = 4 * (os.cpu_count() or 1)
    if jobs > most:
        raise ConfigurationError(
            f"jobs is {jobs}: it must be at most {most}, four for each core of this machine; use "
            "several machines for more"
        )
