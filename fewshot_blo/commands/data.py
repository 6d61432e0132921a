"""``fewshot-blo data``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewshot_blo.commands.loading import load
from fewshot_blo.commands.options import Options
from fewshot_blo.experiments.data import build_sampler
from fewshot_blo.experiments.settings import SLOTS, Config, EpisodeSettings
from fewshot_blo.records.checked import checked
from fewshot_blo.records.terminal import shown
from fewshot_blo.tasks import Augmentation
from fewshot_blo.tasks.catalogue import DataSet, Glyphs
from fewshot_blo.tasks.picture import episode_picture


@checked
@dataclass(frozen=True)
class DataRequest:
    """What to look at.

    Attributes:
        data: data set.
        episodes: tasks drawn from it.
        augment: random changes of the training images.
        picture: PNG file to write a few episodes to.
    """

    data: DataSet = Glyphs()
    episodes: EpisodeSettings = EpisodeSettings()
    augment: Augmentation = Augmentation()
    picture: Path | None = None


OPTIONS = Options((DataRequest,), slots=SLOTS)


def run(request: DataRequest) -> int:
    """Runs it; returns the exit status."""
    splits = load(request.data)
    for name, dataset in splits:
        if not request.data.channels:
            print(f"{name:11} {dataset.describe()}")
            continue
        counts, shape = dataset.counts, "x".join(map(str, dataset.shape))
        print(
            f"{name:11} {len(dataset.class_names):5} classes, {len(dataset):7} images of {shape}, "
            f"{int(counts.min())} to {int(counts.max())} a class"
        )
    if request.picture:
        picture = request.picture
        config = Config(data=request.data, episodes=request.episodes, augment=request.augment)
        sampler = build_sampler(config, splits.train, training=True)
        names = splits.train.class_names
        episode_picture(sampler.batch(0), picture, class_names=names)
        print(f"episodes drawn in {shown(picture)}")
    return 0
