"""Prepares test images: leaves out training classes, converts to grey or colour as in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.history import History, Trained
from fewshot_blo.experiments.request import EvaluationRequest, other_data
from fewshot_blo.experiments.settings import Config
from fewshot_blo.tasks.catalogue import DataSet
from fewshot_blo.tasks.reading.class_lists import SPLITS
from fewshot_blo.tasks.split import TaskSplits

NO_HISTORIES: Mapping[Path, History] = MappingProxyType({})


def unseen(
    runs: Mapping[Path, Config],
    request: EvaluationRequest,
    splits: TaskSplits,
    say: Callable[[str], None],
    histories: Mapping[Path, History] = NO_HISTORIES,
) -> Any:
    """A split; its classes without those that a run, or one of its starts, was trained on.

    CIFAR-FS and FC100 share all their classes, miniImageNet and tieredImageNet some. The published
    pickles of tieredImageNet have no class ids, so that shared classes cannot be found; a message
    says so. In its own data set a run was trained on classes of the split if the classes are
    divided otherwise than in training, as at random after a folder got further ones.

    Args:
        runs: settings of the runs, by checkpoint.
        request: settings of the evaluation.
        splits: the data set.
        say: called with a message about classes that are left out or cannot be identified.
        histories: what the runs and their starts were trained on, by checkpoint; of others, only
            the data set of the run is known.

    Raises:
        ConfigurationError: if no class is left.
    """
    every: Any = splits
    dataset = every.joined() if request.split == "all" else getattr(splits, request.split)
    data = next(iter(runs.values())).data
    seen, sentences = set[int](), dict[str, None]()  # Of several runs, each is said once.
    for path, run in runs.items():
        other = other_data(run.data, request)
        tested = other or run.data
        history = histories.get(path, History((Trained(run.data),)))
        sentences |= dict.fromkeys(history.gaps(path))
        if other is None and request.split == "train":
            continue
        names = tested.divided_names(dataset)
        for place, one in enumerate(history.trained):
            is_own = place == 0 and other is None
            positions, said = _seen(one, tested, names, is_own=is_own)
            seen |= positions
            sentences |= dict.fromkeys(said)
    for sentence in sentences:
        say(sentence)
    what = "classes" if data.has_classes else "groups"
    return _without(dataset, seen, len(data.divided_names(dataset)), what, say)


def _seen(
    one: Trained, tested: DataSet, names: Sequence[str], *, is_own: bool
) -> tuple[set[int], list[str]]:
    """Positions of classes that were trained on, and what is to be said of them."""
    recorded = one.recorded(tested, names)
    if is_own:
        divided = f"{tested.title} is divided otherwise than in training"
        return recorded, [divided] if recorded else []
    # By the published lists of training classes.
    seen = set(one.data.published_classes("train"))
    listed = {name for part in SPLITS for name in tested.published_classes(part)}
    own = [tested.published_name(name) for name in names]
    found = {place for place, name in enumerate(own) if name in seen}
    if seen & listed and listed.isdisjoint(own):
        return found, ["classes have no ids: which of them are training classes is not known"]
    if one.data.images == tested.images:
        return found | recorded, []
    if recorded and one.data.title == tested.title:
        alike = f"{len(recorded)} of the {len(names)} classes have names of training classes"
        return found, [f"{alike}: whether they are the same is not known"]
    return found, []


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
