"""``Search``: a folder of trials that any number of workers share."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.components import Tree
from fewshot_blo.experiments.problem import metric_of
from fewshot_blo.experiments.tuning.claims import take_trial, turn
from fewshot_blo.experiments.tuning.request import TuneRequest
from fewshot_blo.experiments.tuning.space import Space
from fewshot_blo.experiments.tuning.store import JOURNAL, open_study
from fewshot_blo.records.json_files import read_json, write_json
from fewshot_blo.records.locks import LockFile
from fewshot_blo.records.quantity import Quantity
from fewshot_blo.training.settings import TrainSettings

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

SETTINGS = "search.json"
_TRIES = 3
"""Of a trial whose worker dies: it may be what kills the worker."""
# They change no result, and may differ between machines.
_MAY_DIFFER = {
    "data": ("root", "download", "refresh"),
    "train": ("memory", "graph", "save_minutes", "loggers"),
}


@dataclass
class Claim:
    """A trial that this worker works on.

    Attributes:
        number: of the trial.
        values: those of the searched settings by name.
        reported: steps whose validation is recorded.
        folder: of the trial's run.
        trial: of Optuna.
        lock: closed when the trial's end is recorded.
        tries: how many workers began it, this one included.
    """

    number: int
    values: Mapping[str, Any]
    reported: frozenset[int]
    folder: Path
    trial: Trial
    lock: LockFile
    tries: int


class Search:
    """A search, new or as its workers left it.

    Args:
        request: what to search.
        space: settings of the recipe, and those that are searched.

    Raises:
        CheckpointError: if the folder cannot be written to, or its files are damaged.
        ConfigurationError: if the folder or the storage has another search.
    """

    def __init__(self, request: TuneRequest, space: Space) -> None:
        self.request, self.space, self.folder = request, space, request.folder
        recipe = space.config({})
        self.settings: TrainSettings = recipe.train
        self.metric: Quantity = metric_of(recipe).quantity
        with turn(self.folder):
            saved = self._saved()
            token = saved.get("folder") or secrets.token_hex(8)
            self.study: Study = open_study(
                self.folder, request, self.settings.steps, maximize=self.metric.higher_is_better
            )
            there = self.study.user_attrs.get("folder")
            self._check_storage(there, token)
            # The file first, and only now: a search without it would be that of another folder.
            if not saved:
                write_json(self.folder / SETTINGS, {**self._own(), "folder": token})
            if there is None:
                self.study.set_user_attr("folder", token)

    def claim(self) -> Claim | None:
        """A trial to work on: one that a dead worker left, or a new one; None if there is none.

        A trial goes on with its number and values where its worker was stopped or killed, and has
        failed if that happens again and again. A new trial depends on the seed, its number and the
        earlier trials alone, so that a search that was interrupted is the same as one that was not.
        """
        with turn(self.folder):
            trials = self.trials()
            for trial in trials:
                left = self._left(trial) if self._is("RUNNING", trial) else None
                if left is not None:
                    return left
            if not trials:
                self.study.enqueue_trial({axis.name: axis.value for axis in self.space.axes})
            number = sum(not self._is("WAITING", trial) for trial in trials)
            if number >= self.request.trials:
                return None
            self.study.sampler = self._sampler(number)
            return self._claimed(self.study.ask(), number, frozenset(), 0)

    def trials(self) -> list[FrozenTrial]:
        """All trials so far."""
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return trials

    def end(self, claim: Claim, state: str, value: float | None, **figures: Any) -> None:
        """Records the end of a trial.

        Args:
            claim: the trial.
            state: COMPLETE, PRUNED or FAIL.
            value: its validation metric if it is complete.
            figures: further figures by name.
        """
        from optuna.trial import TrialState

        for name, figure in figures.items():
            claim.trial.set_user_attr(name, figure)
        self.study.tell(claim.trial, value, TrialState[state])
        claim.lock.close()

    def leave(self, claim: Claim) -> None:
        """Leaves a trial that was interrupted and saved, for this worker or another to go on."""
        claim.trial.set_user_attr("tries", claim.tries - 1)
        claim.lock.close()

    def is_abandoned(self, number: int) -> bool:
        """Whether no worker is at a trial that has not ended."""
        lock = take_trial(self.run_folder(number))
        if lock is not None:
            lock.close()
        return lock is not None

    def run_folder(self, number: int) -> Path:
        """The folder of a trial's run."""
        return self.folder / "trials" / f"{number:03}"

    def _left(self, trial: FrozenTrial) -> Claim | None:
        """A running trial, if its worker is dead."""
        from optuna.trial import Trial

        lock = take_trial(self.run_folder(trial.number))
        if lock is None:
            return None
        tries = trial.user_attrs.get("tries", 0)
        self.study.sampler = self._sampler(trial.number)
        known = Trial(self.study, trial._trial_id)  # To report to; ask makes new ones only.
        reported = frozenset(trial.intermediate_values)
        claim = self._claimed(known, trial.number, reported, tries, lock)
        if tries < _TRIES:
            return claim
        reason = f"its process ended {tries} times without a word, as when memory runs out"
        self.end(claim, "FAIL", None, reason=reason)
        return None

    def _claimed(
        self,
        trial: Trial,
        number: int,
        reported: frozenset[int],
        tries: int,
        lock: LockFile | None = None,
    ) -> Claim:
        folder = self.run_folder(number)
        lock = lock or take_trial(folder)
        assert lock is not None
        values = {axis.name: axis.suggest(trial) for axis in self.space.axes}
        trial.set_user_attr("tries", tries + 1)
        return Claim(number, values, reported, folder, trial, lock, tries + 1)

    def _sampler(self, number: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        seed = np.random.SeedSequence([self.request.seed, number]).generate_state(1)[0]
        return TPESampler(seed=int(seed), constant_liar=True)

    @staticmethod
    def _is(state: str, trial: FrozenTrial) -> bool:
        return bool(trial.state.name == state)

    def _own(self) -> dict[str, Any]:
        """What all calls of a search have in common."""
        return {
            "recipe": _compared(self.space.base),
            "search": [str(axis) for axis in self.space.axes],
            "seed": self.request.seed,
            "pruner": self.request.pruner,
        }

    def _saved(self) -> Mapping[str, Any]:
        """The same of the folder's search, with the folder's mark; empty if it has none.

        Raises:
            ConfigurationError: if it has another search.
        """
        path = self.folder / SETTINGS
        if not path.exists():
            if (self.folder / "trials").exists():
                raise ConfigurationError(
                    f"{self.folder} has trials and no {SETTINGS}: choose another folder"
                )
            return {}
        saved: Mapping[str, Any] = read_json(path)
        for name, value in self._own().items():
            if saved.get(name) != value:
                raise ConfigurationError(
                    f"{self.folder} has a search with {_difference(name, saved.get(name), value)}: "
                    "give the same settings to go on with it, or choose another folder"
                )
        return saved

    def _check_storage(self, there: str | None, token: str) -> None:
        """Raises if the storage has the search of another folder, or has lost that of this one."""
        is_new = there is None and not (self.folder / "trials").exists()
        if not is_new and there != token:
            where = self.request.storage or self.folder / JOURNAL
            raise ConfigurationError(
                f"{where} does not have the trials of {self.folder}: it was emptied, or the search "
                "was begun with another storage (--storage); restore it, name that one, or choose "
                "another folder; workers on several machines share the folder and the storage"
            )


def _compared(settings: Tree) -> Tree:
    """Settings without those that may differ between workers."""
    return {
        name: {n: v for n, v in value.items() if n not in _MAY_DIFFER[name]}
        if name in _MAY_DIFFER
        else value
        for name, value in settings.items()
        if name != "device"
    }


def _difference(name: str, there: Any, here: Any) -> str:
    if name == "recipe" and isinstance(there, Mapping):
        names = [n for n in {**there, **here} if there.get(n) != here.get(n)]
        return f"another recipe ({', '.join(names)} differ)"
    if isinstance(here, Sequence) and not isinstance(here, str):
        return f"another space ({' '.join(map(str, there or ()))})"
    return f"{name} {there}, and this is {name} {here}"
