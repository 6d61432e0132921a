"""Checks that what is published is what was measured, for ``publish.py``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from result_tables import TABLES, place_of

from fewshot_blo.errors import ConfigurationError, nearest
from fewshot_blo.experiments.published import config_of, digest_of_measured, frozen
from fewshot_blo.experiments.recipes import with_seed
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.records.loggers.logger import flat
from fewshot_blo.records.published import PublishedRow, published_row
from fewshot_blo.records.shipped import checkpoint_file, released_models
from fewshot_blo.training import checkpoint as checkpoints

Report = Mapping[str, Any]
"""Content of an evaluation file."""


def read_report(file: Path) -> Report:
    """The content of an evaluation file.

    Raises:
        ConfigurationError: if it is none, or does not say how it was measured.
        OSError: if it cannot be read.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{file} cannot be read ({error}): name the file that compare or evaluate wrote"
        ) from error
    if not isinstance(report, dict) or not isinstance(report.get("checkpoints"), dict):
        raise ConfigurationError(
            f"{file} is no evaluation: name the file that compare or evaluate wrote"
        )
    if "kind" in report:
        raise ConfigurationError(
            f"{file} is a {report['kind']}: name the file that fewshot-blo merge writes of all"
        )
    if not isinstance(report.get("settings"), dict) or "commit" not in report.get("provenance", ()):
        raise ConfigurationError(f"{file} does not say how it was measured: evaluate again")
    return report


def check_test(report: Report, file: Path) -> None:
    """Checks that classes were tested on that no choice was made with.

    Raises:
        ConfigurationError: if they are training or validation classes.
    """
    split = report["settings"].get("split", "test")
    if split in ("train", "validation"):
        raise ConfigurationError(
            f"{file} is of the {split} split: published figures are of test classes; evaluate with "
            "--split test"
        )


def check_distinct(paths: Sequence[Path]) -> None:
    """Checks that checkpoints are of different training seeds.

    Raises:
        CheckpointError: if one cannot be read.
        ConfigurationError: if two have one seed.
    """
    seeds: dict[int, Path] = {}
    for path in paths:
        seed = config_from(checkpoints.load(path).config).seed
        if seed in seeds:
            raise ConfigurationError(
                f"{path} and {seeds[seed]} have one training seed, {seed}: name each seed once"
            )
        seeds[seed] = path


def check_same_tasks(report: Report, row: PublishedRow) -> None:
    """Checks that a row was evaluated on the tasks of an evaluation, in whichever norm modes.

    Raises:
        ConfigurationError: if it was evaluated otherwise.
    """
    own, other = ({**given, "norm": ""} for given in (report["settings"], row.evaluation))
    for sentence in differing(own, other):
        raise ConfigurationError(
            f"the evaluation has {sentence} for row {row.name}: a paired difference needs the same "
            "tasks"
        )


def check_table(row: PublishedRow, rows: Mapping[str, PublishedRow]) -> None:
    """Checks that the table of a row can show it.

    Raises:
        ConfigurationError: if there is no such table, or it needs what the row lacks.
    """
    place = place_of(row)
    if place == "text":
        return
    if place not in TABLES:
        known = sorted({name.partition("/")[0] for name in TABLES})
        raise ConfigurationError(
            f"there is no table {row.table}{nearest(row.table, known)}: name text, or one of "
            f"{', '.join(known)}"
        )
    norm, columns = TABLES[place]
    if norm not in row.figures:
        raise ConfigurationError(
            f"norm modes are {', '.join(row.figures)}, and table {place} is ordered by {norm}: "
            f"evaluate norm mode {norm}, too"
        )
    for column, cell in columns.items():
        try:
            cell(row, {**rows, row.name: row})
        except KeyError as error:
            raise ConfigurationError(
                f"the row has nothing for the column '{column}' of table {place} ({error} is "
                "missing): publish it in another table"
            ) from error


