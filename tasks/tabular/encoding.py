"""Columns as numbers of an input: standardised, or one number for each category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.tabular.table import Column, told

Missing = Literal["refuse", "fill"]


@dataclass(frozen=True)
class Encoding:
    """How columns become numbers, as learned from the rows of training.

    Attributes:
        scales: mean and standard deviation of each numeric column.
        categories: the categories of each column of texts, sorted.
    """

    scales: Mapping[str, tuple[float, float]]
    categories: Mapping[str, tuple[str, ...]]

    @classmethod
    def learned(cls, columns: Sequence[Column], rows: NDArray[np.bool_]) -> Encoding:
        """The encoding by the rows of training, ``[M]``.

        Raises:
            DataError: if all training rows of a column are missing.
        """
        scales, categories = {}, {}
        for column in columns:
            real = column.values[rows & ~column.missing]
            if not len(real):
                raise DataError(f"column '{column.name}' has no value in training: leave it out")
            if column.is_numeric:
                # A constant column becomes zeros; the mean of equal values may be rounded.
                constant = real.min() == real.max()
                mean, scale = (real[0], 1.0) if constant else (real.mean(), real.std())
                scales[column.name] = float(mean), float(scale)
            else:
                categories[column.name] = tuple(sorted(set(real)))
        return cls(scales, categories)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers of an input: ``column``, or ``column=category``; numbers first."""
        texts = (f"{name}={c}" for name, found in self.categories.items() for c in found)
        return (*self.scales, *texts)

    def encoded(self, columns: Mapping[str, Column]) -> NDArray[np.float64]:
        """Inputs ``[M, D]``: missing numbers are means, missing and new categories zeros."""
        parts = []
        for name, (mean, scale) in self.scales.items():
            values = (columns[name].values - mean) / scale
            parts.append(np.nan_to_num(values[:, None], nan=0.0))
        for name, known in self.categories.items():
            values = columns[name].values
            parts.append(np.stack([values == category for category in known], 1).astype(np.float64))
        found: NDArray[np.float64] = np.concatenate(parts, axis=1)
        return found

    def unseen(self, columns: Mapping[str, Column]) -> list[str]:
        """One sentence for each column that has categories which training has not."""
        sentences = []
        for name, known in self.categories.items():
            new = sorted({v for v in columns[name].values if v is not None} - set(known))
            if new:
                more = f" and {len(new) - 3} more" if len(new) > 3 else ""
                sentences.append(
                    f"categories of column '{name}' that do not occur in training are encoded as "
                    f"zeros: {', '.join(new[:3])}{more}"
                )
        return sentences


def check_missing(columns: Sequence[Column], missing: Missing) -> list[str]:
    """One sentence for each column with missing values that are filled.

    Raises:
        DataError: if values are missing and are not to be filled.
    """
    sentences = []
    for column in columns:
        rows = np.flatnonzero(column.missing)
        if not len(rows):
            continue
        if missing == "refuse":
            raise DataError(
                f"{told(column.name, rows)}: drop these rows, leave the column out, or set missing "
                "to 'fill' for the mean of training, and zeros for texts"
            )
        sentences.append(f"{told(column.name, rows)} and filled in")
    return sentences
