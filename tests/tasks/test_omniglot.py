from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fewshot_blo.tasks import DataError, Splits, omniglot
from fewshot_blo.tasks.reading import class_lists

BACKGROUND = ("Ålphabet/character01", "Ålphabet/character02", "Greek/character01")
EVALUATION = ("Ge_ez/character01", "Ge_ez/character02")
LISTS = {
    "omniglot_background": (BACKGROUND[:2], BACKGROUND[2:], EVALUATION),
    "omniglot_vinyals": ((EVALUATION[1], BACKGROUND[2]), BACKGROUND[:1], EVALUATION[:1]),
}


@pytest.fixture(autouse=True)
def small_omniglot(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, own_cache_home: Path
) -> None:
    """An Omniglot of five characters, and a cache folder of the test's own."""
    splits = tmp_path_factory.mktemp("splits")
    for folder, lists in LISTS.items():
        (splits / folder).mkdir()
        for part, names in zip(("train", "val", "test"), lists, strict=True):
            (splits / folder / f"{part}.txt").write_text("\n".join(names), encoding="utf-8")
    monkeypatch.setattr(class_lists, "FOLDER", splits)


def drawing(character: int, drawer: int) -> Image.Image:
    """A 1-bit image: a bar at the top whose width tells character and drawer."""
    image = Image.new("1", (105, 105), 1)
    image.paste(0, (0, 0, 20 * character + drawer + 1, 30))
    return image


def unpacked(root: Path) -> Path:
    """The folders of both archives in ``root``."""
    for group, names in (("images_background", BACKGROUND), ("images_evaluation", EVALUATION)):
        for name in names:
            folder = root / group / name
            folder.mkdir(parents=True)
            character = (BACKGROUND + EVALUATION).index(name)
            for drawer in range(20):
                drawing(character, drawer).save(folder / f"{character:04d}_{drawer + 1:02d}.png")
    return root


def archived(root: Path) -> Path:
    """Both archives in ``root``."""
    unpacked(root)
    for group in omniglot.GROUPS:
        shutil.make_archive(str(root / group), "zip", root, group)
        shutil.rmtree(root / group)
    return root


