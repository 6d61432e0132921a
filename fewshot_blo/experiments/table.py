"""The table and the figure of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.result import Evaluation, half_width
from fewshot_blo.experiments.progress import draw_validations
from fewshot_blo.experiments.seeds import steps_of
from fewshot_blo.problems import NormMode
from fewshot_blo.records.figure import COLOURS, new_figure, panels, save_figure
from fewshot_blo.records.logs import LOG, read_log
from fewshot_blo.records.quantity import Quantity
from fewshot_blo.records.tables import deviation, markdown, write_table

MODES: tuple[NormMode, ...] = ("transductive", "support", "running")

Record = dict[str, Any]
"""Figures of a method by name."""

_LETTER_INCHES = 0.1


@dataclass(frozen=True)
class Row:
    """A method in the table.

    Attributes:
        name: name of its recipe or of the folder of its runs.
        checkpoints: one checkpoint for each training seed.
        evaluations: evaluations of each checkpoint, one for each norm mode.

    Raises:
        ConfigurationError: if checkpoints have different norm modes.
    """

    name: str
    checkpoints: Sequence[Path]
    evaluations: Sequence[Sequence[Evaluation]]

    def __post_init__(self) -> None:
        modes = [[evaluation.norm for evaluation in run] for run in self.evaluations]
        for path, own in zip(self.checkpoints, modes, strict=False):
            if own != modes[0]:
                raise ConfigurationError(
                    f"{path} was evaluated in norm modes {', '.join(own)} and "
                    f"{self.checkpoints[0]} in {', '.join(modes[0])}: name one norm mode that all "
                    f"runs of {self.name} have, or each run by itself"
                )

    def tasks(self, norm: NormMode) -> Tensor | None:
        """The metric of each task, averaged over training seeds, ``[tasks]``.

        None if this norm mode was not evaluated.
        """
        found = [e.values for run in self.evaluations for e in run if e.norm == norm]
        return torch.stack(found).mean(0) if found else None

    def seed_means(self, norm: NormMode) -> list[float]:
        """Mean of each training seed."""
        return [e.mean for run in self.evaluations for e in run if e.norm == norm]

    @property
    def metric(self) -> Quantity:
        """What was measured."""
        return self.evaluations[0][0].metric

    def further(self) -> Iterator[tuple[Quantity, Tensor]]:
        """Further metrics of each task, ``[tasks]``, in the first norm mode; mean over seeds."""
        firsts = [run[0] for run in self.evaluations]
        for metric in firsts[0].others:
            yield metric, torch.stack([first.others[metric] for first in firsts]).mean(0)

    def cost(self) -> dict[str, float]:
        """Logged outer steps, seconds, tasks per second and peak GiB, averaged over seeds.

        Empty if a run has no record of its training.
        """
        runs = [_logged(path.parent / LOG) for path in self.checkpoints]
        if not all(runs):
            return {}
        return {name: mean(run[name] for run in runs) for name in runs[0]}

    def unfinished(self) -> str:
        """Which of the runs are not finished, and at which step they are; empty if all are."""
        found = [(path, steps_of(path)) for path in self.checkpoints]
        return ", ".join(
            f"{path.parent.name} at step {done} of {steps}"
            for path, (done, steps) in found
            if done < steps
        )

    def record(self, first: Row) -> Record:
        """All figures of the method, fractions in %, with paired differences to the first."""
        record: Record = {"method": self.name, "seeds": len(self.checkpoints)}
        factor = self.metric.factor
        for norm in MODES:
            values, reference = self.tasks(norm), first.tasks(norm)
            if values is None:
                continue
            record[norm] = factor * float(values.mean())
            record[f"{norm} interval"] = factor * half_width(values)
            means, others = self.seed_means(norm), first.seed_means(norm)
            record[f"{norm} sd over seeds"] = factor * deviation(means)
            if reference is not None and self is not first:
                difference = values - reference
                record[f"{norm} difference"] = factor * float(difference.mean())
                record[f"{norm} difference interval"] = factor * half_width(difference)
                if len(means) == len(others):
                    pairs = [a - b for a, b in zip(means, others, strict=True)]
                    record[f"{norm} difference sd over seeds"] = factor * deviation(pairs)
        for metric, values in self.further():
            record[metric.label] = metric.factor * float(values.mean())
            record[f"{metric.label} interval"] = metric.factor * half_width(values)
        if unfinished := self.unfinished():
            record["unfinished"] = unfinished
        return {**record, **self.cost()}


def _logged(path: Path) -> dict[str, float]:
    records = [record for record in read_log(path) if "tasks_per_second" in record]
    if not records:
        return {}
    return {
        "steps": records[-1]["step"],
        "seconds": records[-1].get("seconds", math.nan),
        "tasks_per_second": median(record["tasks_per_second"] for record in records),
        "peak_gib": max(record["memory/peak_gib"] for record in records),
    }


def write_comparison(rows: Sequence[Row], folder: Path) -> str:
    """Writes ``table.md``, ``table.csv`` and, if training times are logged, two figures.

    One, such as ``accuracy.png``, has the test figures and the time of training, the other,
    ``validation.png``, the validations of each method over examples and over time.

    Returns:
        The text of ``table.md``.
    """
    records = [row.record(rows[0]) for row in rows]
    text = comparison(records, rows[0].evaluations[0][0])
    write_table(folder, text, records)
    if any("seconds" in record for record in records):
        draw(records, folder / f"{rows[0].metric.key}.png", rows[0].metric)
        runs = {row.name: row.checkpoints for row in rows}
        draw_validations(runs, folder / "validation.png", rows[0].metric)
    return text


def comparison(records: Sequence[Record], example: Evaluation) -> str:
    """The table in Markdown, with its protocol."""
    metric = example.metric
    columns = ["method", *MODES, f"minus {records[0]['method']}, paired"]
    columns += [other.label for other in example.others]
    columns += ["outer steps", "minutes", "tasks/s", "peak GiB"]
    lines = []
    for record in records:
        shared = next((norm for norm in MODES if f"{norm} difference" in record), None)
        lines.append(
            [
                record["method"],
                *(figure_cell(record, norm, metric) for norm in MODES),
                "" if shared is None else _difference(record, shared, metric),
                *(figure_cell(record, other.label, other) for other in example.others),
                _number(record, "steps", 1, 0),
                _number(record, "seconds", 1 / 60, 1),
                _number(record, "tasks_per_second", 1, 1),
                _number(record, "peak_gib", 1, 2),
            ]
        )
    drawn = f"{example.episodes}{example.other_split}{example.several_views}"
    tasks = f"{len(example.values)} tasks ({drawn})"
    unit = " in %" if metric.percent else ""
    protocol = (
        f"{metric.name.capitalize()}{unit}: mean over {tasks} ± 95 % "
        "confidence interval [standard deviation over training seeds; for a difference only if "
        "both methods have the same number of seeds]. The paired difference is in the first norm "
        "mode that both have."
    )
    if example.others:
        protocol += f" Further metrics are in norm mode {example.norm}, the first."
    for record in records:
        if "unfinished" in record:
            protocol += f" Not finished: {record['method']} ({record['unfinished']})."
    return f"{markdown(columns, lines)}\n{protocol}\n"


def figure_cell(record: Record, name: str, metric: Quantity) -> str:
    """A figure of a record as the text of a cell: mean ± interval [deviation over seeds].

    Args:
        record: figures in the printed unit: NAME, "NAME interval" and "NAME sd over seeds", NaN or
            None for one seed.
        name: NAME; a figure that the record lacks is a dash.
        metric: the metric that it is of.
    """
    if name not in record:
        return "–"
    value, half = (record[own] / metric.factor for own in (name, f"{name} interval"))
    seeds = _over_seeds(record, f"{name} sd over seeds", metric)
    return f"{metric.number(value)} ± {metric.half(half)}{seeds}"


def _difference(record: Record, norm: str, metric: Quantity) -> str:
    name = f"{norm} difference"
    value, half = (record[own] / metric.factor for own in (name, f"{name} interval"))
    seeds = _over_seeds(record, f"{name} sd over seeds", metric)
    return f"{metric.difference(value)} ± {metric.half(half)}{seeds}"


def _over_seeds(record: Record, name: str, metric: Quantity) -> str:
    value = record.get(name)
    if value is None or math.isnan(value):
        return ""
    return f" [{metric.half(value / metric.factor)}]"


def _number(record: Record, name: str, factor: float, digits: int) -> str:
    value = record.get(name, math.nan) * factor
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def draw(records: Sequence[Record], path: Path, metric: Quantity) -> None:
    """Draws the metric with its 95 % interval and the training time, a line a method, as a PNG."""
    norm = next(norm for norm in MODES if norm in records[0])
    shown = [r for r in records if norm in r and not math.isnan(r.get("seconds", math.nan))]
    names = [record["method"] for record in shown]
    width = 8 + _LETTER_INCHES * max((len(name) for name in names), default=0)
    title = f"{metric.name.capitalize()} and training time of each method"
    figure = new_figure(title, width, 1.8 + 0.35 * len(shown))
    values, times = panels(figure, 1, 2, share_y=True)
    places = range(len(shown))
    means, halves = ([record[key] for record in shown] for key in (norm, f"{norm} interval"))
    values.errorbar(means, places, xerr=halves, fmt="o", capsize=3, color=COLOURS[0])
    times.plot([record["seconds"] / 60 for record in shown], places, "o", color=COLOURS[0])
    values.set_yticks(places, names, parse_math=False)
    values.set(ylim=(max(len(shown), 1) - 0.5, -0.5), title=f"Norm mode {norm}", ylabel="method")
    values.set_xlabel(f"{metric.label}, ± 95 % interval")
    times.set(xlabel="training time (minutes)", title="Training time")
    times.set_xlim(0, None)
    save_figure(figure, path)
