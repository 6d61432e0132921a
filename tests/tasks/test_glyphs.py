from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from fewshot_blo.tasks import DataError, Splits, glyphs
from fewshot_blo.tasks.reading import glyph_rendering
from fewshot_blo.tasks.reading.glyph_rendering import (
    LOOK_ALIKE,
    Face,
    difference,
    distinct_characters,
    render,
)

SIZE = 14


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    return glyph_rendering.read_faces()


@pytest.fixture(scope="module")
def splits(faces: list[Face]) -> Splits:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyph_rendering, "read_faces", lambda: faces)
        return glyphs.load(size=SIZE)


def names(splits: Splits) -> list[str]:
    return [name for _, dataset in splits for name in dataset.class_names]


def characters(splits: Splits) -> list[int]:
    return sorted(int(name.rpartition("U+")[2], 16) for name in names(splits))


def test_enough_classes_of_enough_scripts(splits: Splits) -> None:
    scripts = Counter(name.split("/")[0] for name in names(splits))
    assert scripts.total() >= 1000
    assert len(scripts) >= 12
    assert max(scripts.values()) < 0.4 * scripts.total()
    for _, dataset in splits:
        assert {name.split("/")[0] for name in dataset.class_names} == scripts.keys()
        assert (dataset.counts == 20).all()
        assert dataset.images.shape[1:] == (1, SIZE, SIZE)


def test_split_sizes(splits: Splits) -> None:
    sizes = torch.tensor([len(dataset.class_names) for _, dataset in splits])
    shares = sizes / sizes.sum()
    assert torch.allclose(shares, torch.tensor([0.64, 0.16, 0.20]), atol=0.03)


def test_classes_are_plain_letters(splits: Splits) -> None:
    for character in characters(splits):
        text = chr(character)
        assert unicodedata.category(text) in ("Lu", "Ll", "Lo")
        assert unicodedata.normalize("NFKD", text) == text


def test_no_two_classes_look_alike_in_any_face(splits: Splits, faces: list[Face]) -> None:
    chosen = characters(splits)
    for face in faces:
        kept = np.isin(face.characters, chosen)
        apart = difference(face.glyphs[kept]).fill_diagonal_(torch.inf)
        assert apart.min() >= LOOK_ALIKE


def test_no_two_classes_have_nearly_the_same_pixels(splits: Splits, faces: list[Face]) -> None:
    kept = np.isin(faces[0].characters, characters(splits))
    pixels = torch.from_numpy(faces[0].glyphs[kept]).float().flatten(1)
    correlation = torch.corrcoef(pixels).fill_diagonal_(-1)
    assert correlation.max() < 0.98


@pytest.mark.parametrize(
    "alike", ["AΑАꓮ", "OoΟοОоՕ", "SsЅѕ", "Xx", "BВΒ", "Iılǀ", "KΚКĸᴋ", "D𐌃", "Яᴙ"]
)
def test_look_alikes_are_one_class(splits: Splits, alike: str) -> None:
    assert sum(ord(letter) in characters(splits) for letter in alike) == 1


@pytest.mark.parametrize("different", ["bdpq", "بتث", "ᐁᐃᐅᐊ", "EF", "ab", "OQ"])
def test_dots_bars_and_turns_make_other_letters(faces: list[Face], different: str) -> None:
    chosen = np.isin(faces[0].characters, [ord(letter) for letter in different])
    apart = difference(faces[0].glyphs[chosen]).fill_diagonal_(torch.inf)
    assert apart.min() >= LOOK_ALIKE


def test_difference_sees_a_dot_and_not_a_small_shift() -> None:
    bar = np.zeros((64, 64), np.uint8)
    bar[8:56, 28:36] = 255
    dotted = bar.copy()
    dotted[20:28, 44:52] = 255
    apart = difference(np.stack([bar, np.roll(bar, 2, axis=1), dotted]))
    assert apart[0, 0] == 0
    assert apart[0, 1] < LOOK_ALIKE <= apart[0, 2]
    torch.testing.assert_close(apart, apart.T)


