"""``EvaluationRequest``, the settings of an evaluation, and their effect on those of a run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.components import Tree, plain
from fewshot_blo.experiments.problem import metric_of
from fewshot_blo.experiments.settings import SLOTS, Config, Protocol
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.networks.views import Views
from fewshot_blo.objectives import Metric
from fewshot_blo.problems import NormMode
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Counting, Natural
from fewshot_blo.tasks.catalogue import DataSet


@checked
@dataclass(frozen=True)
class EvaluationRequest:
    """Tasks and settings of an evaluation.

    Attributes:
        tasks: number of tasks.
        way: N, classes per task; 0 for that of the run's validation.
        shot: K, support examples per class; 0 for that of the run's validation.
        query: Q, query examples per class; 0 for that of the run's validation.
        protocol: how tasks are drawn from the classes, with settings of its own; none for that of
            the run.
        split: split whose classes tasks are drawn from; all joins the three splits, and is allowed
            only for another data set than that of the run.
        seed: seed of the tasks.
        steps: number of inner steps; -1 for that of the run's validation.
        norm: norm mode of the query set; all evaluates every mode that gives different results.
        views: views of an image, over which features are averaged: one, mirrored (two), shifts
            (nine), mirrored_shifts (18), crops (ten), or scales (three, pretrained networks only).
        metrics: further metrics beside that of the run, as MeanAbsoluteError or AUROC.
        chunk: tasks adapted at a time; 0 for as many as fit into memory, which is measured.
        root: folder of the data set; empty for that of the run.
        data: name of another data set, to measure transfer to it. Its images are converted to the
            size and to the grey or colour of the run's images; training classes of the run are
            left out. Empty for the data set of the run.
        size: height and width of the images in pixels; 0 for those of the run's images.
        network: module:function of the run's own network, which allows that function to run.
            Building the network of a checkpoint calls it, so allow only code that you trust.
        device: cpu, cuda or cuda:1; empty for that of the run.
        precision: precision of the network's matrix products; empty for that of the run.
        output: JSON file for all figures, including the accuracy of each class.
    """

    tasks: Counting = 600
    way: Natural = 0
    shot: Natural = 0
    query: Natural = 0
    protocol: Protocol | None = None
    split: Literal["train", "validation", "test", "all"] = "test"
    seed: Natural = 1000
    steps: Annotated[int, AtLeast(-1)] = -1
    norm: NormMode | Literal["all"] = "all"
    views: Views = "one"
    metrics: Sequence[str] = ()
    chunk: Natural = 0
    root: str = ""
    data: str = ""
    size: Annotated[int, AtLeast(0), AtMost(8192)] = 0
    network: str = ""
    device: str = ""
    precision: Precision | Literal[""] = ""
    output: Path | None = None

    def measured(self) -> list[Metric]:
        """The further metrics.

        Raises:
            ConfigurationError: if there is no metric of a name.
        """
        return [SLOTS[Metric].kind(name, "metrics")() for name in self.metrics]


WITHOUT_EFFECT = ("root", "device", "chunk", "output")
"""Settings of an evaluation that do not affect what is measured."""


def evaluation_settings(request: EvaluationRequest) -> Tree:
    """What decides an evaluation as plain data: tasks, their seed, and what is not as usual."""
    usual = plain(SLOTS, EvaluationRequest())
    return {
        name: value
        for name, value in plain(SLOTS, request).items()
        if name in ("tasks", "seed") or (value != usual[name] and name not in WITHOUT_EFFECT)
    }


def drawn_from(request: EvaluationRequest) -> str:
    """The split, and the data set if it is another; empty for the test split of the run's own."""
    if request.split == "test" and not request.data:
        return ""
    split = "all splits" if request.split == "all" else f"{request.split} split"
    return f"{split} of {request.data}" if request.data else split


def other_data(trained: DataSet, request: EvaluationRequest) -> DataSet | None:
    """The other data set that the request names; None if it is that of the run.

    Raises:
        ConfigurationError: if there is no data set of this name, or one has no images.
    """
    if not request.data:
        return None
    other: DataSet = SLOTS[DataSet].kind(request.data, "data")()
    if not (other.channels and trained.channels):
        raise ConfigurationError(
            f"data is {request.data}, and the run's is {trained.title}: another data set can be "
            "tested on where both have images; leave it out"
        )
    other = other.changed(root=request.root, size=request.size or vars(trained)["size"])
    # Without a folder in the request, a data set of the same kind is in the run's folder.
    same = other if request.root else other.changed(root=vars(trained).get("root", ""))
    return None if same.images == trained.images else other


def requested(config: Config, request: EvaluationRequest) -> Config:
    """The settings of a run with the changes that the request makes.

    Raises:
        ConfigurationError: if the request has several views and the problem has no shared encoder,
            or if it has all splits of the data set that the run was trained on.
    """
    if request.split == "all" and other_data(config.data, request) is None:
        raise ConfigurationError(
            "split is all, and a run was trained on classes of this data set: use split test, or "
            "name another data set (data)"
        )
    episodes, adaptation, problem = config.episodes, config.adaptation, config.problem
    # Checked before training: only a problem on a shared encoder has features to average.
    if request.views != "one" and "encoder" not in inspect.signature(problem.kind).parameters:
        raise ConfigurationError(
            f"views is {request.views}, and the problem is {problem.kind.__name__}: averaging "
            "features over views needs a problem with a shared encoder; use views one"
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
            protocol=request.protocol or episodes.protocol,
            seed=request.seed - 1,
        ),
        adaptation=adaptation if request.steps < 0 else replace(adaptation, steps=request.steps),
        device=request.device or config.device,
    )


def _data(trained: DataSet, request: EvaluationRequest) -> DataSet:
    """The data set to test on: that of the run, possibly in another folder, or another one."""
    other = other_data(trained, request)
    if other is not None:
        return other
    root = {"root": request.root} if request.root else {}
    size = {"size": request.size} if request.size else {}
    # Mirror images change only the training classes.
    mirrors = {} if request.split == "train" else {"mirrors": False}
    return trained.changed(**root, **size, **mirrors)


def check_comparable(configs: Mapping[Path, Config]) -> None:
    """Checks that all runs can be evaluated on the same tasks.

    Args:
        configs: settings of the runs by checkpoint or recipe, with the changes of the request.

    Raises:
        ConfigurationError: if data sets, metrics, ways, shots or numbers of queries differ.
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
                f"{path} and {reference} differ in their data sets ({differing}): runs can be "
                "compared on one data set only (root sets its folder for all runs)"
            )
        measured, other = (metric_of(c).quantity.name for c in (config, first))
        if measured != other:
            raise ConfigurationError(
                f"{path} measures {measured} and {reference} {other}: runs can be compared by one "
                "metric only; evaluate each by itself, with further metrics if need be"
            )
        own, others = (c.episodes.drawn(training=False).describe() for c in (config, first))
        if own != others:
            raise ConfigurationError(
                f"the tasks are {own} for {path} and {others} for {reference}: set way, shot and "
                "query, or protocol, to compare them on the same tasks"
            )
