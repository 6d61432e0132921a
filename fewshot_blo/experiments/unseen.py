"""Prepares test images: leaves out training classes, converts to grey or colour as in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.origin import trained_classes
from fewshot_blo.experiments.request import EvaluationRequest, other_data
from fewshot_blo.experiments.settings import Config
from fewshot_blo.tasks import Splits
from fewshot_blo.tasks.reading.class_lists import SPLITS
from fewshot_blo.tasks.split import TaskSplits

NO_ORIGINS: Mapping[Path, Mapping[str, Any]] = MappingProxyType({})


def unseen(
    runs: Mapping[Path, Config],
    request: EvaluationRequest,
    splits: TaskSplits,
    say: Callable[[str], None],
    origins: Mapping[Path, Mapping[str, Any]] = NO_ORIGINS,
) -> Any:
    """A split; its classes without those that a run was trained on, in this data set or another.

    In its own data set a run was trained on classes of the split if the classes are divided
    otherwise than in training, as at random after a folder got further ones.

    CIFAR-FS and FC100 share all their classes, miniImageNet and tieredImageNet some. The published
    pickles of tieredImageNet have no class ids, so that shared classes cannot be found; a message
    says so.

    Args:
        runs: settings of the runs, by checkpoint.
        request: settings of the evaluation.
        splits: the data set.
        say: called with a message about classes that are left out or cannot be identified.
        origins: what the runs were begun from, by checkpoint, as in ``train``.

    Raises:
        ConfigurationError: if no class is left.
    """
    if not request.data:
        return _own(runs, request.split, splits, say, origins)
    assert isinstance(splits, Splits)
    dataset = splits.joined() if request.split == "all" else getattr(splits, request.split)
    trained = [run.data for run in runs.values()]
    tested = {data: other for data in trained if (other := other_data(data, request)) is not None}
    seen = {name for data in tested for name in data.published_classes("train")}
    names = dataset.class_names
    listed = {
        n for other in tested.values() for part in SPLITS for n in other.published_classes(part)
    }
    if seen & listed and listed.isdisjoint(names):
        say("classes have no ids: which of them are training classes is not known")
    trained_on = {place for place, name in enumerate(names) if name in seen}
    return _without(dataset, trained_on, len(names), "classes", say)


def _own(
    runs: Mapping[Path, Config],
    split: str,
    splits: TaskSplits,
    say: Callable[[str], None],
    origins: Mapping[Path, Mapping[str, Any]],
) -> Any:
    """A split of the runs' own data set, without what they were trained on."""
    found = getattr(splits, split)
    if split == "train":
        return found
    seen = {
        place
        for path, origin in origins.items()
        for place in trained_classes(runs[path].data, found, origin)
    }
    data = next(iter(runs.values())).data
    what = "classes" if data.has_classes else "groups"
    if seen:
        say(f"{data.title} is divided otherwise than in training")
    return _without(found, seen, len(data.divided_names(found)), what, say)


def _without(
    dataset: Any, trained_on: set[int], count: int, what: str, say: Callable[[str], None]
) -> Any:
    if not trained_on:
        return dataset
    left_out = f"{len(trained_on)} of the {count} {what}"
    if len(trained_on) == count:
        raise ConfigurationError(f"{left_out} are training {what}: use another split")
    say(f"{left_out} are left out because they are training {what}")
    return dataset.select([place for place in range(count) if place not in trained_on])


def as_trained(path: Path, run: Config, dataset: Any, say: Callable[[str], None]) -> Any:
    """The split, with images converted to grey or colour as those that the run was trained on."""
    count = run.data.channels
    if not count:
        return dataset
    if dataset.images.shape[1] != count:
        say(f"{path}: images are converted to {'grey' if count == 1 else 'RGB'}, as in training")
    return dataset.with_channels(count)
