"""``group_table`` and ``class_table``: data sets from a table, by groups or by classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, Counting, Natural
from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.groups import GroupedDataset, GroupSplits
from fewshot_blo.tasks.tabular.encoding import Encoding, Missing, check_missing
from fewshot_blo.tasks.tabular.table import Column, Table, columns_of, named

Shares = tuple[
    Annotated[float, AtLeast(0)], Annotated[float, AtLeast(0)], Annotated[float, AtLeast(0)]
]


@checked
def group_table(
    table: Table,
    *,
    group: str,
    target: str,
    features: Sequence[str] = (),
    categorical: Sequence[str] = (),
    shares: Shares = (0.6, 0.2, 0.2),
    least: Counting = 2,
    missing: Missing = "refuse",
    seed: Natural = 0,
) -> GroupSplits:
    """Groups of rows, each of which is a task: to predict one column from others.

    Numbers are standardised and texts encoded as one number for each category, by the rows of the
    training groups alone. A numeric target is taken as it is, ``[M, 1]``; texts become labels.

    Args:
        table: DataFrame, mapping of columns, structured array, or path of a csv file.
        group: name of the column that tells the groups apart.
        target: name of the column to predict.
        features: names of the columns to predict from; all others by default.
        categorical: columns whose numbers are names, such as postcodes; also of the target.
        shares: shares of the groups for training, validation and test, which are normalised.
        least: smallest number of rows of a group; smaller groups are left out, which a note says.
        missing: "refuse", or "fill" missing values of features by the mean of training and zeros.
        seed: seed of the division of the groups.

    Raises:
        DataError: if a column does not exist or misses values, or there are too few groups.
    """
    columns = columns_of(table, {*categorical, group})
    of_group = named(columns, group, "group").needed("each row must be of a group")
    wanted = named(columns, target, "target").needed("drop rows without a target")
    inputs = _features(columns, features, categorical, (group, target))
    parts, notes = _encoded(columns, of_group, inputs, shares, least, missing, seed)
    categories = () if wanted.is_numeric else tuple(sorted(set(wanted.values)))
    split = []
    for examples, order in zip(parts.datasets, parts.orders, strict=True):
        values = wanted.values[order]
        if categories:
            targets = torch.from_numpy(np.searchsorted(categories, values.astype(str)))
        else:
            targets = torch.from_numpy(values[:, None])
        split.append(GroupedDataset(examples, targets, categories, parts.names))
    return GroupSplits(*split, notes=tuple(notes))


@checked
def class_table(
    table: Table,
    *,
    label: str,
    features: Sequence[str] = (),
    categorical: Sequence[str] = (),
    shares: Shares = (0.6, 0.2, 0.2),
    least: Counting = 1,
    missing: Missing = "refuse",
    seed: Natural = 0,
) -> Splits:
    """Classes of rows for N-way tasks, with the other columns as inputs ``[M, D]``.

    Args:
        table, features, categorical, shares, missing, seed: as in ``group_table``, of classes.
        label: name of the column with the class.
        least: smallest number of rows of a class; smaller classes are left out.

    Raises:
        DataError: if a column does not exist or misses values, or there are too few classes.
    """
    columns = columns_of(table, {*categorical, label})
    classes = named(columns, label, "label").needed("each row must have a class")
    inputs = _features(columns, features, categorical, (label,))
    parts, notes = _encoded(columns, classes, inputs, shares, least, missing, seed)
    return Splits(*parts.datasets, notes=tuple(notes))


def _features(
    columns: dict[str, Column],
    features: Sequence[str],
    categorical: Sequence[str],
    others: Sequence[str],
) -> list[Column]:
    for name in categorical:
        named(columns, name, "categorical")
    names = list(features) or [name for name in columns if name not in others]
    if not names:
        raise DataError(f"the table has no column beside {', '.join(others)}: add features")
    if used := [name for name in names if name in others]:
        raise DataError(f"features have '{used[0]}', which is what is to be told: leave it out")
    return [named(columns, name, "a feature") for name in names]


@dataclass(frozen=True)
class _Parts:
    """Data sets of training, validation and test, and the rows of the table in their order."""

    datasets: list[ClassDataset]
    orders: list[NDArray[np.int64]]
    names: tuple[str, ...]


def _encoded(
    columns: dict[str, Column],
    groups: Column,
    inputs: list[Column],
    shares: Shares,
    least: int,
    missing: Missing,
    seed: int,
) -> tuple[_Parts, list[str]]:
    notes = check_missing(inputs, missing)
    found, of_row = np.unique(groups.values.astype(str), return_inverse=True)
    counts = np.bincount(of_row)
    kept = np.flatnonzero(counts >= least)
    if len(kept) < len(found):
        notes.append(
            f"{len(found) - len(kept)} of {len(found)} values of '{groups.name}' have fewer than "
            f"{least} rows and are left out"
        )
    divided = _divided(kept, shares, seed, groups.name)
    encoding = Encoding.learned(inputs, np.isin(of_row, divided[0]))
    notes += encoding.unseen({column.name: column for column in inputs})
    numbers = encoding.encoded(columns)
    datasets, orders = [], []
    for part in divided:
        order = np.concatenate([np.flatnonzero(of_row == group) for group in part])
        sizes = {str(found[group]): int(counts[group]) for group in part}
        datasets.append(ClassDataset.from_counts(torch.from_numpy(numbers[order]), sizes))
        orders.append(order)
    return _Parts(datasets, orders, encoding.names), notes


def _divided(
    groups: NDArray[np.int64], shares: Shares, seed: int, name: str
) -> list[NDArray[np.int64]]:
    """The groups of training, validation and test, each in ascending order."""
    ends = np.cumsum(shares)
    if not ends[-1] > 0:
        raise DataError(f"shares are {shares}: at least one must be positive")
    places = np.round(ends / ends[-1] * len(groups)).astype(int)
    shuffled = np.random.default_rng(seed).permutation(groups)
    parts = [np.sort(part) for part in np.split(shuffled, places[:2])]
    for split, part in zip(("training", "validation", "test"), parts, strict=True):
        if not len(part):
            raise DataError(
                f"{len(groups)} values of '{name}' with shares {shares} leave none for {split}: "
                "raise its share, or give more of them"
            )
    return parts
