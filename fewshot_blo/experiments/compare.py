"""Compares methods on the same tasks: trains recipes, evaluates runs, writes table and figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.recipes import names_settings, read_recipe
from fewshot_blo.experiments.report import evaluate_checkpoints
from fewshot_blo.experiments.request import EvaluationRequest, check_comparable, requested
from fewshot_blo.experiments.settings import Config
from fewshot_blo.experiments.table import Row, write_comparison
from fewshot_blo.experiments.training import train_from_config
from fewshot_blo.records.locks import writing
from fewshot_blo.tasks import Splits
from fewshot_blo.tasks.catalogue import DataSet
from fewshot_blo.training.run import BEST, LAST


def compare(
    sources: Sequence[Path],
    request: EvaluationRequest,
    *,
    folder: Path,
    seeds: Sequence[int] = (0,),
    max_steps: int | None = None,
    progress: bool = True,
) -> list[Row]:
    """Trains recipes that have no finished run, evaluates all on the same tasks, writes a table.

    Args:
        sources: recipes (YAML files of settings), folders of runs, or checkpoints. A folder whose
            subfolders are runs counts as one method with several seeds.
        request: settings of the evaluation. Its ``root`` is the folder of the recipes' data set;
            its ``output`` is replaced by ``<folder>/evaluation.json``.
        folder: folder of the table and of the runs of recipes, ``<folder>/<recipe>/seed<k>``.
        seeds: training seeds of the recipes.
        max_steps: upper bound of the outer steps of the recipes; None for no bound.
        progress: print the table and the progress of training and evaluation; False is silent.

    Returns:
        A row for each source.

    Raises:
        CheckpointError: if a source holds no checkpoint, or another process writes to the folder.
        ConfigurationError: if a recipe cannot be read, two sources have the same name, or their
            data sets or tasks differ.
        KeyboardInterrupt: if training was interrupted; the same call resumes it.
    """
    names = [_name(source) for source in sources]
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"two sources have the same name: {', '.join(sorted(names))}; rename one"
        )
    recipe = partial(read_recipe, root=request.root, max_steps=max_steps)
    known: dict[Path, Config | list[Path]] = {
        source: recipe(source) if names_settings(source) else _checkpoints(source)
        for source in sources
    }
    recipes = {source: item for source, item in known.items() if isinstance(item, Config)}
    if recipes:  # Before anything is trained.
        check_comparable({source: requested(c, request) for source, c in recipes.items()})
    splits_of = cache(lambda data: data.load())
    with writing(folder):
        found = [
            [_trained(source, recipe, splits_of, folder, seed, progress) for seed in seeds]
            if isinstance(item, Config)
            else item
            for source, item in known.items()
        ]
        networks = [str(c.encoder.settings.get("function", "")) for c in recipes.values()]
        paths = [path for group in found for path in group]
        trained_on = next(iter(recipes.values())).data if recipes else None
        other = trained_on is None or request.data or request.size
        figures = evaluate_checkpoints(
            paths,
            replace(request, output=folder / "evaluation.json"),
            None if other else splits_of(trained_on),
            allowed=networks,
            progress=progress,
        )
        rows = [
            Row(name, group, [figures[str(path)] for path in group])
            for name, group in zip(names, found, strict=True)
        ]
        table = write_comparison(rows, folder)
    if progress:
        print(table)
    return rows


def _name(source: Path) -> str:
    """The name of a source: that of the recipe's file, or of the run's folder."""
    if source.name in (BEST, LAST):
        return source.parent.name
    return source.stem if source.is_file() else source.name


def _trained(
    source: Path,
    recipe: Callable[[Path], Config],
    splits_of: Callable[[DataSet], Splits],
    runs: Path,
    seed: int,
    progress: bool,
) -> Path:
    """The best checkpoint of a recipe's run with one seed; starts or resumes its training."""
    config = recipe(source)
    folder = runs / source.stem / f"seed{seed}"
    if names_settings(config.start_from):
        first = source.parent / config.start_from
        path = _trained(first, recipe, splits_of, runs, seed, progress)
        config = replace(config, start_from=str(path))
    config = replace(
        config,
        seed=seed,
        # Validation tasks use the seed after that of the training tasks.
        episodes=replace(config.episodes, seed=config.episodes.seed + 2 * seed),
        train=replace(config.train, seed=seed),
    )
    if progress:
        print(f"{folder}:", flush=True)
    result = train_from_config(
        config,
        splits_of(config.data),
        folder,
        resume=(folder / LAST).exists(),
        tested=True,
        progress=progress,
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
