"""``fewshot-blo data``."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fewshot_blo.commands.settings import config_parser, parsed_config
from fewshot_blo.experiments.data import build_sampler, build_splits
from fewshot_blo.tasks.picture import episode_picture


def parser() -> ArgumentParser:
    """Its options."""
    options = config_parser("Load a data set, say what is in it, and draw a picture of episodes.")
    options.add_argument("--picture", type=Path, help="PNG file to write a few episodes to")
    return options


def run(parser: ArgumentParser, parsed: Namespace) -> int:
    """Runs it; returns the exit status."""
    config = parsed_config(parser, parsed)
    splits = build_splits(config.data)
    for name, dataset in splits:
        counts, shape = dataset.counts, "x".join(map(str, dataset.images.shape[1:]))
        print(
            f"{name:11} {len(dataset.class_names):5} classes, {len(dataset):7} images of {shape}, "
            f"{int(counts.min())} to {int(counts.max())} a class"
        )
    if parsed.picture:
        sampler = build_sampler(config, splits.train, training=True)
        names = splits.train.class_names
        episode_picture(sampler.batch(0), parsed.picture, class_names=names)
        print(f"episodes drawn in {parsed.picture}")
    return 0
