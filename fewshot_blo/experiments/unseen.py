"""Prepares test images: leaves out training classes, converts to grey or colour as in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.request import EvaluationRequest, other_data
from fewshot_blo.experiments.settings import Config
from fewshot_blo.tasks import Splits
from fewshot_blo.tasks.reading.class_lists import SPLITS
from fewshot_blo.tasks.split import TaskSplits


def unseen(
    runs: Mapping[Path, Config],
    request: EvaluationRequest,
    splits: TaskSplits,
    say: Callable[[str], None],
) -> Any:
    """A split; its classes without those that a run was trained on in another data set.

    CIFAR-FS and FC100 share all their classes, miniImageNet and tieredImageNet some. The published
    pickles of tieredImageNet have no class ids, so that shared classes cannot be found; a message
    says so.

    Args:
        runs: settings of the runs, by checkpoint.
        request: settings of the evaluation.
        splits: the data set.
        say: called with a message about classes that are left out or cannot be identified.

    Raises:
        ConfigurationError: if no class is left.
    """
    if not request.data:
        return getattr(splits, request.split)
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
    kept = [place for place, name in enumerate(names) if name not in seen]
    if len(kept) == len(names):
        return dataset
    left_out = f"{len(names) - len(kept)} of the {len(names)} classes"
    if not kept:
        raise ConfigurationError(f"{left_out} are training classes: use another split")
    say(f"{left_out} are left out because they are training classes")
    return dataset.select(kept)


def as_trained(path: Path, run: Config, dataset: Any, say: Callable[[str], None]) -> Any:
    """The split, with images converted to grey or colour as those that the run was trained on."""
    count = run.data.channels
    if not count:
        return dataset
    if dataset.images.shape[1] != count:
        say(f"{path}: images are converted to {'grey' if count == 1 else 'RGB'}, as in training")
    return dataset.with_channels(count)