def in_hdf5(root: Path) -> Path:
    """As torchmeta/datasets/omniglot.py writes it: inverted, in groups, with lists beside it."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    (root / "omniglot").mkdir(parents=True)
    with h5py.File(root / "omniglot" / "data.hdf5", "w") as file:
        for group, names in (("images_background", BACKGROUND), ("images_evaluation", EVALUATION)):
            for name in names:
                character = (BACKGROUND + EVALUATION).index(name)
                grey = [drawing(character, drawer).convert("L") for drawer in range(20)]
                inverted = np.stack([np.asarray(ImageOps.invert(image)) for image in grey])
                file.create_dataset(f"{group}/{name}", data=inverted)
    (root / "omniglot" / "vinyals_train_labels.json").write_text("[]")
    return root


def test_hdf5_gives_the_same_images(tmp_path: Path) -> None:
    expected = omniglot.load(archived(tmp_path / "zip"))
    root = in_hdf5(tmp_path / "hdf5")
    for _ in range(2):
        assert_same(omniglot.load(root), expected)


def test_damaged_hdf5_is_named(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    root = in_hdf5(tmp_path)
    with h5py.File(root / "omniglot" / "data.hdf5", "a") as file:
        del file[f"images_background/{BACKGROUND[0]}"]
    with pytest.raises(DataError, match=f"characters, the first is {BACKGROUND[0]}"):
        omniglot.load(root)
    with h5py.File(root / "omniglot" / "data.hdf5", "a") as file:
        file[f"images_background/{BACKGROUND[0]}"] = np.zeros((20, 28, 28), np.uint8)
    with pytest.raises(DataError, match="has 28x28 pixels instead of 105x105"):
        omniglot.load(root)
    with h5py.File(root / "omniglot" / "data.hdf5", "a") as file:
        file["images_background/Loose"] = 3
    with pytest.raises(DataError, match="does not hold an array a character"):
        omniglot.load(root)
    with h5py.File(root / "omniglot" / "data.hdf5", "a") as file:
        del file["images_background/Loose"]
        del file["images_evaluation"]
    with pytest.raises(DataError, match="has no group 'images_evaluation'"):
        omniglot.load(root)


def assert_same(one: Splits, other: Splits) -> None:
    for (_, left), (_, right) in zip(one, other, strict=True):
        assert left.class_names == right.class_names
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_splits_follow_the_lists(tmp_path: Path) -> None:
    root = archived(tmp_path)
    for split in ("vinyals", "background"):
        splits = omniglot.load(root, split=split, rotations=False)
        assert tuple(part.class_names for _, part in splits) == LISTS[f"omniglot_{split}"]


def test_images_are_ink_on_zero_and_belong_to_their_class(tmp_path: Path) -> None:
    for _, part in omniglot.load(archived(tmp_path), rotations=False, size=105):
        assert part.images.shape == (20 * len(part.class_names), 1, 105, 105)
        for row, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            character = (BACKGROUND + EVALUATION).index(part.class_names[int(label)])
            expected = np.asarray(drawing(character, row % 20).convert("L"))
            np.testing.assert_array_equal(image[0].numpy(), 255 - expected)


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    splits = omniglot.load(archived(tmp_path), rotations=False)
    expected = drawing(0, 0).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(splits.validation.images[0, 0], 255 - np.asarray(expected))
    assert len(set(splits.validation.images[0].flatten().tolist())) > 2


def test_rotations_stay_in_the_split_of_their_character(tmp_path: Path) -> None:
    root = archived(tmp_path)
    upright, turned = (omniglot.load(root, rotations=rotations) for rotations in (False, True))
    for (_, one), (_, four) in zip(upright, turned, strict=True):
        for angle in range(4):
            for label, name in enumerate(one.class_names):
                position = four.class_names.index(f"{name}/rot{90 * angle:03d}")
                expected = one.images[one.labels == label].rot90(angle, dims=(2, 3))
                assert torch.equal(four.images[four.labels == position], expected)
        assert len(four.class_names) == 4 * len(one.class_names)


def test_mirror_images_are_classes_of_training_alone(tmp_path: Path) -> None:
    root = archived(tmp_path)
    plain, mirrored = (omniglot.load(root, mirrors=mirrors) for mirrors in (False, True))
    assert len(mirrored.train.class_names) == 2 * len(plain.train.class_names)
    for kept in ("validation", "test"):
        before, after = getattr(plain, kept), getattr(mirrored, kept)
        assert after.class_names == before.class_names
        assert after.images.equal(before.images)


def nested(root: Path) -> None:
    archived(root / "omniglot-py")


def mixed(root: Path) -> None:
    archived(root)
    (root / "images_evaluation.zip").unlink()
    unpacked(root / "other")


def twice_unpacked(root: Path) -> None:
    """A user unpacked each archive into a folder of its name, on a Mac."""
    unpacked(root / "once")
    for group in omniglot.GROUPS:
        (root / group).mkdir()
        (root / "once" / group).rename(root / group / group)
        junk = root / group / "__MACOSX" / "Greek" / "character01"
        junk.mkdir(parents=True)
        (junk / "._0001_01.png").write_bytes(b"junk")


def beside_strangers(root: Path) -> None:
    archived(root)
    (root / "readme.txt").write_text("hello")
    (root / "other").mkdir()


@pytest.mark.parametrize("layout", [unpacked, nested, mixed, twice_unpacked, beside_strangers])
def test_every_layout_gives_the_same(tmp_path: Path, layout: Callable[[Path], object]) -> None:
    layout(tmp_path / "here")
    found = omniglot.load(tmp_path / "here", rotations=False)
    assert_same(found, omniglot.load(archived(tmp_path / "plain"), rotations=False))


def test_the_second_call_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = archived(tmp_path)
    before = files(root)
    fresh = omniglot.load(root)
    assert files(root) == before
    monkeypatch.setattr(omniglot, "_decode", None)
    assert_same(omniglot.load(root), fresh)
    with pytest.raises(TypeError):
        omniglot.load(root, size=14)


@pytest.mark.parametrize("suffix", ["bin", "json"])
@pytest.mark.parametrize("content", [b"", b"nonsense", "half"])
def test_a_corrupt_cache_is_built_again(
    tmp_path: Path,
    own_cache_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    content: bytes | str,
) -> None:
    root = archived(tmp_path)
    omniglot.load(root)
    before = files(own_cache_home)
    (cache,) = (path for path in before if path.suffix == f".{suffix}")
    good = cache.read_bytes()
    cache.write_bytes(good[: len(good) // 2] if isinstance(content, str) else content)
    omniglot.load(root)
    assert files(own_cache_home) == before
    assert (cache.read_bytes() == good) or suffix == "json"
    monkeypatch.setattr(omniglot, "_decode", None)
    assert sum(len(part) for _, part in omniglot.load(root)) == 320


@pytest.mark.parametrize("make", [archived, unpacked])
def test_a_cache_of_other_images_is_replaced(
    tmp_path: Path, own_cache_home: Path, make: Callable[[Path], Path]
) -> None:
    root = make(tmp_path)
    before = omniglot.load(root, rotations=False).validation.images
    number = len(files(own_cache_home))
    shutil.rmtree(root / "images_background", ignore_errors=True)
    shutil.rmtree(root / "images_evaluation", ignore_errors=True)
    unpacked(root / "new")
    drawing(5, 5).save(root / "new" / "images_background" / BACKGROUND[0] / "0000_01.png")
    for group in omniglot.GROUPS:
        (root / f"{group}.zip").unlink(missing_ok=True)
        (root / "new" / group).rename(root / group)
        if make is archived:
            shutil.make_archive(str(root / group), "zip", root, group)
    after = omniglot.load(root, rotations=False).validation.images
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])
    assert len(files(own_cache_home)) == number


def test_nowhere_to_cache_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"cannot be written.*XDG_CACHE_HOME.*a copy"):
        splits = omniglot.load(archived(tmp_path / "data"), rotations=False)
    assert len(splits.train) == 40


def absent(root: Path) -> None:
    shutil.rmtree(root)


def one_absent(root: Path) -> None:
    shutil.rmtree(root / "images_evaluation")


def truncated_archive(root: Path) -> None:
    one_absent(root)
    archived(root / "new")
    content = (root / "new" / "images_evaluation.zip").read_bytes()
    (root / "images_evaluation.zip").write_bytes(content[: len(content) // 2])


def corrupt_member(root: Path) -> None:
    one_absent(root)
    archived(root / "new")
    whole = root / "new" / "images_evaluation.zip"
    content = bytearray(whole.read_bytes())
    with zipfile.ZipFile(whole) as archive:
        member = archive.getinfo(f"images_evaluation/{EVALUATION[0]}/0003_07.png")
    start = member.header_offset + 30 + len(member.filename)
    content[start : start + 20] = bytes(20)
    (root / "images_evaluation.zip").write_bytes(bytes(content))


def missing_characters(root: Path) -> None:
    for name in BACKGROUND[1:]:
        shutil.rmtree(root / "images_background" / name)


def missing_image(root: Path) -> None:
    (root / "images_background" / BACKGROUND[2] / "0002_07.png").unlink()


def surplus_character(root: Path) -> None:
    folder = root / "images_evaluation"
    shutil.copytree(folder / "Ge_ez", folder / "Klingon")


def broken_image(root: Path) -> None:
    (root / "images_background" / BACKGROUND[2] / "0002_07.png").write_bytes(b"\x89PNG")


def resized_image(root: Path) -> None:
    path = root / "images_background" / BACKGROUND[2] / "0002_07.png"
    drawing(1, 1).resize((28, 28)).save(path)


def dangling_link(root: Path) -> None:
    path = root / "images_background" / BACKGROUND[2] / "0002_07.png"
    path.unlink()
    path.symlink_to("nowhere.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (absent, r"neither images_background\.zip nor a folder images_background is in .*download"),
        (one_absent, r"neither images_evaluation\.zip nor a folder"),
        (
            truncated_archive,
            r"images_evaluation\.zip is not a complete zip archive .*download it again",
        ),
        (corrupt_member, r"0003_07\.png in .*images_evaluation\.zip cannot be (unpacked|decoded)"),
        (missing_characters, r"lacks 2 of 3 characters, the first is Greek/character01"),
        (missing_image, r"Greek/character01 in .* has 19 images instead of 20"),
        (dangling_link, r"Greek/character01 in .* has 19 images instead of 20"),
        (surplus_character, r"2 characters that are not in .* first is Klingon/character01"),
        (broken_image, r"Greek/character01/0002_07\.png cannot be decoded"),
        (resized_image, r"0002_07\.png has 28x28 pixels instead of 105x105"),
    ],
)
def test_damaged_data_is_named(
    tmp_path: Path, own_cache_home: Path, damage: Callable[[Path], None], message: str
) -> None:
    root = unpacked(tmp_path / "data")
    damage(root)
    with pytest.raises(DataError, match=message):
        omniglot.load(root)
    assert files(own_cache_home) == []


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split is 'lake'"):
        omniglot.load(tmp_path, split="lake")
    with pytest.raises(DataError, match="size is 0"):
        omniglot.load(tmp_path, size=0)


def served_by(fetch: Callable[[Path, bool], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces torchvision's download."""

    def dataset(root: Path, *, background: bool, download: bool) -> None:
        assert download
        fetch(Path(root), background)

    module = SimpleNamespace(datasets=SimpleNamespace(Omniglot=dataset))
    monkeypatch.setattr(omniglot, "torchvision_module", lambda: module)


