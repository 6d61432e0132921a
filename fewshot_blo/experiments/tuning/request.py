"""``TuneRequest``: which recipe, how many trials, and where they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.recipes import names_settings
from fewshot_blo.experiments.sharing import check_jobs
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural
from fewshot_blo.records.shipped import recipe_file

Pruner = Literal["median", "hyperband", "none"]


@checked
@dataclass(frozen=True)
class TuneRequest:
    """What to search. The same command goes on after Ctrl-C or a kill.

    Attributes:
        recipe: recipe, or config.yaml of a run; trial 0 has its settings.
        folder: folder of the trials and the table; workers on several machines share it.
        trials: number of trials in all, the recipe included.
        search: settings to search, as train.learning_rate=1e-4..1e-2:log (a range),
            strategy.inner.steps=1..10 (whole numbers), problem.start=zeros,prototypes (choices), or
            the name alone for a range around the recipe's value; usual stands for the settings that
            are searched when none are named.
        space: YAML file of the same: a mapping from names of settings to ranges or lists of
            choices.
        jobs: processes of this machine, which divide its threads and its memory.
        seed: seed of the search; with one process it repeats the search.
        pruner: what ends a trial early by its first validations: median (worse than the median of
            earlier trials at the same step), hyperband, or none.
        storage: database of the trials, as sqlite:///FILE or postgresql://HOST/NAME; empty for the
            file trials.log in the folder.
        root: folder of the data set; empty for that of the recipe.
        max_steps: upper bound of the recipe's outer steps.
        keep: keep the checkpoints of all trials, not only of the best one.
    """

    recipe: Path | None = None
    folder: Path = Path("runs/tune")
    trials: Counting = 20
    search: Sequence[str] = ()
    space: Path | None = None
    jobs: Counting = 1
    seed: Natural = 0
    pruner: Pruner = "median"
    storage: str = ""
    root: str = ""
    max_steps: Counting | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        check_jobs(self.jobs)
        if self.recipe is None:
            raise ConfigurationError("there is nothing to tune: name a recipe (.yaml)")
        if names_settings(self.folder):
            raise ConfigurationError(
                f"folder is '{self.folder}', a file of settings: name it without --folder, and "
                "with --folder a folder"
            )

    @property
    def source(self) -> Path:
        """The recipe's file."""
        assert self.recipe is not None
        return recipe_file(self.recipe)
