"""``WeightsAndBiases``: the records of a run in Weights & Biases."""

from __future__ import annotations

import importlib
import json
import secrets
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fewshot_blo.records.checked import checked
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.loggers.logger import LoggedRun, Record, check_installed, numbers

RUN = "wandb_run.json"
"""File in the run's folder with the run's id and what was sent."""


@checked
@dataclass
class WeightsAndBiases:
    """Sends numbers and settings to Weights & Biases, whose extra is ``wandb``.

    A resumed run goes on in the same run there, whose id is in ``wandb_run.json`` of the run's
    folder; records that were sent before are not sent again. Offline, the data are in the folder
    ``wandb`` of the run's folder, one folder an attempt, and ``wandb sync`` sends them.

    Attributes:
        project: name of the project.
        entity: user or team; empty for the default one.
        name: name of the run; empty for that of its folder.
        mode: online, offline or disabled; empty for that of the environment variable WANDB_MODE,
            else online.

    Raises:
        ConfigurationError: if wandb is not installed.
    """

    project: str = "fewshot_blo"
    entity: str = ""
    name: str = ""
    mode: Literal["", "online", "offline", "disabled"] = ""

    def __post_init__(self) -> None:
        check_installed("WeightsAndBiases", "wandb")

    def start(self, run: LoggedRun) -> None:
        """Begins the run there or goes on with it, and sends what it lacks of earlier records."""
        wandb: Any = importlib.import_module("wandb")
        self._path = run.folder / RUN
        self._id, self._sent = _read(self._path) if run.step else _new()
        self._seen: Counter[int] = Counter()
        self._run: Any = wandb.init(
            project=self.project,
            entity=self.entity or None,
            name=self.name or run.folder.resolve().name,
            mode=self.mode or None,
            id=self._id,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            # It must not replace the streams that the progress is shown on.
            settings=wandb.Settings(console="off"),
        )
        for record in run.records:
            self.write(record)

    def write(self, record: Record) -> None:
        """Sends the numbers of a record, unless they were sent before."""
        step = record["step"]
        self._seen[step] += 1
        place = (step, self._seen[step])
        if place <= self._sent:
            return
        self._run.log(numbers(record), step=step)
        self._sent = place
        with atomic_write(self._path) as file:
            file.write(json.dumps({"id": self._id, "sent": place}).encode())

    def close(self) -> None:
        """Waits until all is sent."""
        self._run.finish()


def _new() -> tuple[str, tuple[int, int]]:
    """The id of a new run, and that nothing was sent."""
    return secrets.token_hex(4), (-1, 0)


def _read(path: Path) -> tuple[str, tuple[int, int]]:
    """The id of the run, and step and number within the step of the last record that was sent."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        step, number = saved["sent"]
        return str(saved["id"]), (int(step), int(number))
    except (OSError, ValueError, TypeError, KeyError):  # Logged for the first time, or damaged.
        return _new()
