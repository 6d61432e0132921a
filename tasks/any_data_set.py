"""What every data set of the catalogue can be asked, before and beside being loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks.dataset import Splits
from fewshot_blo.tasks.reading.class_lists import class_list, published


@dataclass(frozen=True)
class DataSet(ABC):
    """Settings of a data set, by which it is loaded and compared with others.

    Each data set of the catalogue adds its settings as fields, one of which is ``size``.

    Attributes:
        title: name of the data set as papers write it.
        class_lists: name of the published lists of the classes of its splits; empty if there are
            none, or several.
    """

    title: ClassVar[str]
    class_lists: ClassVar[str] = ""

    @abstractmethod
    def load(self) -> Splits:
        """The training, validation and test classes.

        Raises:
            ConfigurationError: if the data set needs a folder and ``root`` is empty.
            DataError: if files are missing or corrupt, or a setting has no valid value.
        """

    @property
    def channels(self) -> int:
        """Of the images: 1 in grey, 3 in colour."""
        return 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width ``(C, H, W)`` of the images, known without loading them."""
        size: int = vars(self)["size"]
        return self.channels, size, size

    @property
    def images(self) -> str:
        """Equal for two settings of the same images, however each divides the classes."""
        return self.title

    @property
    def division(self) -> str:
        """What divides the classes: the name of published lists, a file or a seed, or nothing."""
        return self.class_lists

    def published_classes(self, split: str) -> tuple[str, ...]:
        """Published names of the classes of train, val or test; empty if there is no list."""
        # A checkpoint may hold any value: only lists that the package carries are read.
        return tuple(class_list(self.division, split)) if self.division in published() else ()

    def published_name(self, class_name: str) -> str:
        """Name in the published lists of a class that ``load`` returns."""
        return class_name

    def holds_out_classes_of(self, trained: DataSet) -> bool:
        """Whether a run on ``trained`` was trained on validation or test classes of this one.

        Published lists say so; without them, the same images under another division do.
        """
        held_out = {*self.published_classes("val"), *self.published_classes("test")}
        divided_anew = self.images == trained.images and self.division != trained.division
        return divided_anew or not held_out.isdisjoint(trained.published_classes("train"))

    def changed(self, **settings: Any) -> DataSet:
        """The same data set with other settings; those that it does not have are left out."""
        return replace(self, **{name: settings[name] for name in vars(self).keys() & settings})

    def _folder(self, root: str) -> Path:
        if not root:
            raise ConfigurationError(
                f"{self.title} needs the folder of its files, and root is empty: name it"
            )
        return expanded(root)


def expanded(path: str) -> Path:
    """A path whose ``~`` is expanded, unless there is no such user."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)
