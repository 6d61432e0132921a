"""Settings of data that are no images: functions of a family, and tables of numbers and names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, Positive
from fewshot_blo.tasks.any_data_set import DataSet, Drawing, expanded
from fewshot_blo.tasks.families import Family, FunctionSampler, Sinusoid
from fewshot_blo.tasks.families.splits import FunctionSplit, FunctionSplits
from fewshot_blo.tasks.group_sampler import GroupSampler
from fewshot_blo.tasks.groups import GroupedDataset, GroupSplits
from fewshot_blo.tasks.tabular import group_table


@checked
@dataclass(frozen=True)
class Functions(DataSet):
    """Regression tasks: points on functions of a family, drawn without end; needs no files.

    Training, validation and test tasks come from streams of random numbers of their own.

    Attributes:
        family: the functions.
    """

    title = "Functions"
    has_classes = False
    family: Family = Sinusoid()

    def load(self) -> FunctionSplits:
        return FunctionSplits(self.family)

    def sampler(self, split: FunctionSplit, drawing: Drawing) -> FunctionSampler:
        return FunctionSampler(
            split.family,
            shot=drawing.whole("shot"),
            query=drawing.whole("query"),
            tasks=drawing.tasks,
            seed=drawing.seed,
            split=split.name,
            device=drawing.device,
            dtype=drawing.dtype,
        )

    @property
    def channels(self) -> int:
        return 0


@checked
@dataclass(frozen=True)
class Table(DataSet):
    """A csv file with a row for each example and a column of groups, each of which is a task.

    The groups are divided at random for training, validation and test.

    Attributes:
        root: the csv file; ~ is the home folder.
        group: name of the column that tells the groups apart.
        target: name of the column to predict: numbers, or names of categories.
        features: names of the columns to predict from, as [age,size]; all others by default.
        categorical: columns whose numbers are names, such as postcodes.
        fractions: fractions of the groups for training, validation and test.
        least: smallest number of rows of a group; smaller groups are left out, which is said.
        missing: refuse missing values of features, or fill them by means and zeros.
        seed: seed of the division of the groups.
    """

    title = "Table"
    files = "its csv file"
    has_classes = False
    root: str = ""
    group: str = ""
    target: str = ""
    features: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    fractions: tuple[Positive, Positive, Positive] = (0.6, 0.2, 0.2)
    least: Counting = 2
    missing: Literal["refuse", "fill"] = "refuse"
    seed: Natural = 0

    def load(self) -> GroupSplits:
        file = self._folder(self.root)
        for name in ("group", "target"):
            if not vars(self)[name]:
                raise ConfigurationError(
                    f"{name} is empty: set data.{name} to the name of that column of the table"
                )
        return group_table(
            file,
            group=self.group,
            target=self.target,
            features=self.features,
            categorical=self.categorical,
            shares=self.fractions,
            least=self.least,
            missing=self.missing,
            seed=self.seed,
        )

    def divided_names(self, split: GroupedDataset) -> tuple[str, ...]:
        """Names of the groups."""
        return split.group_names

    def sampler(self, split: GroupedDataset, drawing: Drawing) -> GroupSampler:
        return GroupSampler(
            split,
            shot=drawing.whole("shot"),
            query=drawing.whole("query"),
            tasks=drawing.tasks,
            seed=drawing.seed,
            device=drawing.device,
            dtype=drawing.dtype,
        )

    @property
    def channels(self) -> int:
        return 0

    @property
    def images(self) -> str:
        return f"{self.title} {expanded(self.root).resolve()}"
