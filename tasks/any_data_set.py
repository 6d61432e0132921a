"""``DataSet``: base class of the data sets, which know their facts before they are loaded."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from typing_extensions import Self

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.machine.memory import free_bytes
from fewshot_blo.tasks.augmentation import Augmentation
from fewshot_blo.tasks.class_sampler import ClassSampler
from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.inputs import tensors_of
from fewshot_blo.tasks.protocols.protocol import Protocol
from fewshot_blo.tasks.reading.class_lists import class_list, published
from fewshot_blo.tasks.source import TaskSource
from fewshot_blo.tasks.split import TaskSplits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """How the tasks of a run are drawn.

    Attributes:
        protocol: for data with classes.
        shot, query: numbers of support and query examples of a task without classes.
        tasks: T, number of tasks in a batch.
        seed: seed of the tasks.
        device, dtype: of the batches.
        augment: data augmentation of images; None for none.
    """

    protocol: Protocol
    shot: int | tuple[int, int]
    query: int | tuple[int, int]
    tasks: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    augment: Augmentation | None

    def whole(self, name: Literal["shot", "query"]) -> int:
        """The number of support or query examples of a task without classes.

        Raises:
            DataError: if it is a range.
        """
        size = self.shot if name == "shot" else self.query
        if not isinstance(size, int):
            raise DataError(f"{name} is {size}: tasks without classes need one number")
        return size


@dataclass(frozen=True)
class DataSet(ABC):
    """Settings of a data set: ``load`` reads them, and other data sets are compared by them.

    A subclass adds its settings as fields. Its splits are classes, unless it overrides ``sampler``.

    Attributes:
        title: name of the data set as papers write it.
        files: what ``root`` names, for messages.
        class_lists: name of the published class lists of its splits; empty if there are none or
            several.
        has_classes: whether tasks are drawn from classes, by a protocol and with augmentation of
            images; if not, settings of these are refused.
    """

    title: ClassVar[str]
    files: ClassVar[str] = "the folder of its files"
    class_lists: ClassVar[str] = ""
    has_classes: ClassVar[bool] = True

    @abstractmethod
    def load(self) -> TaskSplits:
        """Loads training, validation and test data: classes, in ``Splits``, or any other.

        Raises:
            ConfigurationError: if the data set needs a folder and ``root`` is empty.
            DataError: if files are missing or corrupt, or a setting is invalid.
        """

    def sampler(self, split: Any, drawing: Drawing) -> TaskSource:
        """The tasks of a split.

        Args:
            split: one of those that ``load`` returns: classes here.
            drawing: how tasks are drawn.

        Raises:
            DataError: if there are too few classes or images.
        """
        return ClassSampler(
            _near(split, drawing.device),
            drawing.protocol,
            tasks=drawing.tasks,
            seed=drawing.seed,
            device=drawing.device,
            dtype=drawing.dtype,
            augment=drawing.augment,
        )

    @property
    def channels(self) -> int:
        """Number of image channels: 1 for grey, 3 for colour, 0 for data of other kinds."""
        return 0

    @property
    def images(self) -> str:
        """Identifies the images: equal for two settings with the same images in any split."""
        return self.title

    @property
    def division(self) -> str:
        """Identifies the split: name of published class lists, a CSV file or a seed, or empty."""
        return self.class_lists

    def published_classes(self, split: str) -> tuple[str, ...]:
        """Published class names of split train, val or test; empty if there is no list."""
        # A checkpoint may hold any string: only lists that ship with the package are read.
        return tuple(class_list(self.division, split)) if self.division in published() else ()

    def published_name(self, class_name: str) -> str:
        """The published name of a class that ``load`` returns."""
        return class_name

    def divided_names(self, split: Any) -> tuple[str, ...]:
        """Names of what a split of ``load`` holds, and no other split does: classes here."""
        return tuple(split.class_names) if self.has_classes else ()

    def holds_out_classes_of(self, trained: DataSet) -> bool:
        """Whether training on ``trained`` has seen validation or test classes of this data set.

        Decided by the published class lists; also true for the same images in another split.
        """
        held_out = {*self.published_classes("val"), *self.published_classes("test")}
        divided_anew = self.images == trained.images and self.division != trained.division
        return divided_anew or not held_out.isdisjoint(trained.published_classes("train"))

    @property
    def lacks_files(self) -> bool:
        """Whether it reads files and no setting says where they are."""
        return vars(self).get("root") == ""

    def changed(self, **settings: Any) -> Self:
        """A copy with these settings changed; settings that it does not have are ignored."""
        return replace(self, **{name: settings[name] for name in vars(self).keys() & settings})

    def _folder(self, root: str) -> Path:
        if not root:
            raise ConfigurationError(f"root is empty: {self.title} needs {self.files}; set root")
        return expanded(root)


@dataclass(frozen=True)
class ImageDataSet(DataSet):
    """Settings of a data set of images; one of its fields must be ``size``.

    Attributes:
        refresh: decode the images again, whatever the cache folder holds; settings that differ in
            it alone are equal.
    """

    refresh: bool = field(default=False, kw_only=True, compare=False)

    @property
    def channels(self) -> int:
        """Number of image channels: 1 for grey, 3 for colour."""
        return 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of an image, known without loading the data."""
        size: int = vars(self)["size"]
        return self.channels, size, size


def _near(dataset: ClassDataset, device: torch.device) -> ClassDataset:
    """The data set on the device, or where it is if it would take half of a GPU's free memory."""
    size = sum(x.numel() * x.element_size() for x in tensors_of(dataset.inputs))
    if device.type == "cuda" and size > free_bytes(device) // 2:
        logger.info(
            "%.1f GiB of data stay in the host's memory: the GPU has %.1f GiB free",
            size / 2**30,
            free_bytes(device) / 2**30,
        )
        return dataset
    return dataset.to(device)


def expanded(path: str) -> Path:
    """The path with ``~`` expanded, or unchanged if there is no such user."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)
