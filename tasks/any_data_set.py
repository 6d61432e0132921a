"""``DataSet``: base class of the data sets, which know their facts before they are loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks.dataset import Splits
from fewshot_blo.tasks.reading.class_lists import class_list, published


@dataclass(frozen=True)
class DataSet(ABC):
    """Settings of a data set: ``load`` reads them, and other data sets are compared by them.

    A subclass adds its settings as fields; one of them must be ``size``.

    Attributes:
        title: name of the data set as papers write it.
        class_lists: name of the published class lists of its splits; empty if there are none or
            several.
        refresh: decode the images again, whatever the cache folder holds; settings that differ in
            it alone are equal.
    """

    title: ClassVar[str]
    class_lists: ClassVar[str] = ""
    refresh: bool = field(default=False, kw_only=True, compare=False)

    @abstractmethod
    def load(self) -> Splits:
        """Loads the training, validation and test classes.

        Raises:
            ConfigurationError: if the data set needs a folder and ``root`` is empty.
            DataError: if files are missing or corrupt, or a setting is invalid.
        """

    @property
    def channels(self) -> int:
        """Number of image channels: 1 for grey, 3 for colour."""
        return 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of an image, known without loading the data."""
        size: int = vars(self)["size"]
        return self.channels, size, size

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

    def changed(self, **settings: Any) -> DataSet:
        """A copy with these settings changed; settings that it does not have are ignored."""
        return replace(self, **{name: settings[name] for name in vars(self).keys() & settings})

    def _folder(self, root: str) -> Path:
        if not root:
            raise ConfigurationError(
                f"root is empty: {self.title} needs the folder of its files; set root"
            )
        return expanded(root)


def expanded(path: str) -> Path:
    """The path with ``~`` expanded, or unchanged if there is no such user."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)