def test_of_look_alikes_the_lowest_stays() -> None:
    bar = np.zeros((64, 64), np.uint8)
    bar[8:56, 28:36] = 255
    face = Face((65, 66, 67), np.stack([bar, bar.T, bar]))
    assert distinct_characters([face]) == [65, 66]


def test_pictures_depend_on_character_and_index_alone(faces: list[Face]) -> None:
    alone = render(faces, [ord("R")], count=20, size=28)
    among = render(faces, [ord("a"), ord("R")], count=20, size=28)
    assert torch.equal(among[20:], alone)


def test_pictures_are_whole_and_all_different(faces: list[Face], splits: Splits) -> None:
    some = characters(splits)[::9]
    pictures = render(faces, some, count=20, size=28)
    border = pictures.clone()
    border[:, :, 1:-1, 1:-1] = 0
    assert border.max() == 0
    assert (pictures.amax((1, 2, 3)) > 200).all()
    ink = pictures.float().mean((1, 2, 3)) / 255
    assert ink.min() > 0.01
    assert ink.max() < 0.5
    assert len({picture.numpy().tobytes() for picture in pictures}) == len(pictures)


def test_cache_is_read_back_the_same(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyph_rendering, "read_faces", None)
    for (_, cached), (_, rendered) in zip(glyphs.load(size=SIZE), splits, strict=True):
        assert cached.class_names == rendered.class_names
        assert torch.equal(cached.images, rendered.images)


@pytest.fixture
def few_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 characters in pictures of one colour, quickly made."""

    def render(_: object, letters: list[int], *, count: int, size: int) -> torch.Tensor:
        return torch.full((len(letters) * count, 1, size, size), 7, dtype=torch.uint8)

    letters = list(range(ord("A"), ord("A") + 60))
    monkeypatch.setattr(glyph_rendering, "read_faces", list)
    monkeypatch.setattr(glyph_rendering, "distinct_characters", lambda _: letters)
    monkeypatch.setattr(glyph_rendering, "render", render)


def cached(home: Path) -> dict[str, Path]:
    """The files of the cache by suffix."""
    return {path.suffix: path for path in home.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("few_letters")
@pytest.mark.parametrize("suffix", [".bin", ".json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_cache_is_made_again(own_cache_home: Path, suffix: str, damage: str) -> None:
    glyphs.load()
    path = cached(own_cache_home)[suffix]
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    else:
        path.write_bytes(b"")
    splits = glyphs.load()
    assert sum(len(dataset) for _, dataset in splits) == 60 * glyphs.RENDERINGS
    assert all((dataset.images == 7).all() for _, dataset in splits)
    assert set(cached(own_cache_home)) == {".bin", ".json"}


@pytest.mark.usefixtures("few_letters")
def test_cache_of_another_version_is_replaced(
    own_cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glyphs.load()
    before = cached(own_cache_home)
    content = before[".json"].read_bytes()
    monkeypatch.setattr(glyphs, "version", lambda _: "0.1")
    glyphs.load()
    assert cached(own_cache_home) == before
    assert before[".json"].read_bytes() != content


@pytest.mark.usefixtures("few_letters")
def test_refreshed_glyphs_are_rendered_again(
    own_cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del own_cache_home
    before = glyphs.load()
    monkeypatch.setattr(
        glyph_rendering,
        "render",
        lambda _, letters, *, count, size: torch.full(
            (len(letters) * count, 1, size, size), 9, dtype=torch.uint8
        ),
    )
    assert (glyphs.load().train.images == 7).all()
    assert (glyphs.load(refresh=True).train.images == 9).all()
    assert (glyphs.load().train.images == 9).all()
    assert (before.train.images == 7).all(), "the file of an earlier call is still mapped"


@pytest.mark.usefixtures("few_letters")
def test_cache_that_cannot_be_written_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"cannot be written.*XDG_CACHE_HOME.*a copy"):
        glyphs.load()


@pytest.mark.usefixtures("own_cache_home")
def test_missing_fonts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match="DejaVuSans"):
        glyphs.load()


def test_size_too_small() -> None:
    with pytest.raises(DataError, match="size is 8"):
        glyphs.load(size=8)
