"""The images that runs are tested on: of classes they have not seen, in the colours they know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.request import EvaluationRequest, other_data
from fewshot_blo.experiments.settings import Config
from fewshot_blo.tasks import ClassDataset, Splits
from fewshot_blo.tasks.reading.class_lists import SPLITS


def unseen(
    runs: Mapping[Path, Config],
    request: EvaluationRequest,
    splits: Splits,
    say: Callable[[str], None],
) -> ClassDataset:
    """The classes of a split, without those of another data set that a run was trained on.

    CIFAR-FS and FC100 divide the same classes, miniImageNet and tieredImageNet some. In the
    published pickles of the last, classes have no ids by which to tell: a line says so.

    Args:
        runs: settings of the runs, by checkpoint.
        request: what to measure.
        splits: the data set.
        say: is told what is left out, and what cannot be known.

    Raises:
        ConfigurationError: if none is left.
    """
    dataset = splits.joined() if request.split == "all" else getattr(splits, request.split)
    if not request.data:
        return dataset
    trained = [run.data for run in runs.values()]
    tested = {data: other for data in trained if (other := other_data(data, request)) is not None}
    seen = {name for data in tested for name in data.published_classes("train")}
    names = dataset.class_names
    listed = {
        n for other in tested.values() for part in SPLITS for n in other.published_classes(part)
    }
    if seen & listed and listed.isdisjoint(names):
        say("classes named by words: which of them are training classes is not known")
    kept = [place for place, name in enumerate(names) if name not in seen]
    if len(kept) == len(names):
        return dataset
    left_out = f"{len(names) - len(kept)} of the {len(names)} classes"
    if not kept:
        raise ConfigurationError(f"{left_out} are training classes: use another split")
    say(f"{left_out} are left out, for they are training classes")
    return dataset.select(kept)


def as_trained(
    path: Path, run: Config, dataset: ClassDataset, say: Callable[[str], None]
) -> ClassDataset:
    """The images in grey or in colour, as those that the run was trained on."""
    count = run.data.channels
    if dataset.images.shape[1] != count:
        say(f"{path} sees these images in {'grey' if count == 1 else 'RGB'}, as it was trained")
    return dataset.with_channels(count)
