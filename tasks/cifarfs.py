"""CIFAR-FS and FC100: two few-shot splits of the 100 classes of CIFAR-100."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial as bind
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewshot_blo.records.files import ARCHIVE_ERRORS, with_subfolders
from fewshot_blo.tasks.dataset import Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading import metaoptnet, r2d2, torchmeta
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list
from fewshot_blo.tasks.reading.decoded import check_disk, decoded_once, fingerprint
from fewshot_blo.tasks.reading.downloads import downloaded_once
from fewshot_blo.tasks.reading.images import check_size, open_image, square
from fewshot_blo.tasks.reading.pickles import as_text, load_dictionary
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

IMAGES_PER_CLASS = 600
SIDE = 32
_GRID = "cifar100_fewshot_webp.npz"
_ORIGINAL = "cifar-100-python"
_ROWS, _COLUMNS = 20, 30
_VARIANTS = ("cifarfs", "fc100")
_NUMBERED = (
    "the pickles in {} have no names of classes, and their numbers are not the places in "
    "CIFAR-100: classes are called by their numbers"
)

Classes = Iterator[tuple[str, NDArray[np.uint8]]]


def load(
    root: Path | str,
    *,
    variant: Literal["cifarfs", "fc100"] = "cifarfs",
    size: int = SIDE,
    download: bool = False,
    refresh: bool = False,
) -> Splits:
    """Images ``[M, 3, size, size]``: the train and test images of CIFAR-100, 600 per class.

    ``cifarfs`` has 64, 16 and 20 classes (Bertinetto et al., 2019); ``fc100`` has 60, 20 and 20
    classes, and its splits share no superclass (Oreshkin et al., 2018).

    ``root``, or a folder in it, holds one of these sources, which give the same images per class,
    in different orders:

    - the folder ``cifar-100-python`` as torchvision keeps it;
    - ``cifar100_fewshot_webp.npz`` with arrays ``c00`` to ``c99``, each the lossless WebP of one
      class (a grid of 20 x 30 images), and ``classes``, their names;
    - ``data/<class>/*.png`` beside ``splits``, in a folder ``cifar100`` or not (R2D2, learn2learn);
    - ``CIFAR_FS_train.pickle``, ``-val`` and ``-test``, or ``FC100_train.pickle`` and so on, with
      ``data`` and ``labels`` (MetaOptNet);
    - ``data.hdf5`` with ``cifar-fs/train_labels.json`` and so on (torchmeta), which needs h5py.

    Pickles are read without executing code. The first call decodes the images into the cache folder
    (184 MB at 32 pixels, for each variant); later calls map the cache into memory.

    Args:
        root: folder of the data.
        variant: which split of the classes.
        size: height and width in pixels; sizes other than 32 are resized with the Lanczos filter.
        download: download CIFAR-100 through torchvision if neither source is found.
        refresh: decode the images again.

    Raises:
        DataError: if ``variant`` is unknown, ``size`` is not positive, or the data is missing,
            partial or corrupt.
    """
    check_size(size)
    if variant not in _VARIANTS:
        raise DataError(f"variant is '{variant}': it must be one of {', '.join(_VARIANTS)}")
    root = Path(root)
    if download:
        downloaded_once(root, "CIFAR-100", lambda again: _download(root, again))
    files, read = _source(root, variant)
    if not files:
        raise DataError(
            f"CIFAR-100 is not in {root}: put {_GRID} or the folder {_ORIGINAL} there, "
            "or set download"
        )
    parts = [class_list(variant, split) for split in SPLITS]
    published = list(chain.from_iterable(parts))

    def decode() -> Iterator[tuple[str, Iterable[NDArray[np.uint8]]]]:
        check_disk(60_000, 3, size)
        classes = dict(_checked(read()))
        for name in published if published[0] in classes else list(classes):
            yield name, _resized(classes.pop(name), size)

    name = f"{variant}-{size}px"
    dataset = decoded_once(
        root, name, fingerprint(root, files), (3, size, size), decode, refresh=refresh
    )
    numbered = dataset.class_names[0] not in published
    notes = (_NUMBERED.format(files[0].parent),) if numbered else ()
    return Splits.consecutive(dataset, [len(part) for part in parts], notes)


def _resized(images: NDArray[np.uint8], size: int) -> Iterable[NDArray[np.uint8]]:
    """Yields images ``[3, size, size]`` from ``[M, 3, 32, 32]``, one by one."""
    if size == SIDE:
        return images
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return (square(Image.fromarray(image), size=size) for image in pixels)


def _source(root: Path, variant: str) -> tuple[list[Path], Callable[[], Classes]]:
    """The files to read, none if there are none, and what reads them."""
    for folder in with_subfolders(root):
        if (folder / _GRID).is_file():
            return [folder / _GRID], bind(_from_grids, folder / _GRID)
        if (folder / _ORIGINAL).is_dir():
            original = _original_files(folder / _ORIGINAL)
            return original, bind(_from_original, *original)
        if pickles := metaoptnet.cifar_files(folder, variant):
            return pickles, bind(metaoptnet.cifar_classes, pickles, variant)
        if hdf5 := torchmeta.cifar_files(folder, variant):
            return hdf5, bind(torchmeta.cifar_classes, hdf5[0])
    data = r2d2.data_folder(root, "cifar100", _VARIANTS[0])
    if data is None:
        return [], bind(iter, ())
    classes = r2d2.classes_of(data, [n for split in SPLITS for n in class_list(variant, split)])
    return [f for files in classes.values() for f in files], bind(r2d2.pixels, classes, SIDE)


def _original_files(folder: Path) -> list[Path]:
    files = [folder / name for name in ("train", "test", "meta")]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file} is missing: unpack cifar-100-python.tar.gz again")
    return files


def _checked(classes: Classes) -> Classes:
    """Passes the classes on; raises at the first that is wrong, or at the end if any is missing."""
    expected = {name for split in SPLITS for name in class_list(_VARIANTS[0], split)}
    found = set()
    for name, images in classes:
        # Pickles may have numbers instead of names; their classes are counted when they are read.
        if (name not in expected and not name.isdigit()) or name in found:
            raise DataError(
                f"class '{name}' is not in CIFAR-100, or occurs twice: download the data again"
            )
        if len(images) != IMAGES_PER_CLASS:
            raise DataError(
                f"class '{name}' has {len(images)} images instead of {IMAGES_PER_CLASS}: "
                "download the data again"
            )
        found.add(name)
        yield name, images
    if found != expected and not (found and all(name.isdigit() for name in found)):
        raise DataError(
            f"{len(expected - found)} classes are missing, the first is {min(expected - found)}: "
            "download the data again"
        )


def _from_grids(file: Path) -> Classes:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            for position, name in enumerate(content["classes"]):
                yield str(name), _cut(content[f"c{position:02d}"], f"c{position:02d} in {file}")
    except DataError:
        raise
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{file} is truncated or corrupt ({error}): download it again") from error


def _cut(encoded: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Cuts one grid into its images ``[600, 3, 32, 32]``."""
    image = open_image(BytesIO(encoded.tobytes()), color=True, name=name)
    if image.size != (_COLUMNS * SIDE, _ROWS * SIDE):
        raise DataError(
            f"image {name} has {image.width} x {image.height} pixels instead of "
            f"{_COLUMNS * SIDE} x {_ROWS * SIDE}: download the file again"
        )
    grid = np.asarray(image).reshape(_ROWS, SIDE, _COLUMNS, SIDE, 3)
    return grid.transpose(0, 2, 4, 1, 3).reshape(-1, 3, SIDE, SIDE)


def _from_original(train: Path, test: Path, meta: Path) -> Classes:
    names = load_dictionary(meta, "fine_label_names")["fine_label_names"]
    parts = [_images_and_labels(file) for file in (train, test)]
    images = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise DataError(
            f"{meta} names {len(names)} classes, but labels run from {labels.min()} to "
            f"{labels.max()}: download the data again"
        )
    for position, name in enumerate(names):
        yield as_text(name), images[labels == position].reshape(-1, 3, SIDE, SIDE)


def _images_and_labels(file: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    content = load_dictionary(file, "data", "fine_labels")
    images, labels = np.asarray(content["data"]), np.asarray(content["fine_labels"])
    if images.dtype != np.uint8 or images.shape != (len(labels), 3 * SIDE * SIDE):
        raise DataError(
            f"{file} has data of {images.dtype} and shape {list(images.shape)} for {len(labels)} "
            "labels: it must be uint8 with 3072 values per image; download it again"
        )
    return images, labels


def _download(root: Path, again: bool) -> None:
    """Downloads the archive, checks its MD5 sum and unpacks it; unpickles nothing.

    Nothing is done where the data is there, except with ``again``.
    """
    if not again and any(files for files, _ in (_source(root, name) for name in _VARIANTS)):
        return
    datasets = torchvision_module().datasets
    original = datasets.CIFAR100
    try:
        datasets.utils.download_and_extract_archive(
            original.url, str(root), filename=original.filename, md5=original.tgz_md5
        )
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"the download of CIFAR-100 failed ({error}): try again, or put {original.filename} "
            f"unpacked into {root}"
        ) from error