def check_measured(report: Report, file: Path, path: Path) -> None:
    """Checks that an evaluation is of a checkpoint as it is now.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
        ConfigurationError: if the evaluation lacks it, or is of other weights or settings.
    """
    found = _entry(report, "checkpoints", path)
    digest = _entry(report, "digests", path)
    if found is not None and digest is None:
        raise ConfigurationError(
            f"{file} has no digest of {path}, so that it may be of another state of the run: "
            "evaluate again"
        )
    if found is not None and digest != digest_of_measured(checkpoints.load(path)):
        raise ConfigurationError(
            f"{file} is of other weights or settings than {path} has now: evaluate again"
        )


def evaluations_of(report: Report, path: Path) -> Sequence[Report]:
    """The evaluations of a checkpoint, one for each norm mode.

    Raises:
        ConfigurationError: if there are none.
    """
    figures: Sequence[Report] | None = _entry(report, "checkpoints", path)
    if figures is None:
        raise ConfigurationError(
            f"the evaluation file has no evaluation of {path}: name that of an evaluation of all "
            "runs"
        )
    return figures


def figures_of(report: Report, path: Path, norm: str) -> Report:
    """The evaluation of a checkpoint in a norm mode.

    Raises:
        ConfigurationError: if there is none.
    """
    found = {each["norm"]: each for each in evaluations_of(report, path)}
    if norm not in found:
        raise ConfigurationError(
            f"the evaluation of {path} has norm modes {', '.join(found)} and no {norm}: evaluate "
            "all runs in the same modes, or name one that they have"
        )
    return found[norm]


def _entry(report: Report, name: str, path: Path) -> Any:
    """What a report has under a name for a checkpoint; None if it has nothing."""
    entries = report.get(name, {}).items()
    return next((found for own, found in entries if Path(own).resolve() == path.resolve()), None)


def check_is_row(path: Path, name: str, rows: Mapping[str, PublishedRow]) -> None:
    """Checks that a checkpoint is a released model, or of a run with the settings of a row.

    Args:
        path: the checkpoint.
        name: name of the model or of the row.
        rows: all rows.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
        ConfigurationError: if it is of something else.
    """
    checkpoint = checkpoints.load(path)
    if name in released_models():
        released = checkpoints.load(checkpoint_file(Path(name)))
        if digest_of_measured(checkpoint) != digest_of_measured(released):
            raise ConfigurationError(
                f"{path} has other weights or settings than the released model {name}: evaluate "
                f"{name}"
            )
        return
    row = published_row(name, rows)
    if row.of:
        check_is_row(path, row.of, rows)
        return
    config = config_from(checkpoint.config)
    if config.seed not in row.seeds:
        raise ConfigurationError(
            f"{path} has seed {config.seed}, and row {name} has {[*row.seeds]}: evaluate its runs"
        )
    expected = with_seed(config_of(row), config.seed)
    for sentence in differing(flat(frozen(config)), flat(frozen(expected))):
        raise ConfigurationError(
            f"{path} has {sentence} in row {name}: evaluate the runs of {name}"
        )
    check_start(path, config, row.start, rows)


def check_start(run: Path, config: Config, start: str, rows: Mapping[str, PublishedRow]) -> None:
    """Checks that a run started from a released model, or from a run of a row.

    Args:
        run: the run, for errors.
        config: its settings.
        start: name of the model or of the row; empty for random weights.
        rows: all rows.

    Raises:
        CheckpointError: if the checkpoint that it started from cannot be read.
        ConfigurationError: if it started from something else.
    """
    if bool(config.start_from) != bool(start):
        raise ConfigurationError(
            f"{run} started from '{config.start_from}', and start is '{start}': name the row or "
            "the released model that it started from, and none otherwise"
        )
    if start:
        check_is_row(checkpoint_file(Path(config.start_from)), start, rows)


def differing(run: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    """The settings of a run that a recipe has otherwise, with both values."""
    for name in sorted(run.keys() | recipe.keys()):
        # Counted when training starts.
        counted = name == "problem.classes" and recipe.get(name) == 0
        if run.get(name) != recipe.get(name) and not counted:
            yield f"{name} {run.get(name)}, which is {recipe.get(name)}"
