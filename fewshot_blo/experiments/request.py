"""What an evaluation is to measure, and what that makes of the settings of runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.components import plain
from fewshot_blo.experiments.settings import SLOTS, Config
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.networks.views import Views
from fewshot_blo.problems import NormMode
from fewshot_blo.tasks.catalogue import DataSet


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure.

    Attributes:
        tasks: number of tasks.
        way: N, classes a task; 0 for that of the run's validation.
        shot: K, support images a class; 0 for that of the run's validation.
        query: Q, query images a class; 0 for that of the run's validation.
        split: classes to draw from; all joins the three, for another data set than the run's.
        seed: seed of the tasks.
        steps: number of inner steps; -1 for those of the run's validation.
        norm: norm mode of the query set; all measures those that differ.
        views: views of an image, over which features are averaged: mirrored (two),
            shifts (nine), mirrored_shifts, crops (ten), and scales (three) of pretrained networks.
        chunk: tasks adapted at a time; 0 measures how many fit into memory.
        root: folder of the data set, where it is not the one of the run.
        data: name of another data set than that of the run, to test what carries over to it; in
            grey or in colour, as the run's images were, and without its training classes.
        size: height and width of the images in pixels; 0 for those of the run's.
        network: module:function of the run's own network, to allow that it is run. A checkpoint may
            come from anyone, and building its network runs that function.
        device: cpu, cuda or cuda:1; empty for the run's.
        precision: precision of the network's products; empty for the run's.
        output: JSON file for all figures, per-class accuracy included.
    """

    tasks: int = 600
    way: int = 0
    shot: int = 0
    query: int = 0
    split: Literal["train", "validation", "test", "all"] = "test"
    seed: int = 1000
    steps: int = -1
    norm: NormMode | Literal["all"] = "all"
    views: Views = "one"
    chunk: int = 0
    root: str = ""
    data: str = ""
    size: int = 0
    network: str = ""
    device: str = ""
    precision: Precision | Literal[""] = ""
    output: Path | None = None


def other_data(trained: DataSet, request: EvaluationRequest) -> DataSet | None:
    """The other data set that the request names; None where it is that of the run.

    Raises:
        ConfigurationError: if there is none of that name.
    """
    if not request.data:
        return None
    other: DataSet = SLOTS[DataSet].kind(request.data, "data")()
    other = other.changed(root=request.root, size=request.size or trained.image_shape[1])
    # Of the same kind in the run's folder, where none is named.
    same = other if request.root else other.changed(root=trained.arguments().get("root", ""))
    return None if same.images == trained.images else other


def requested(config: Config, request: EvaluationRequest) -> Config:
    """A run's settings with what the request changes.

    Raises:
        ConfigurationError: if several views are asked of a problem that has no features to
            average, or the classes of all splits of the data that the run was trained on.
    """
    if request.split == "all" and other_data(config.data, request) is None:
        raise ConfigurationError(
            "split is all, and a run was trained on classes of these data: use test, or the "
            "classes of another data set (data)"
        )
    episodes, adaptation, problem = config.episodes, config.adaptation, config.problem
    # Known before anything is trained: a problem on an encoder has features.
    if request.views != "one" and "encoder" not in inspect.signature(problem.kind).parameters:
        raise ConfigurationError(
            f"views is {request.views}, and the problem is {problem.kind.__name__}: features are "
            "averaged over views where a shared encoder has some; use one"
        )
    if request.precision:
        problem = problem.changed(precision=request.precision)
    return replace(
        config,
        problem=problem,
        data=_data(config.data, request),
        episodes=replace(
            episodes,
            validation_way=request.way or episodes.validation_way,
            validation_shot=request.shot or episodes.validation_shot,
            validation_query=request.query or episodes.validation_query,
            seed=request.seed - 1,
        ),
        adaptation=adaptation if request.steps < 0 else replace(adaptation, steps=request.steps),
        device=request.device or config.device,
    )


def _data(trained: DataSet, request: EvaluationRequest) -> DataSet:
    """The data to test on: the run's, perhaps elsewhere, or another set."""
    other = other_data(trained, request)
    if other is not None:
        return other.changed(color=trained.channels == 3)
    root = {"root": request.root} if request.root else {}
    size = {"size": request.size} if request.size else {}
    # Validation and test classes are the same with and without mirror images in training.
    mirrors = {} if request.split == "train" else {"mirrors": False}
    return trained.changed(**root, **size, **mirrors)


def check_comparable(configs: Mapping[Path, Config]) -> None:
    """Raises where runs cannot be evaluated on the same tasks.

    Args:
        configs: their settings, with what the request changes.

    Raises:
        ConfigurationError: if they are of different data sets or tasks.
    """
    reference, first = next(iter(configs.items()))
    for path, config in configs.items():
        if config.data != first.data:
            own, others = (plain(SLOTS, c.data, DataSet) for c in (config, first))
            differing = ", ".join(
                f"data.{name} is {own.get(name)!r} and {others.get(name)!r}"
                for name in own | others
                if own.get(name) != others.get(name)
            )
            raise ConfigurationError(
                f"of {path} and {reference} {differing}: only runs of one data set are compared "
                "on the same tasks (root names another folder for all)"
            )
        if _sizes(config) != _sizes(first):
            raise ConfigurationError(
                f"{path} is of tasks of way, shot, query {_sizes(config)} and {reference} of "
                f"{_sizes(first)}: set way, shot and query to compare them on the same tasks"
            )


def _sizes(config: Config) -> tuple[object, ...]:
    episodes = config.episodes
    way, shot = episodes.validation_way or episodes.way, episodes.validation_shot or episodes.shot
    return way, shot, episodes.validation_query
