"""Trains and evaluates published rows again; prints what is found beside what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.compare import run_all
from fewshot_blo.experiments.compared_runs import ComparedRuns
from fewshot_blo.experiments.published import config_of, request_of
from fewshot_blo.experiments.request import (
    WITHOUT_EFFECT,
    EvaluationRequest,
    evaluation_settings,
    requested,
)
from fewshot_blo.experiments.settings import config_from
from fewshot_blo.experiments.table import Record, Row, figure_cell
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.locks import writing
from fewshot_blo.records.published import PublishedRow, published_row, published_rows
from fewshot_blo.records.shipped import checkpoint_file, released_models
from fewshot_blo.records.tables import markdown, write_table
from fewshot_blo.training import checkpoint as checkpoints


@dataclass(frozen=True)
class Reproduction:
    """A published row, and what was found with its settings.

    Attributes:
        published: the row.
        found: runs, their evaluations and the cost of their training.
    """

    published: PublishedRow
    found: Row

    def records(self) -> list[Record]:
        """The figures of each norm mode that was published, in the printed unit."""
        own = self.found.record(self.found)
        return [
            {
                "row": self.published.name,
                "norm": norm,
                "published": figure.mean,
                "published interval": figure.interval,
                "published sd over seeds": figure.sd_over_seeds,
                "found": own[norm],
                "found interval": own[f"{norm} interval"],
                "found sd over seeds": own[f"{norm} sd over seeds"],
                "seeds": own["seeds"],
                "difference": own[norm] - figure.mean,
            }
            for norm, figure in self.published.figures.items()
        ]

    def lines(self) -> list[list[str]]:
        """The same as cells of the table."""
        first, metric = self.found.evaluations[0][0], self.found.metric
        return [
            [
                record["row"],
                record["norm"],
                figure_cell(record, "published", metric),
                figure_cell(record, "found", metric),
                metric.difference(record["difference"] / metric.factor),
                f"{len(first.values)} tasks, {first.episodes}{first.other_split}"
                f"{first.several_views}",
                str(record["seeds"]),
            ]
            for record in self.records()
        ]


def reproduce(
    names: Sequence[str],
    request: EvaluationRequest | None = None,
    *,
    folder: Path,
    seeds: Sequence[int] = (),
    jobs: int = 1,
    progress: bool = True,
) -> list[Reproduction]:
    """Trains the frozen settings of published rows, evaluates them as published, writes a table.

    A row that evaluates a released model evaluates it again; other rows are trained, and so is
    what their training started from. The settings are those of the row, also where its recipe has
    others today.

    Args:
        names: names of the rows, such as omniglot-5w1s/protonet.
        request: folder of the data set (``root``), device and chunk; the rows have the rest.
        folder: folder of the table, of the settings (``rows``), and of the runs.
        seeds: training seeds besides those of the rows.
        jobs: number of processes that train and evaluate the seeds of a row beside each other.
        progress: as in ``compare``.

    Returns:
        The published and the found figures of each row.

    Raises:
        CheckpointError, ChildProcessError, KeyboardInterrupt: as ``compare``.
        ConfigurationError: if there is no row of a name, the request has settings that rows have
            themselves, or a released model was to have further seeds.
    """
    rows = published_rows()
    chosen = [published_row(name, rows) for name in dict.fromkeys(names)]
    request = request or EvaluationRequest()
    usual, given = evaluation_settings(EvaluationRequest()), evaluation_settings(request)
    check_given(names, request, [name for name in given if given[name] != usual.get(name)])
    machine = {name: getattr(request, name) for name in WITHOUT_EFFECT if name != "output"}
    for row in chosen:
        if row.of in released_models() and seeds:
            raise ConfigurationError(
                f"seeds is {list(seeds)}, and the published row {row.name} evaluates the released "
                f"model {row.of}, which is not trained again: leave out seeds"
            )
    files = _Files(rows, folder / "rows", str(machine["device"]))
    found = []
    with writing(folder):
        runs = [
            ComparedRuns(
                [files.source(row)],
                request_of(row, **machine),
                folder,
                tuple(dict.fromkeys([*rows.get(row.of, row).seeds, *seeds])),
                progress=progress,
            )
            for row in chosen
        ]
        _ = [run.groups() for run in runs]  # Refuses what cannot be run before anything is trained.
        for row, run in zip(chosen, runs, strict=True):
            output = folder / "evaluations" / f"{_flat(row.name)}.json"
            output.parent.mkdir(exist_ok=True)
            (own,) = run_all(run, [row.name], output, jobs=jobs)
            run.forget(own.checkpoints)
            found.append(Reproduction(row, own))
        text = table_of(found)
        write_table(folder, text, [record for each in found for record in each.records()])
    if progress:
        print(text)
    return found


def table_of(found: Sequence[Reproduction]) -> str:
    """The table in Markdown: a line for each norm mode of each row."""
    metric = found[0].found.metric
    columns = ["row", "norm mode", "published", "found", "found minus published", "tasks", "seeds"]
    lines = [line for each in found for line in each.lines()]
    unit = " in %" if metric.percent else ""
    return (
        f"{markdown(columns, lines)}\n{metric.name.capitalize()}{unit}: mean over tasks ± 95 % "
        "confidence interval [standard deviation over training seeds]. The tasks are those of the "
        "published row. Versions, processors and numbers of threads round differently, so that "
        "training may end elsewhere.\n"
    )


def check_given(names: Sequence[str], request: EvaluationRequest, given: Sequence[str]) -> None:
    """Checks that settings of an evaluation are those of published rows.

    Args:
        names: names of the rows.
        request: settings of the evaluation.
        given: names of the settings to check; those without effect on what is measured are not.

    Raises:
        ConfigurationError: if a row has another value, or there is no row of a name.
    """
    rows = published_rows()
    chosen = [published_row(name, rows) for name in names]
    for name in given:
        if name in WITHOUT_EFFECT or all(_has(row, request, name, rows) for row in chosen):
            continue
        value = evaluation_settings(request).get(name, getattr(request, name))
        raise ConfigurationError(
            f"{name} is {value}: published rows have an evaluation of their own; leave it out "
            "(root, device, chunk and seeds may be given)"
        )


_OF_THE_RUN = ("way", "shot", "query", "protocol", "steps", "precision")
"""Settings of an evaluation that are by default those of the run."""


def _has(
    row: PublishedRow, request: EvaluationRequest, name: str, rows: Mapping[str, PublishedRow]
) -> bool:
    """Whether a row was evaluated with a setting of the request."""
    own, value = request_of(row), getattr(request, name)
    if value == getattr(own, name):
        return True
    if name not in _OF_THE_RUN:
        return False
    if row.of in released_models():
        config = config_from(checkpoints.load(checkpoint_file(Path(row.of))).config)
    else:
        config = config_of(published_row(row.of, rows) if row.of else row)
    both = (requested(config, each) for each in (replace(own, **{name: value}), own))
    found, published = (
        (c.episodes.drawn(training=False).describe(), c.problem, c.adaptation) for c in both
    )
    return found == published


@dataclass(frozen=True)
class _Files:
    """The settings of rows as files, which ``compare`` can train."""

    rows: Mapping[str, PublishedRow]
    folder: Path
    device: str

    def source(self, row: PublishedRow) -> Path:
        """The file of settings of a row, or the released model that it evaluates."""
        if row.of in released_models():
            return checkpoint_file(Path(row.of))
        return self.written(published_row(row.of, self.rows) if row.of else row)

    def written(self, row: PublishedRow) -> Path:
        """The file of settings of a row, after that of the row it starts from."""
        start = row.start
        if start and start not in released_models():
            start = self.written(published_row(start, self.rows)).name
        settings = {**config_of(row).plain(), "start_from": start}
        if self.device:
            settings["device"] = self.device
        path = self.folder / f"{_flat(row.name)}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(f"# {row.title}: settings {row.digest}.\n".encode())
            file.write(yaml.safe_dump(settings, sort_keys=False).encode())
        return path


def _flat(name: str) -> str:
    """The name of a row as that of a file."""
    return name.replace("/", ".")
