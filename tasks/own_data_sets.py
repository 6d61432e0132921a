"""Data sets of the user's own files: folders and tables of images, and parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural, Pixels, Positive
from fewshot_blo.tasks.any_data_set import ImageDataSet, expanded
from fewshot_blo.tasks.dataset import Splits

_USUAL = (0.64, 0.16, 0.2)


def _at_random(fractions: tuple[float, float, float], seed: int) -> str:
    """Identifies a random division."""
    # Without fractions where they are the usual ones, as in checkpoints that lack them.
    by = "" if fractions == _USUAL else f"fractions {' '.join(f'{x:g}' for x in fractions)}, "
    return f"{by}seed {seed}"


@checked
@dataclass(frozen=True)
class Folder(ImageDataSet):
    """Your own images: a folder with one subfolder for each class, split by class.

    Images are cropped to a square.

    Attributes:
        root: folder that holds a subfolder of images for each class, or folders train, val and
            test of these, or train.csv, val.csv and test.csv (files and classes; LibFewShot,
            easyfsl), or train.json and so on (easyfsl); or a zip archive of one; ~ is the home
            folder.
        table: CSV file of images and their classes, and perhaps splits, or a folder of tables for
            each split, used instead of class folders; empty for none.
        csv: file with the columns class and split (train, validation or test) that divides the
            classes; empty to divide them as classes.csv in root, which has these columns, or root
            or table says, or else at random.
        fractions: fractions of the classes for training, validation and test in a random division,
            as [0.5,0.25,0.25]; each part gets at least one.
        seed: seed of the random division.
        color: read images in RGB; false for grey.
        size: height and width of the images in pixels.
        refresh: decode the images again, whatever the cache folder holds.
    """

    title = "Folder"
    root: str = ""
    csv: str = ""
    seed: Natural = 0
    color: bool = True
    size: Pixels = 84
    fractions: tuple[Positive, Positive, Positive] = _USUAL
    table: str = ""

    def load(self) -> Splits:
        from fewshot_blo.tasks import folder

        return folder.load(
            self._folder(self.root),
            size=self.size,
            fractions=self.fractions,
            seed=self.seed,
            csv=expanded(self.csv) if self.csv else None,
            table=expanded(self.table) if self.table else None,
            color=self.color,
            refresh=self.refresh,
        )

    @property
    def channels(self) -> int:
        return 3 if self.color else 1

    @property
    def division(self) -> str:
        if self.csv:
            return f"csv {expanded(self.csv).resolve()}"
        return _at_random(self.fractions, self.seed)

    @property
    def images(self) -> str:
        return f"{self.title} {expanded(self.root).resolve()}"


@checked
@dataclass(frozen=True)
class Parquet(ImageDataSet):
    """Parquet files of images and labels, as Hugging Face's hub has them.

    Images are cropped to a square. Needs the extra formats, and hf to download.

    Attributes:
        root: folder of parquet files, or one file; ~ is the home folder.
        repository: data set on Hugging Face's hub, such as timm/mini-imagenet, which is downloaded
            where root is empty.
        image: column of the images; empty to find it.
        label: column of the labels; empty to find it.
        split: division of the classes: stored (as the files' splits divide them), separate (so,
            where the labels of each split start anew), fractions (at random, with the images of all
            splits), or the name of published class lists.
        csv: file with the columns class and split (train, validation or test) that divides the
            classes instead of split; empty for none.
        fractions: fractions of the classes for training, validation and test in a random division.
        seed: seed of the random division.
        color: read images in RGB; false for grey.
        size: height and width of the images in pixels.
        refresh: decode the images again, whatever the cache folder holds.
    """

    title = "Parquet"
    root: str = ""
    repository: str = ""
    image: str = ""
    label: str = ""
    split: Literal[
        "stored", "separate", "fractions", "miniimagenet", "tieredimagenet", "cifarfs", "fc100"
    ] = "stored"
    csv: str = ""
    seed: Natural = 0
    color: bool = True
    size: Pixels = 84
    fractions: tuple[Positive, Positive, Positive] = _USUAL

    def load(self) -> Splits:
        from fewshot_blo.tasks import parquet

        return parquet.load(
            None if self.repository and not self.root else self._folder(self.root),
            repository=self.repository,
            image=self.image,
            label=self.label,
            split=self.split,
            fractions=self.fractions,
            seed=self.seed,
            csv=expanded(self.csv) if self.csv else None,
            size=self.size,
            color=self.color,
            refresh=self.refresh,
        )

    @property
    def channels(self) -> int:
        return 3 if self.color else 1

    @property
    def division(self) -> str:
        if self.csv:
            return f"csv {expanded(self.csv).resolve()}"
        return _at_random(self.fractions, self.seed) if self.split == "fractions" else self.split

    @property
    def lacks_files(self) -> bool:
        return not (self.root or self.repository)

    @property
    def images(self) -> str:
        source = expanded(self.root).resolve() if self.root else self.repository
        return f"{self.title} {source}"