def test_download_fetches_what_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = archived(tmp_path / "data")
    (root / "images_evaluation.zip").unlink()
    fetched = []

    def fetch(target: Path, background: bool) -> None:
        fetched.append(background)
        archived(target / "omniglot-py")

    served_by(fetch, monkeypatch)
    for _ in range(2):
        assert len(omniglot.load(root, rotations=False, download=True).train) == 40
    assert fetched == [False]


@pytest.mark.parametrize(
    "error", [URLError("no route"), RuntimeError("File not found or corrupted.")]
)
def test_a_failed_download_says_what_to_do(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(target: Path, background: bool) -> None:
        raise error

    served_by(fetch, monkeypatch)
    with pytest.raises(DataError, match=r"images_background\.zip failed .*put the files of https"):
        omniglot.load(tmp_path, download=True)


@pytest.fixture
def real_lists(small_omniglot: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_lists, "FOLDER", Path(omniglot.__file__).with_name("splits"))


@pytest.fixture
def real_root(data_root: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the original archives, decoded once a session."""
    root = data_root / "omniglot"
    for group in omniglot.GROUPS:
        if not (root / f"{group}.zip").is_file():
            pytest.skip(f"{root / group}.zip is absent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    return root


@pytest.mark.usefixtures("real_lists")
def test_real_lists_hold_every_character_once() -> None:
    names, alphabets = [], []
    for split in ("vinyals", "background"):
        parts = [class_lists.class_list(f"omniglot_{split}", part) for part in class_lists.SPLITS]
        names.append(sorted(name for part in parts for name in part))
        alphabets.append([{name.split("/")[0] for name in part} for part in parts])
    one, other = names
    assert one == other
    assert len(set(one)) == len(one) == 1623
    assert [len(part) for part in alphabets[1]] == [25, 5, 20]
    assert len(set.union(*alphabets[1])) == 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "expected"),
    [("vinyals", [1028, 172, 423]), ("background", [883, 81, 659])],
)
@pytest.mark.usefixtures("real_lists")
def test_real_counts(real_root: Path, split: str, expected: list[int]) -> None:
    splits = omniglot.load(real_root, split=split)
    for (_, part), count in zip(splits, expected, strict=True):
        assert len(part.class_names) == 4 * count
        assert set(part.counts.tolist()) == {20}
        assert part.images.shape == (4 * count * 20, 1, 28, 28)


@pytest.mark.usefixtures("real_lists")
def test_real_an_image_is_the_archives(real_root: Path) -> None:
    path = "images_evaluation/Angelic/character01/0965_07.png"
    with zipfile.ZipFile(real_root / "images_evaluation.zip") as archive:
        image = Image.open(io.BytesIO(archive.read(path))).convert("L")
    expected = 255 - np.asarray(image.resize((28, 28), Image.Resampling.LANCZOS))
    test = omniglot.load(real_root, split="background").test
    upright = test.images[test.labels == test.class_names.index("Angelic/character01/rot000")]
    np.testing.assert_array_equal(upright[6, 0].numpy(), expected)
    turned = test.images[test.labels == test.class_names.index("Angelic/character01/rot090")]
    np.testing.assert_array_equal(turned[6, 0].numpy(), np.rot90(expected))
    assert 0.02 < upright.float().div(255).mean() < 0.3
