"""``ComparedRuns``: the runs of a comparison, and how each is trained and evaluated."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.components import plain
from fewshot_blo.experiments.history import History, Trained, history_of
from fewshot_blo.experiments.measuring import Measured, measure, merged
from fewshot_blo.experiments.part_files import read_part, write_part
from fewshot_blo.experiments.recipes import names_settings, read_recipe, with_seed
from fewshot_blo.experiments.request import EvaluationRequest, check_comparable, requested
from fewshot_blo.experiments.seeds import check_seeds_alone_differ
from fewshot_blo.experiments.settings import SLOTS, Config, config_from
from fewshot_blo.experiments.training import train_from_config
from fewshot_blo.experiments.unseen import NO_HISTORIES
from fewshot_blo.records.provenance import provenance_of_all
from fewshot_blo.records.shard import Shard
from fewshot_blo.tasks.catalogue import DataSet
from fewshot_blo.tasks.split import TaskSplits
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.run import BEST, LAST

logger = logging.getLogger(__name__)

EVALUATED = "evaluated"
"""Subfolder for evaluations of parts of the runs, until the table is written."""


@dataclass(frozen=True)
class Run:
    """One run of a comparison.

    Attributes:
        source: its recipe or its checkpoint.
        seed: seed of the recipe's training; None for a checkpoint.
    """

    source: Path
    seed: int | None = None


@dataclass(frozen=True)
class ComparedRuns:
    """The runs of a comparison.

    Attributes:
        sources, request, folder, seeds, max_steps, progress: as in ``compare``.

    Raises:
        ConfigurationError: if a seed is given twice.
    """

    sources: Sequence[Path]
    request: EvaluationRequest
    folder: Path
    seeds: Sequence[int] = (0,)
    max_steps: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(
                f"seeds is {[*self.seeds]}: runs of one seed are equal; give each seed once"
            )

    @cached_property
    def known(self) -> Mapping[Path, Config | Sequence[Path]]:
        """The settings of each recipe, the checkpoints of each other source.

        Raises:
            CheckpointError: if a source holds no checkpoint.
            ConfigurationError: if a recipe cannot be read, or the runs cannot be compared.
        """
        known: dict[Path, Config | Sequence[Path]] = {
            source: self._read(source) if names_settings(source) else _checkpoints(source)
            for source in self.sources
        }
        for source, found in known.items():
            if not isinstance(found, Config):
                check_seeds_alone_differ(source, found)
        recipes = {s: requested(c, self.request) for s, c in known.items() if isinstance(c, Config)}
        if recipes:  # Before anything is trained.
            check_comparable(recipes)
        return known

    @cached_property
    def recipes(self) -> Mapping[Path, Config]:
        """The settings of the recipes."""
        return {s: config for s, config in self.known.items() if isinstance(config, Config)}

    def of(self, source: Path) -> list[Run]:
        """The runs of a source: a recipe's with each seed, or its checkpoints."""
        found = self.known[source]
        if isinstance(found, Config):
            return [Run(source, seed) for seed in self.seeds]
        return [Run(path) for path in found]

    def groups(self) -> list[list[Run]]:
        """The runs in groups that may be trained beside each other.

        Those that start from the same run are in one group, which trains that run once.
        """
        found: dict[object, list[Run]] = {}
        for source in self.sources:
            for run in self.of(source):
                key = run if run.seed is None else (self._root(source).stem, run.seed)
                found.setdefault(key, []).append(run)
        return list(found.values())

    def train(self, run: Run) -> Path:
        """The best checkpoint of a run; starts or resumes its training.

        Raises:
            KeyboardInterrupt: if training was interrupted.
        """
        return run.source if run.seed is None else self._trained(run.source, run.seed)

    def measure(self, paths: Sequence[Path]) -> Measured:
        """Evaluations of checkpoints, as far as they are known already from files of parts."""
        if not (self.folder / EVALUATED).is_dir():
            return self._measure(paths)
        found: dict[Path, Measured] = {}
        for path in paths:
            with suppress(CheckpointError, OSError):  # Then it is evaluated again.
                found[path] = merged([read_part(self._file(path))])
        parts = [*found.values()]
        missing = [path for path in paths if path not in found]
        if missing:
            parts.append(self._measure(missing, beside=self._all))
        evaluations = {name: own for part in parts for name, own in part.evaluations.items()}
        return Measured(
            {str(path): evaluations[str(path)] for path in paths},
            list(dict.fromkeys(note for part in parts for note in part.notes)),
            provenance_of_all([part.provenance for part in reversed(parts)]),
            parts[-1].settings,
            {path: digest for part in parts for path, digest in part.digests.items()},
        )

    def forget(self, paths: Sequence[Path]) -> None:
        """Removes the files of evaluations, once the table is written."""
        if (self.folder / EVALUATED).is_dir():
            for path in paths:
                self._file(path).unlink(missing_ok=True)
            with suppress(OSError):  # Other runs' are in it.
                (self.folder / EVALUATED).rmdir()

    def prepare(self, group: Sequence[Run]) -> None:
        """Trains runs, and evaluates each into a file, for the table."""
        together = self._all  # Refuses what cannot be compared before anything is trained.
        for run in group:
            path = self.train(run)
            file = self._file(path)
            if not file.is_file():
                write_part(self._measure([path], beside=together, shard=Shard()), file)

    def _measure(
        self,
        paths: Sequence[Path],
        *,
        beside: Mapping[Path, Config] | None = None,
        shard: Shard | None = None,
    ) -> Measured:
        return measure(
            paths,
            self.request,
            self._splits(beside),
            allowed=[str(c.encoder.settings.get("function", "")) for c in self.recipes.values()],
            beside=beside,
            histories=self._histories if beside else NO_HISTORIES,
            shard=shard,
            say=partial(print, flush=True) if self.progress else logger.info,
            progress=self.progress,
        )

    def _splits(self, beside: Mapping[Path, Config] | None) -> TaskSplits | None:
        """The data set to test on, where it is loaded already or several runs need it."""
        if self.recipes and not self.request.data and not self.request.size:
            return self._splits_of(next(iter(self.recipes.values())).data)
        if beside:
            first = next(iter(beside.values()))
            return self._splits_of(requested(first, self.request).data)
        return None

    @cached_property
    def _all(self) -> Mapping[Path, Config]:
        """Settings of all runs: what they were trained on is left out of the tests of each.

        Raises:
            ConfigurationError: if the runs cannot be compared.
        """
        found = dict(self.recipes)
        for source in self.sources:
            for run in self.of(source) if source not in found else ():
                with suppress(ConfigurationError, LookupError, TypeError, AttributeError):
                    found[run.source] = config_from(checkpoints.load(run.source).config)
        check_comparable({path: requested(config, self.request) for path, config in found.items()})
        return found

    @cached_property
    def _histories(self) -> Mapping[Path, History]:
        """What the runs and their starts are trained on."""
        found: dict[Path, History] = {}
        for path in self._all:
            if path in self.recipes:
                found[path] = self._history(path)
            else:
                found[path] = history_of(checkpoints.load(path))
        return found

    def _history(self, recipe: Path) -> History:
        config = self._read(recipe)
        before = History()
        if names_settings(config.start_from):
            before = self._history(recipe.parent / config.start_from)
        elif config.start_from:
            before = history_of(checkpoints.load(Path(config.start_from)))
        return History((Trained(config.data), *before.trained), before.unknown)

    @cached_property
    def _splits_of(self) -> Callable[[DataSet], TaskSplits]:
        return cache(lambda data: data.load())

    def _file(self, path: Path) -> Path:
        """Where the evaluation of a checkpoint is kept, by all that it depends on."""
        settings = {**asdict(self.request), "output": None}
        data = [plain(SLOTS, config.data, DataSet) for config in self._all.values()]
        digest = hashlib.sha256(json.dumps([settings, data, str(path)], default=str).encode())
        with suppress(OSError):  # Whoever loads it says what is wrong.
            digest.update(path.read_bytes())
        return self.folder / EVALUATED / f"{digest.hexdigest()[:32]}.json"

    @cached_property
    def _read(self) -> Callable[[Path], Config]:
        return cache(partial(read_recipe, root=self.request.root, max_steps=self.max_steps))

    def _root(self, recipe: Path) -> Path:
        """The first recipe of a chain, each of which starts from the one before."""
        start = self._read(recipe).start_from
        return self._root(recipe.parent / start) if names_settings(start) else recipe

    def _trained(self, source: Path, seed: int) -> Path:
        config = self._read(source)
        folder = self.folder / source.stem / f"seed{seed}"
        if names_settings(config.start_from):
            path = self._trained(source.parent / config.start_from, seed)
            config = replace(config, start_from=str(path))
        config = with_seed(config, seed)
        if self.progress:
            print(f"{folder}:", flush=True)
        result = train_from_config(
            config,
            self._splits_of(config.data),
            folder,
            resume=(folder / LAST).exists(),
            tested=True,
            progress=self.progress,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        return result.best


def _checkpoints(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    paths = [source / BEST] if (source / BEST).is_file() else sorted(source.glob(f"*/{BEST}"))
    if not paths:
        raise CheckpointError(
            f"{source} holds no {BEST}, and neither does a subfolder: name a recipe (.yaml), the "
            "folder of a run, or a checkpoint"
        )
    return paths
