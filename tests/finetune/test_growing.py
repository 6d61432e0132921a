"""A classifier that learns a class or corrected labels, its versions, and its album."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_images import NAMES, noisy, picture, smooth
from torch import Tensor, nn

from fewshot_blo.backbones import Backbone, Preprocessing
from fewshot_blo.commands import main as cli
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.finetune import (
    Classifier,
    LabelledImages,
    Source,
    fit,
    load_classifier,
    read_labelled,
    save_classifier,
)
from fewshot_blo.finetune.album import Album
from fewshot_blo.finetune.candidates import BALANCED, Candidate
from fewshot_blo.finetune.files import next_version, save_version
from fewshot_blo.finetune.growing import add_class, add_images
from fewshot_blo.finetune.images import as_pixels
from fewshot_blo.finetune.neighbours import Neighbours
from fewshot_blo.kernel import SGD, Adam, InnerSteps

Fit = Callable[[Candidate, LabelledImages, float], Classifier]
HEADS = (
    BALANCED,
    Candidate("prototypes", head="cosine"),
    Candidate("head", inner=InnerSteps(20, SGD(2.0))),
    Candidate("ridge", head="ridge"),
)
TAIL = Candidate("tail", adapts="last_blocks", inner=InnerSteps(5, Adam(1e-3)))


def pixels(colour: int, *numbers: int) -> Tensor:
    return as_pixels([picture(colour, number) for number in numbers], 16)


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> LabelledImages:
    return read_labelled(make_folder(5, 4, 6), 16)


@pytest.mark.parametrize("candidate", HEADS)
def test_the_head_solved_again_is_that_of_fitting(
    candidate: Candidate, data: LabelledImages, fit_one: Fit
) -> None:
    classifier = fit_one(candidate, data, 0.5)
    again = classifier.solved(classifier.features, classifier.labels)
    for name, value in classifier.params.items():
        torch.testing.assert_close(again[name], value)


def test_a_new_class_fits_in_where_features_are_much_alike() -> None:
    """As after a ReLU: a large part is common to all, and logits had a level of their own."""
    same = Backbone(nn.Identity(), Preprocessing(None, (0.0,) * 40, (1.0,) * 40), pool="flatten")
    for seed in range(4):
        torch.manual_seed(seed)
        centres = 6 + 3 * torch.eye(40)[:6]
        labels = torch.arange(6).repeat_interleave(10)
        x = (centres[labels] + torch.randn(60, 40))[..., None, None]
        old = labels < 5
        data = LabelledImages(x[old], labels[old], tuple("abcde"), ())
        few = fit(data, same, Source("x"), adapts="head", views="one", progress=False)[0]
        few.add_class("f", x[~old])
        new = (centres.repeat_interleave(50, 0) + torch.randn(300, 40))[..., None, None]
        right = few.predict(new).probabilities.argmax(1).reshape(6, 50) == torch.arange(6)[:, None]
        assert right[:5].double().mean() > 0.75
        assert right[5].double().mean() > 0.6


@pytest.mark.parametrize("candidate", [*HEADS, TAIL])
def test_a_corrected_image_is_then_predicted_as_its_class(
    candidate: Candidate, data: LabelledImages, fit_one: Fit
) -> None:
    classifier = fit_one(candidate, data, 0.5)
    wrong = pixels(1, 20)  # An image like those of one class, which a person says is of another.
    before = classifier.predict(wrong).probabilities
    other = next(n for n in range(3) if n != int(before.argmax()))
    name = data.class_names[other]
    growth = add_images(classifier, name, wrong, ["x/odd.png"])
    after = growth.classifier.predict(wrong).probabilities
    assert after[0, other] > before[0, other]
    said = [note for note in growth.notes if "still predicted" in note]
    assert bool(said) != (int(after.argmax()) == other)
    assert growth.describe() == f"class '{name}' learned from 1 image"
    # The given classifier is as it was.
    assert torch.equal(classifier.predict(wrong).probabilities, before)
    assert len(classifier.labels) == 15
    assert growth.classifier.album.files[-1] == "odd.png"


def test_an_image_is_not_learned_twice(data: LabelledImages, fit_one: Fit) -> None:
    classifier = fit_one(BALANCED, data, 0.5)
    name = data.class_names[0]
    known = data.images[data.labels == 0][:2]
    growth = add_images(classifier, name, torch.cat([known, known]))
    assert growth.learned == 0
    assert growth.classifier is classifier
    assert growth.notes == (f"2 images passed over: they are in '{name}' already",)


def test_near_duplicates_are_passed_over_where_they_are_recognised(
    fit_one: Fit, tmp_path: Path
) -> None:
    for number in range(10):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        smooth(number).save(folder / f"{number}.png")
    data = read_labelled(tmp_path, 64)
    classifier = fit_one(BALANCED, data, 0.5)
    copies = as_pixels([noisy(smooth(0), 1), smooth(20)], 64)
    growth = add_images(classifier, "a", copies)
    assert growth.learned == 1
    assert "1 image passed over: it is nearly the same as images in 'a' already" in growth.notes
    doubtful = add_class(classifier, "c", copies)
    assert doubtful.learned == 2
    assert any("nearly the same as images of 'a': check which" in s for s in doubtful.notes)


def test_a_training_image_of_another_class_moves(data: LabelledImages, fit_one: Fit) -> None:
    classifier = fit_one(BALANCED, data, 0.5)
    first, second = data.class_names[:2]
    rows = (data.labels == 0).nonzero().flatten()
    growth = add_images(classifier, second, data.images[rows[:1]])
    assert growth.learned == 1
    assert f"1 training image of '{first}' moved to '{second}'" in growth.notes
    labels = growth.classifier.labels
    assert (int(labels[rows[0]]), int((labels == 0).sum())) == (1, len(rows) - 1)
    # It counts up to three times, for it is very unlike its new class.
    assert len(labels) == len(data.labels) + 2
    assert "1 image of" in growth.notes[-1]
    assert "still predicted as another class" in growth.notes[-1]
    # Said again, it counts more.
    again = add_images(growth.classifier, second, data.images[rows[:1]])
    assert (again.learned, len(again.classifier.labels) > len(labels)) == (1, True)
    new = add_class(classifier, "new", torch.cat([data.images[rows[:2]], pixels(0, 60)]))
    assert (new.classifier.labels == 3).sum() == 3
    assert new.classifier.predict(data.images).probabilities.shape == (15, 4)
    with pytest.raises(ConfigurationError, match="would have none without them"):
        add_class(classifier, "new", data.images[rows])


def test_what_a_class_needs(data: LabelledImages, fit_one: Fit) -> None:
    classifier = fit_one(BALANCED, data, 0.5)
    with pytest.raises(ConfigurationError, match="has no name"):
        add_class(classifier, "  ", pixels(0, 50))
    with pytest.raises(ConfigurationError, match="exists already"):
        add_class(classifier, NAMES[0], pixels(0, 50))
    with pytest.raises(ConfigurationError, match="there is no class 'x'"):
        add_images(classifier, "x", pixels(0, 50))
    with pytest.raises(ConfigurationError, match="no image of 'x'"):
        add_class(classifier, "x", pixels(0, 50)[:0])


def test_a_class_that_is_known_already_is_doubtful(
    make_folder: Callable[..., Path], fit_one: Fit
) -> None:
    classifier = fit_one(BALANCED, read_labelled(make_folder(8, 8), 16), 0.1)
    again = add_class(classifier, "rot", pixels(0, *range(50, 58)))
    assert again.held_out is not None
    assert len(again.held_out.labels) == 8
    (said,) = again.notes
    assert "of the 8 images of 'rot' are predicted as the class 'red'" in said
    new = add_class(classifier, "blue", pixels(2, *range(50, 58)))
    assert new.notes == ()
    assert new.describe() == (
        "class 'blue' learned from 8 images; held out one by one, 8 of 8 are recognised"
    )
    mixed = add_class(classifier, "mixed", torch.cat([pixels(c, 50, 51) for c in range(3)]))
    assert any("hardly more like each other" in note for note in mixed.notes)
    one = add_class(classifier, "one", pixels(0, 50))
    assert one.held_out is None


def test_neighbours_are_of_the_same_class(data: LabelledImages, fit_one: Fit) -> None:
    classifier = fit_one(BALANCED, data, 0.5)
    twice = add_images(classifier, data.class_names[0], pixels(0, 30)).classifier
    neighbours = Neighbours(twice)
    for row, found in enumerate(neighbours.nearest(classifier.features, 3)):
        assert found[0][0] == row
        assert found[0][1] == pytest.approx(1, abs=1e-5)
        assert len({place for place, _ in found}) == 3
        assert sorted((s for _, s in found), reverse=True) == [s for _, s in found]


def test_the_album_is_saved(data: LabelledImages, fit_one: Fit, small_networks: str) -> None:
    classifier = fit_one(BALANCED, data, 0.5)
    album = classifier.album
    assert album.files[0] == "0.png"
    with Image.open(io.BytesIO(album.thumbnails[3])) as image:
        assert image.format == "JPEG"
        assert image.size == (16, 16)
    assert Album.from_plain(album.plain()) == album
    assert Album.from_plain(Album().plain()) == Album()
    assert Album().plus(data.images, ()) == Album()
    many = data.images[:1].expand(2100, -1, -1, -1)
    labels = torch.tensor([0] * 2097 + [1] * 3)
    large = Album.of(many, ["a/b/x.png"] * 2100, labels)
    assert sum(map(bool, large.thumbnails)) == 2000
    assert all(large.thumbnails[-3:])
    assert large.plus(many[:2], ["y", "z"]).thumbnails[-2:] == (b"", b"")


def test_versions_are_kept(
    data: LabelledImages, fit_one: Fit, small_networks: str, tmp_path: Path
) -> None:
    classifier = fit_one(BALANCED, data, 0.5)
    path = tmp_path / "c.pt"
    save_classifier(classifier, path, thumbnails=False)
    before = path.read_bytes()
    assert load_classifier(path, own=small_networks).album == Album()
    assert next_version(path) == tmp_path / "c-2.pt"
    written: list[Path] = []
    threads = [
        threading.Thread(target=lambda: written.append(save_version(classifier, path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in written) == [f"c-{n}.pt" for n in (2, 3, 4, 5)]
    assert path.read_bytes() == before
    assert load_classifier(written[0], own=small_networks).album == classifier.album
    assert next_version(tmp_path / "c-3.pt") == tmp_path / "c-6.pt"
    assert next_version(tmp_path / "of-2024.pt") == tmp_path / "of-2024-2.pt"
    assert next_version(tmp_path / "2024-05.pt") == tmp_path / "2024-05-2.pt"
    assert next_version(tmp_path / "none" / "c-7.pt") == tmp_path / "none" / "c-8.pt"
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="choose another folder"):
        save_version(classifier, tmp_path / "file" / "c.pt")


def test_thumbnails_can_be_left_out(
    make_folder: Callable[..., Path], small_networks: str, tmp_path: Path
) -> None:
    root = make_folder(3, 3)
    words = ["finetune", str(root), f"--backbone={small_networks}", f"--output={tmp_path / 'o'}"]
    assert cli.main([*words, "--adapts=head", "--thumbnails", "false"]) == 0
    assert load_classifier(tmp_path / "o" / "classifier.pt", own=small_networks).album == Album()


def test_files_of_the_second_format_load_without_an_album(
    data: LabelledImages, fit_one: Fit, small_networks: str, tmp_path: Path
) -> None:
    save_classifier(fit_one(BALANCED, data, 0.5), tmp_path / "c.pt")
    content = torch.load(tmp_path / "c.pt")
    del content["album"]
    torch.save({**content, "format": 2}, tmp_path / "old.pt")
    old = load_classifier(tmp_path / "old.pt", own=small_networks)
    assert old.album == Album()
    assert add_images(old, data.class_names[0], pixels(0, 40)).classifier.album == Album()
