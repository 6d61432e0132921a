"""The data sets, one row each: what its settings are, how it is loaded, and what is known of it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks.dataset import Splits
from fewshot_blo.tasks.reading.class_lists import class_list, published


@dataclass(frozen=True)
class DataSet:
    """Images by class, in classes for training, validation and test.

    A row of the catalogue adds its settings as fields, and says what follows from them.
    """

    module: ClassVar[str]
    needs_files: ClassVar[bool] = True

    def load(self) -> Splits:
        """Reads the images.

        Raises:
            ConfigurationError: if the folder of the files is not named.
            DataError: if files are missing or bad.
        """
        arguments = self.arguments()
        if self.needs_files and not arguments["root"]:
            raise ConfigurationError(
                f"{type(self).__name__} needs the folder of its files, and root is empty: name it"
            )
        # Imported here, for each data set needs libraries of its own.
        module: Any = importlib.import_module(f"fewshot_blo.tasks.{self.module}")
        splits: Splits = module.load(*self.places(), **self.options())
        return splits

    def arguments(self) -> dict[str, Any]:
        """All settings by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def places(self) -> tuple[Path, ...]:
        """The folder of the files, where there are any."""
        root = self.arguments().get("root")
        return () if root is None else (Path(root).expanduser(),)

    def options(self) -> dict[str, Any]:
        """What the module's ``load`` is told beside it."""
        return {name: value for name, value in self.arguments().items() if name != "root"}

    @property
    def channels(self) -> int:
        """Of the images."""
        return 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        size: int = self.arguments()["size"]
        return self.channels, size, size

    @property
    def images(self) -> tuple[str, ...]:
        """What says that two settings are of the same images, however each divides the classes."""
        return (self.module,)

    @property
    def list_name(self) -> str:
        """Of its published lists of classes."""
        return self.module

    def published_classes(self, split: str) -> tuple[str, ...]:
        """Classes of train, val or test, where there is a published list; else none."""
        return tuple(class_list(self.list_name, split)) if self.list_name in published() else ()

    @property
    def division(self) -> tuple[object, ...]:
        """What says that two settings divide the same images alike, where no list does."""
        return ()

    def changed(self, **settings: object) -> DataSet:
        """The same with other settings; those that it has not are left out."""
        known = self.arguments()
        return replace(self, **{n: value for n, value in settings.items() if n in known})


@dataclass(frozen=True)
class Glyphs(DataSet):
    """Letters of the scripts in the fonts that come with matplotlib; needs no files.

    Attributes:
        size: height and width of the images in pixels.
    """

    size: int = 28

    module: ClassVar[str] = "glyphs"
    needs_files: ClassVar[bool] = False

    @property
    def channels(self) -> int:
        """Grey."""
        return 1


@dataclass(frozen=True)
class Omniglot(DataSet):
    """1623 handwritten characters, 20 images each (Lake et al., Science 2015).

    Attributes:
        root: folder of images_background.zip and images_evaluation.zip, packed or unpacked.
        split: division of the characters: vinyals (1028, 172 and 423) or background.
        rotations: turn characters by 90, 180 and 270 degrees into further classes.
        mirrors: mirror training characters into further classes; validation and test have none.
        size: height and width of the images in pixels.
        download: fetch the files where they are missing.
    """

    root: str = ""
    split: Literal["vinyals", "background"] = "vinyals"
    rotations: bool = True
    mirrors: bool = False
    size: int = 28
    download: bool = False

    module: ClassVar[str] = "omniglot"

    @property
    def channels(self) -> int:
        """Grey."""
        return 1

    @property
    def list_name(self) -> str:
        """A list for each division."""
        return f"omniglot_{self.split}"


@dataclass(frozen=True)
class MiniImageNet(DataSet):
    """100 classes of ImageNet, 600 images each (Vinyals et al., arXiv 1606.04080).

    Attributes:
        root: folder of class folders, of csv files with images/, or of the published pickles.
        size: height and width of the images in pixels.
        partial: accept missing classes and images.
    """

    root: str = ""
    size: int = 84
    partial: bool = False

    module: ClassVar[str] = "miniimagenet"


@dataclass(frozen=True)
class TieredImageNet(DataSet):
    """608 classes of ImageNet, divided by category (Ren et al., arXiv 1803.00676).

    Attributes:
        root: folder of class folders, or of the published pickles.
        size: height and width of the images in pixels.
        partial: accept missing classes and images.
    """

    root: str = ""
    size: int = 84
    partial: bool = False

    module: ClassVar[str] = "tieredimagenet"


@dataclass(frozen=True)
class CIFARFS(DataSet):
    """CIFAR-100 in 64, 16 and 20 classes (Bertinetto et al., arXiv 1805.08136).

    Attributes:
        root: folder of CIFAR-100's files, as torchvision keeps them.
        size: height and width of the images in pixels.
        download: fetch the files where they are missing.
    """

    root: str = ""
    size: int = 32
    download: bool = False

    module: ClassVar[str] = "cifarfs"

    def options(self) -> dict[str, Any]:
        """Which division of CIFAR-100."""
        return {**super().options(), "variant": self.list_name}

    @property
    def images(self) -> tuple[str, ...]:
        """A division of its own is a data set of its own."""
        return (self.list_name,)


@dataclass(frozen=True)
class FC100(CIFARFS):
    """CIFAR-100 in 60, 20 and 20 classes by superclass (Oreshkin et al., arXiv 1805.10123).

    Attributes:
        root: folder of CIFAR-100's files, as torchvision keeps them.
        size: height and width of the images in pixels.
        download: fetch the files where they are missing.
    """

    @property
    def list_name(self) -> str:
        """Lists of its own."""
        return "fc100"


@dataclass(frozen=True)
class Folder(DataSet):
    """Images of your own: a folder with one subfolder a class.

    Attributes:
        root: that folder.
        csv: file with the columns class and split that divides the classes; empty for a division
            at random, 64 % for training, 16 % for validation and 20 % for test.
        seed: seed of the division at random.
        color: read the images in colour, else in grey.
        size: height and width of the images in pixels.
    """

    root: str = ""
    csv: str = ""
    seed: int = 0
    color: bool = True
    size: int = 84

    module: ClassVar[str] = "folder"

    def options(self) -> dict[str, Any]:
        """The csv file where there is one."""
        return {**super().options(), "csv": Path(self.csv).expanduser() if self.csv else None}

    @property
    def channels(self) -> int:
        """As it is read."""
        return 3 if self.color else 1

    @property
    def images(self) -> tuple[str, ...]:
        """Known by its place."""
        return (self.module, str(Path(self.root).expanduser().resolve()))

    @property
    def division(self) -> tuple[object, ...]:
        """Its classes are known by how they are divided."""
        return (self.seed, self.csv)


DATA_SETS = (Glyphs, Omniglot, MiniImageNet, TieredImageNet, CIFARFS, FC100, Folder)
"""All of them: what the command line and recipes know."""
