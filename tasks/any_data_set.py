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
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width ``(C, H, W)`` of the images, known without loading them."""

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

    def same_images(self, other: DataSet) -> bool:
        """Whether both are one data set, or one folder, however each divides its classes."""
        return self._identity() == other._identity()

    def holds_out_classes_of(self, trained: DataSet) -> bool:
        """Whether a run on ``trained`` was trained on validation or test classes of this one.

        Published lists say so; without them, the same images under another division do.
        """
        held_out = {*self.published_classes("val"), *self.published_classes("test")}
        divided_anew = self.same_images(trained) and self.division != trained.division
        return divided_anew or not held_out.isdisjoint(trained.published_classes("train"))

    def elsewhere(self, *, root: str = "", size: int = 0) -> DataSet:
        """The same data set in another folder, or with images of another size.

        Args:
            root: the folder; empty for that of this one. Ignored where no files are needed.
            size: height and width in pixels; 0 for that of this one.
        """
        changes: dict[str, Any] = {"root": root, "size": size}
        return replace(self, **{name: value for name, value in changes.items() if value})

    def without_mirrors(self) -> DataSet:
        """The same without mirrored classes, which only training has: what a test depends on."""
        return self

    def _identity(self) -> str:
        """Equal for two settings of the same images."""
        return self.title

    def _folder(self, root: str) -> Path:
        if not root:
            raise ConfigurationError(
                f"{self.title} is read from files and root is empty: name the folder of its files "
                "(root)"
            )
        return expanded(root)


def expanded(path: str) -> Path:
    """A path whose ``~`` is expanded, unless there is no such user."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)
