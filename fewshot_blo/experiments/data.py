"""From the settings of a run to its data."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.settings import Config, DataSettings
from fewshot_blo.tasks import ClassDataset, EpisodicSampler, Splits
from fewshot_blo.tasks.reading.class_lists import class_list, published

_SIZES = {"glyphs": 28, "omniglot": 28, "cifarfs": 32, "fc100": 32}  # In pixels; the others' 84.


def build_splits(data: DataSettings) -> Splits:
    """The splits of a data set by name.

    Raises:
        ConfigurationError: if the data set needs a folder and none is given, or mirrored classes
            are asked of it in vain.
        DataError: if its files are missing or bad.
    """
    if data.name != "glyphs" and not data.root:
        raise ConfigurationError(
            f"data set '{data.name}' needs the folder of its files: set --data.root"
        )
    if data.mirrors and data.name != "omniglot":
        raise ConfigurationError(
            f"data.mirrors is true, the data set {data.name}: mirrored classes are for omniglot; "
            "set --augment.flip 0.5 for mirror images in their own class"
        )
    # Imported here, for each data set needs libraries of its own.
    module = importlib.import_module(f"tasks.{'cifarfs' if data.name == 'fc100' else data.name}")
    arguments: dict[str, object] = {"size": image_shape(data)[1]}
    if data.name == "omniglot":
        arguments.update(
            split=data.split,
            rotations=data.rotations,
            mirrors=data.mirrors,
            download=data.download,
        )
    elif data.name in ("cifarfs", "fc100"):
        arguments.update(variant=data.name, download=data.download)
    elif data.name == "folder":
        arguments.update(seed=data.seed, color=data.color)
        if data.csv:
            arguments["csv"] = data.csv
    roots = () if data.name == "glyphs" else (data.root,)
    splits: Splits = module.load(*roots, **arguments)
    return splits


def image_shape(data: DataSettings) -> tuple[int, int, int]:
    """Channels, height and width of the images of a data set."""
    grey = data.name in ("glyphs", "omniglot") or (data.name == "folder" and not data.color)
    size = data.size or _SIZES.get(data.name, 84)
    return 1 if grey else 3, size, size


def same_images(a: DataSettings, b: DataSettings) -> bool:
    """Whether two settings are of one data set or folder, however each divides its classes."""
    if a.name != b.name:
        return False
    return a.name != "folder" or Path(a.root).resolve() == Path(b.root).resolve()


def published_classes(data: DataSettings, split: str) -> list[str]:
    """Classes of train, val or test, where there is a published list; else none."""
    name = f"omniglot_{data.split}" if data.name == "omniglot" else data.name
    return class_list(name, split) if name in published() else []


def build_device(config: Config) -> torch.device:
    """The device.

    Raises:
        ConfigurationError: if it is not there.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros((), device=config.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"device '{config.device}' cannot be used ({reason}): use cpu or auto"
        ) from error
    return torch.device(config.device)


def build_sampler(config: Config, dataset: ClassDataset, *, training: bool) -> EpisodicSampler:
    """The training tasks, or the validation tasks, of a split."""
    episodes, device = config.episodes, build_device(config)
    return EpisodicSampler(
        dataset.to(device),
        way=episodes.way if training else episodes.validation_way or episodes.way,
        shot=episodes.shot if training else episodes.validation_shot or episodes.shot,
        query=episodes.query if training else episodes.validation_query,
        tasks=episodes.tasks,
        seed=episodes.seed if training else episodes.seed + 1,
        device=device,
        dtype=build_dtype(config),
        augment=config.augment if training else None,
    )


def build_dtype(config: Config) -> torch.dtype:
    """Of images and parameters."""
    return torch.float64 if config.dtype == "float64" else torch.float32
