"""Runs a study, or a part of its rows; writes the table and the figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fewshot_blo.bilevel import Params
from fewshot_blo.records.jobs import run_jobs
from fewshot_blo.records.locks import writing
from fewshot_blo.records.logs import LOG, read_log
from fewshot_blo.records.shard import Shard
from fewshot_blo.records.tables import write_table
from fewshot_blo.records.tensor_files import read_tensors
from fewshot_blo.studies.progress import draw_progress
from fewshot_blo.studies.rows import OUTER, RowSettings, figures_of, over_seeds
from fewshot_blo.studies.study import Figures, Study
from fewshot_blo.studies.table import study_table


@dataclass(frozen=True)
class _Unit:
    """A row with one seed; the name is None for the baselines."""

    name: str | None
    seed: int

    def place(self, folder: Path) -> Path:
        return folder / (self.name or "baselines") / f"seed{self.seed}"


def run_study(
    study: Study,
    rows: Mapping[str, RowSettings],
    folder: Path,
    *,
    seeds: Sequence[int] = (0,),
    jobs: int = 1,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Solves every row that is not solved yet, and writes a table and figures.

    Args:
        study: the problem with its measurements.
        rows: settings of the rows by name.
        folder: folder for ``table.md``, ``table.csv``, ``picture.png``, ``progress.png`` and one
            subfolder per row.
        seeds: seeds of the study; with several, figures are means with standard deviations.
        jobs: number of processes of this machine that solve rows beside each other.
        progress: print the table and the progress of each row; False is silent.

    Returns:
        The lines of the table.

    Raises:
        CheckpointError: if another process writes to the folder, or a file in it is damaged.
        ChildProcessError: if a job was killed.
        ConfigurationError: if the folder has results of other settings, or settings are invalid.
        KeyboardInterrupt: if it was interrupted; the same call resumes it.
    """
    with writing(folder):
        units = _units(rows, seeds)
        if jobs > 1:
            _solve(study, rows, folder, units, jobs, progress)
        found: dict[str, list[Figures]] = {}
        first: dict[str, Params] = {}
        solved = _solver(study, rows, folder, progress)
        for seed in seeds:
            figures: dict[str, Figures] = {}
            for unit in (unit for unit in units if unit.seed == seed):
                own, place = solved(unit), unit.place(folder)
                figures |= {(unit.name or "") + suffix: row for suffix, row in own.items()}
                if unit.name is not None and (place / OUTER).is_file():
                    first.setdefault(unit.name, read_tensors(place / OUTER, "outer variables"))
            for name, row in figures.items():
                found.setdefault(name, []).append(row)
        records = [{"method": name, **over_seeds(many)} for name, many in found.items()]
        text = study_table(records, seeds=len(seeds))
        write_table(folder, text, records)
        if progress:
            print(text)
        study = replace(study, seed=seeds[0])
        study.draw(first, folder / "picture.png")
        logs = {name: read_log(folder / name / f"seed{seeds[0]}" / LOG) for name in rows}
        draw_progress(records, logs, folder / "progress.png")
        return records


def run_study_part(
    study: Study,
    rows: Mapping[str, RowSettings],
    folder: Path,
    shard: Shard,
    *,
    seeds: Sequence[int] = (0,),
    jobs: int = 1,
    progress: bool = True,
) -> int:
    """Solves a part of the rows of a study, beside those of other processes.

    Each row and seed has its own folder, into which one process writes at a time. Once all parts
    are solved, ``run_study`` with the same arguments writes the table without solving again.

    Args:
        study, rows, folder, seeds, jobs, progress: as in ``run_study``.
        shard: the part of the baselines and the rows, with each seed.

    Returns:
        Number of rows of the part, with each seed, the baselines included.

    Raises:
        CheckpointError, ChildProcessError, ConfigurationError, KeyboardInterrupt: as ``run_study``.
    """
    units = shard.of(_units(rows, seeds))
    _solve(study, rows, folder, units, jobs, progress)
    return len(units)


def _units(rows: Mapping[str, RowSettings], seeds: Sequence[int]) -> list[_Unit]:
    return [_Unit(name, seed) for seed in seeds for name in (None, *rows)]


def _solve(
    study: Study,
    rows: Mapping[str, RowSettings],
    folder: Path,
    units: Sequence[_Unit],
    jobs: int,
    progress: bool,
) -> None:
    make = partial(_solver, study, rows, folder, progress)
    if jobs > 1:
        for _ in run_jobs(make, units, jobs, progress=progress):
            pass
    else:
        solved = make()
        for unit in units:
            solved(unit)


def _solver(
    study: Study, rows: Mapping[str, RowSettings], folder: Path, progress: bool
) -> Callable[[_Unit], dict[str, Figures]]:
    def solved(unit: _Unit) -> dict[str, Figures]:
        settings = None if unit.name is None else rows[unit.name]
        seeded = replace(study, seed=unit.seed)
        return figures_of(seeded, settings, unit.place(folder), progress=progress)

    return solved
