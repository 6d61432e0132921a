"""Published rows: the figures of the documents, and the settings that were measured.

A row is a line of ``recipes/published.jsonl``. Lines are appended and not edited, so that a figure
keeps the settings that it was measured with, whatever its recipe is changed to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewshot_blo.errors import ConfigurationError, nearest
from fewshot_blo.records import json_files
from fewshot_blo.records.shipped import RECIPES

PUBLISHED = RECIPES / "published.jsonl"
"""The file of all rows."""


@dataclass(frozen=True)
class Figure:
    """A published mean, in the unit that is printed, such as %.

    Attributes:
        mean: mean over tasks, and over training seeds.
        interval: half of its 95 % confidence interval over tasks.
        sd_over_seeds: standard deviation over training seeds; None for one seed.
    """

    mean: float
    interval: float
    sd_over_seeds: float | None = None


@dataclass(frozen=True)
class Difference:
    """A published difference from another row on the same tasks.

    Attributes:
        row: name of the other row.
        norm: norm mode of both.
        mean: mean of the paired difference.
        interval: half of its 95 % confidence interval over tasks.
    """

    row: str
    norm: str
    mean: float
    interval: float


@dataclass(frozen=True)
class PublishedRow:
    """A row of the documents' tables.

    Attributes:
        name: its name, which begins with that of its recipe.
        title: what a table prints as the method.
        table: the table that it is in; text for a figure of the text.
        commits: commits of the code that was measured, in order of time.
        evaluation: what was measured: ``tasks``, ``seed`` of the tasks, and other settings of
            ``evaluate`` that differ from its usual ones.
        figures: the published figure of each norm mode.
        recipe: recipe of the package with these settings; empty for an evaluation of another row.
        settings: all settings of training, defaults included, apart from those that change no
            outer step, such as folders and the device.
        digest: ``digest_of`` the settings.
        max_steps: bound of the outer steps; None for those of the settings.
        seeds: training seeds.
        start: row or released model whose encoder training started from; empty for random weights.
        of: for an evaluation without training of its own: the row or the released model that was
            evaluated.
        difference: paired difference from another row; None if there is none.
        cost: ``steps``, ``minutes``, ``tasks_per_second`` and ``peak_gib`` of training.
        note: what else is known of the run, or is not known.
    """

    name: str
    title: str
    table: str
    commits: Sequence[str]
    evaluation: Mapping[str, Any]
    figures: Mapping[str, Figure]
    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    max_steps: int | None = None
    seeds: Sequence[int] = ()
    start: str = ""
    of: str = ""
    difference: Difference | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def digest_of(settings: Mapping[str, Any]) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of settings as JSON with sorted names."""
    return json_files.digest_of(settings)[:12]


def published_rows(file: Path | None = None) -> dict[str, PublishedRow]:
    """All published rows by name, in the order of their publication.

    Args:
        file: the file of rows; None for that of the package.

    Raises:
        ConfigurationError: if a line is no row, or two have the same name.
        OSError: if the file cannot be read.
    """
    path = file or PUBLISHED
    rows: dict[str, PublishedRow] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = _row(json.loads(line))
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise ConfigurationError(
                f"line {number} of {path} is no published row ({error}): restore the line, or the "
                "file of the package"
            ) from error
        if row.name in rows:
            raise ConfigurationError(
                f"line {number} of {path} has the name {row.name} of an earlier line: append rows "
                "under names of their own"
            )
        rows[row.name] = row
    return rows


def published_row(name: str, rows: Mapping[str, PublishedRow] | None = None) -> PublishedRow:
    """The published row of a name.

    Args:
        name: its name, such as omniglot-5w1s/protonet.
        rows: rows to choose from; None for those of the package.

    Raises:
        ConfigurationError: if there is none; the nearest name is in the message.
    """
    known = published_rows() if rows is None else rows
    if name not in known:
        raise ConfigurationError(
            f"there is no published row '{name}'{nearest(name, list(known))}: fewshot-blo recipes "
            "--rows lists them"
        )
    return known[name]


def line_of(row: PublishedRow) -> str:
    """A row as a line of the file, without what it leaves at its default."""
    return json.dumps(dict(_given(row)), ensure_ascii=False)


def _given(row: PublishedRow) -> Iterator[tuple[str, Any]]:
    for name, value in vars(row).items():
        if name == "figures":
            value = {norm: _figure(figure) for norm, figure in value.items()}
        if name == "difference" and value is not None:
            value = vars(value)
        if value not in ("", None, {}, (), []):
            yield name, value


def _figure(figure: Figure) -> dict[str, float]:
    return {name: value for name, value in vars(figure).items() if value is not None}


def _row(line: dict[str, Any]) -> PublishedRow:
    figures = {norm: Figure(**figure) for norm, figure in line.pop("figures").items()}
    difference = line.pop("difference", None)
    return PublishedRow(
        **line, figures=figures, difference=None if difference is None else Difference(**difference)
    )
