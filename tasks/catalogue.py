"""The catalogue: one dataclass per data set, with its settings as fields and the facts about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Pixels
from fewshot_blo.tasks.any_data_set import DataSet, ImageDataSet
from fewshot_blo.tasks.dataset import Splits
from fewshot_blo.tasks.own_data_sets import Folder, Parquet
from fewshot_blo.tasks.tasks_without_images import Functions, Table

__all__ = [
    "CIFARFS",
    "DATA_SETS",
    "FC100",
    "DataSet",
    "Folder",
    "Functions",
    "Glyphs",
    "MiniImageNet",
    "Omniglot",
    "Parquet",
    "Table",
    "TieredImageNet",
]

# ``load`` imports its module lazily: some modules need further libraries.


@checked
@dataclass(frozen=True)
class Glyphs(ImageDataSet):
    """Over 1,000 printed letters of 15 scripts in grey, 20 pictures each, split by letter.

    Rendered from the DejaVu and STIX fonts that matplotlib carries; needs no files.

    Attributes:
        size: height and width of the images in pixels, at least 12.
        refresh: decode the images again, whatever the cache folder holds.
    """

    title = "Glyphs"
    size: Annotated[int, AtLeast(12), AtMost(8192)] = 28

    def load(self) -> Splits:
        from fewshot_blo.tasks import glyphs

        return glyphs.load(size=self.size, refresh=self.refresh)

    @property
    def channels(self) -> int:
        return 1


@checked
@dataclass(frozen=True)
class Omniglot(ImageDataSet):
    """1,623 handwritten characters of 50 alphabets in grey, 20 drawings each.

    Source: Lake et al., Science 2015.

    Attributes:
        root: folder that holds images_background and images_evaluation, as zip archives or
            unpacked (https://github.com/brendenlake/omniglot), or torchmeta's data.hdf5; ~ is the
            home folder.
        split: division of the characters: vinyals (1028, 172 and 423 for training, validation and
            test; Vinyals et al., 2016) or background (whole alphabets: 883, 81 and 659;
            Triantafillou et al., 2020).
        rotations: count each character as four classes, rotated by 0, 90, 180 and 270 degrees.
        mirrors: add the mirror image of each training class as a further class; validation and
            test never have them.
        size: height and width of the images in pixels.
        download: download the archives if they are missing.
        refresh: decode the images again, whatever the cache folder holds.
    """

    title = "Omniglot"
    root: str = ""
    split: Literal["vinyals", "background"] = "vinyals"
    rotations: bool = True
    mirrors: bool = False
    size: Pixels = 28
    download: bool = False

    def load(self) -> Splits:
        from fewshot_blo.tasks import omniglot

        return omniglot.load(
            self._folder(self.root),
            split=self.split,
            rotations=self.rotations,
            mirrors=self.mirrors,
            size=self.size,
            download=self.download,
            refresh=self.refresh,
        )

    @property
    def channels(self) -> int:
        return 1

    @property
    def division(self) -> str:
        return f"omniglot_{self.split}"

    def published_name(self, class_name: str) -> str:
        """``Alphabet/character``, without ``/rot090`` and ``/mirror``."""
        return "/".join(class_name.split("/")[:2])


@checked
@dataclass(frozen=True)
class MiniImageNet(ImageDataSet):
    """100 classes of ImageNet with 600 images each, in colour; split into 64, 16 and 20 classes.

    Source: Vinyals et al., 2016 (arXiv:1606.04080), in the splits of Ravi and Larochelle, 2017.

    Attributes:
        root: folder that holds train, val and test with a folder of images for each class, or
            train.csv, val.csv, test.csv and images, or mini-imagenet-cache-train.pkl, -val.pkl
            and -test.pkl, or the files of MetaOptNet, torchmeta or R2D2, or a zip archive of one of
            these; ~ is the home folder.
        size: height and width of the images in pixels.
        partial: accept missing classes and images.
        refresh: decode the images again, whatever the cache folder holds.
    """

    title = "miniImageNet"
    class_lists = "miniimagenet"
    root: str = ""
    size: Pixels = 84
    partial: bool = False

    def load(self) -> Splits:
        from fewshot_blo.tasks import miniimagenet

        return miniimagenet.load(
            self._folder(self.root), size=self.size, partial=self.partial, refresh=self.refresh
        )


@checked
@dataclass(frozen=True)
class TieredImageNet(ImageDataSet):
    """608 classes of ImageNet in colour; the splits (351, 97, 160) share no WordNet category.

    Source: Ren et al., 2018 (arXiv:1803.00676).

    Attributes:
        root: folder that holds train, val and test with a folder of images for each class, or
            train_images_png.pkl, train_labels.pkl and the same for val and test, or the files of
            torchmeta, or a zip archive of one of these; ~ is the home folder.
        size: height and width of the images in pixels.
        partial: accept missing classes and images.
        refresh: decode the images again, whatever the cache folder holds.
    """

    title = "tieredImageNet"
    class_lists = "tieredimagenet"
    root: str = ""
    size: Pixels = 84
    partial: bool = False

    def load(self) -> Splits:
        from fewshot_blo.tasks import tieredimagenet

        return tieredimagenet.load(
            self._folder(self.root), size=self.size, partial=self.partial, refresh=self.refresh
        )


@checked
@dataclass(frozen=True)
class _CIFAR100Division(ImageDataSet):
    """A split of the classes of CIFAR-100."""

    class_lists: ClassVar[Literal["cifarfs", "fc100"]]

    root: str = ""
    size: Pixels = 32
    download: bool = False

    def load(self) -> Splits:
        from fewshot_blo.tasks import cifarfs

        return cifarfs.load(
            self._folder(self.root),
            variant=self.class_lists,
            size=self.size,
            download=self.download,
            refresh=self.refresh,
        )


@checked
@dataclass(frozen=True)
class CIFARFS(_CIFAR100Division):
    """The 100 classes of CIFAR-100, 600 images each, in colour; split into 64, 16 and 20 classes.

    Source: Bertinetto et al., 2019 (arXiv:1805.08136).

    Attributes:
        root: folder that holds cifar-100-python, as torchvision keeps it, or
            cifar100_fewshot_webp.npz, or the files of R2D2, MetaOptNet or torchmeta; ~ is the home
            folder.
        size: height and width of the images in pixels.
        download: download CIFAR-100 if it is missing.
        refresh: decode the images again, whatever the cache folder holds.
    """

    title = "CIFAR-FS"
    class_lists = "cifarfs"


@checked
@dataclass(frozen=True)
class FC100(_CIFAR100Division):
    """The 100 classes of CIFAR-100 in colour; the splits (60, 20, 20) share no superclass.

    Source: Oreshkin et al., 2018 (arXiv:1805.10123).

    Attributes:
        root: folder that holds cifar-100-python, as torchvision keeps it, or
            cifar100_fewshot_webp.npz, or the files of R2D2, MetaOptNet or torchmeta; ~ is the home
            folder.
        size: height and width of the images in pixels.
        download: download CIFAR-100 if it is missing.
        refresh: decode the images again, whatever the cache folder holds.
    """

    title = "FC100"
    class_lists = "fc100"


DATA_SETS = (
    Glyphs,
    Omniglot,
    MiniImageNet,
    TieredImageNet,
    CIFARFS,
    FC100,
    Folder,
    Parquet,
    Functions,
    Table,
)
"""All data sets, in the order in which they are listed."""
