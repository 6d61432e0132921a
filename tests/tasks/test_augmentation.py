from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import Augmentation, ClassDataset, DataError, EpisodicSampler, TaskBatch
from fewshot_blo.tasks.augmentation import draw
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

EVERYTHING = Augmentation(
    flip=0.5,
    quarter_turns=True,
    crop=2,
    rotation=20,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
)
SIZES: dict[str, Any] = {"way": 3, "shot": 2, "query": 4, "tasks": 4}


def pictures(count: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)


def sampler(augment: Augmentation | None = EVERYTHING, **changes: Any) -> EpisodicSampler:
    dataset = ClassDataset(
        pictures(35, 3, 8, 8), torch.arange(5).repeat_interleave(7), tuple("abcde")
    )
    return EpisodicSampler(dataset, augment=augment, **(SIZES | changes))


def assert_same(one: TaskBatch, other: TaskBatch) -> None:
    for field in fields(TaskBatch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def compare(
    augmentation: Augmentation, images: Tensor, one: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Holds a batch against a function of an image in [0, 1] and its draws."""
    draws = draw(0, range(4), len(images) // 4, 0)
    expected = torch.stack(
        [one(image.double() / 255, u) for image, u in zip(images, draws, strict=True)]
    )
    found = augmentation(images, draws, torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found, images.double() / 255)


def torchvision_transforms() -> Any:
    torchvision_module()
    return importlib.import_module("torchvision.transforms.functional")


def moved(augmentation: Augmentation, image: Tensor, u: Tensor) -> Tensor:
    """Flip, quarter turns and crop of one image."""
    flip, turn, down, right = u[:4].tolist()
    if flip < augmentation.flip:
        image = torch.flip(image, (2,))
    if augmentation.quarter_turns:
        image = torch.rot90(image, int(4 * turn), (1, 2))
    margin = augmentation.crop
    top, left = int(down * (2 * margin + 1)), int(right * (2 * margin + 1))
    height, width = image.shape[1:]
    return F.pad(image, (margin,) * 4)[:, top : top + height, left : left + width]


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(flip=0.5),
        Augmentation(flip=1.0),
        Augmentation(crop=3),
        Augmentation(quarter_turns=True),
        Augmentation(flip=0.5, quarter_turns=True, crop=1),
    ],
)
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 7, 7)])
def test_moves_are_exact(augmentation: Augmentation, shape: tuple[int, int, int]) -> None:
    if not augmentation.quarter_turns:
        shape = (shape[0], shape[1], shape[2] + 2)
    images = pictures(80, *shape)
    compare(augmentation, images, lambda image, u: moved(augmentation, image, u))
    found = augmentation(images, draw(0, range(4), 20, 0), torch.float64) * 255
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 8, 8), (3, 6, 11)])
def test_rotation_equals_that_of_torchvision(shape: tuple[int, int, int]) -> None:
    functional = torchvision_transforms()
    bilinear = functional.InterpolationMode.BILINEAR

    def one(image: Tensor, u: Tensor) -> Tensor:
        angle = 35 * (2 * float(u[4]) - 1)
        return functional.rotate(image, angle, bilinear)  # type: ignore[no-any-return]

    compare(Augmentation(rotation=35), pictures(40, *shape), one)


def test_colours_equal_those_of_torchvision() -> None:
    functional = torchvision_transforms()
    images = pictures(40, 3, 6, 7)
    for column, name in ((5, "brightness"), (6, "contrast"), (7, "saturation")):
        change = getattr(functional, f"adjust_{name}")

        def one(image: Tensor, u: Tensor, change: Any = change, column: int = column) -> Tensor:
            return change(image, 1 + 0.6 * (2 * float(u[column]) - 1))  # type: ignore[no-any-return]

        settings: dict[str, Any] = {name: 0.6}
        compare(Augmentation(**settings), images, one)


def test_colours_by_their_formulas() -> None:
    """On grey images, and the three one after another on colours."""

    def grey(x: Tensor, u: Tensor) -> Tensor:
        factor = 0.5 + u[6]
        return (factor * x + (1 - factor) * x.mean()).clamp(0, 1)

    compare(Augmentation(contrast=0.5), pictures(20, 1, 6, 6), grey)

    def luma(x: Tensor) -> Tensor:
        return (0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2])[None]

    def colours(x: Tensor, u: Tensor) -> Tensor:
        bright, contrast, saturation = (0.5 + u[5:]).unbind()
        x = (bright * x).clamp(0, 1)
        x = (contrast * x + (1 - contrast) * luma(x).mean()).clamp(0, 1)
        return (saturation * x + (1 - saturation) * luma(x)).clamp(0, 1)

    every = Augmentation(brightness=0.5, contrast=0.5, saturation=0.5)
    compare(every, pictures(40, 3, 6, 6), colours)


def test_draws_are_uniform_and_independent() -> None:
    u = draw(3, range(40), 50, 1)
    assert u.shape == (2000, 8)
    assert len(u.unique()) == u.numel()
    assert 0 <= float(u.min()) < float(u.max()) < 1
    torch.testing.assert_close(u.mean(0), torch.full((8,), 0.5).double(), rtol=0, atol=0.03)
    correlation = torch.corrcoef(torch.cat([u[:-1], u[1:]], 1).T)
    assert (correlation - torch.eye(16)).abs().max() < 0.1


def test_each_outcome_is_as_likely_as_stated() -> None:
    """Images that show where they were turned and cut, 4000 of them."""
    draws = draw(0, range(40), 100, 0)
    marked = torch.zeros(4000, 1, 4, 4, dtype=torch.uint8)
    marked[:, :, 0, 0] = 255

    def places(augmentation: Augmentation) -> list[float]:
        found = augmentation(marked, draws, torch.float32).mean((0, 1)).flatten()
        return [value for value in found.tolist() if value]

    assert places(Augmentation(flip=0.2)) == pytest.approx([0.8, 0.2], abs=0.03)
    assert places(Augmentation(quarter_turns=True)) == pytest.approx([0.25] * 4, abs=0.03)
    # A margin of 1 leaves the corner at one of 4 places, or cuts it off.
    assert places(Augmentation(crop=1)) == pytest.approx([1 / 9] * 4, abs=0.02)


@pytest.mark.parametrize("way", [3, (2, 4)])
def test_batches_are_a_function_of_seed_and_task(way: Any) -> None:
    single = sampler(tasks=1, way=way, seed=5)
    joint = sampler(tasks=4, way=way, seed=5).batch(2)
    for t in range(4):
        assert_same(joint[t : t + 1], single.batch(8 + t))
    state = torch.get_rng_state()
    assert_same(joint, sampler(tasks=4, way=way, seed=5).batch(2))
    assert torch.equal(state, torch.get_rng_state())
    other = sampler(tasks=4, way=3, seed=6).batch(2)
    assert not torch.equal(other.support_x[0, 0], joint.support_x[0, 0])


def test_only_images_change() -> None:
    plain, augmented = sampler(None).batch(3), sampler().batch(3)
    for name in ("support_y", "query_y", "classes"):
        assert torch.equal(getattr(plain, name), getattr(augmented, name))
    assert 0 <= float(augmented.query_x.min()) <= float(augmented.query_x.max()) <= 1
    turned = sampler(Augmentation(quarter_turns=True)).batch(3)
    for images, others in (
        (plain.support_x, turned.support_x),
        (plain.query_x, turned.query_x),
    ):
        same = images.flatten(2).sort(2).values == others.flatten(2).sort(2).values
        assert same.all()
        assert not torch.equal(images, others)


def test_images_of_a_task_are_drawn_each_by_itself() -> None:
    dataset = ClassDataset(
        pictures(1, 1, 8, 8).expand(14, -1, -1, -1),
        torch.arange(2).repeat_interleave(7),
        ("a", "b"),
    )
    source = EpisodicSampler(
        dataset, way=2, shot=3, query=4, tasks=2, augment=Augmentation(rotation=90)
    )
    batch = source.batch(0)
    images = torch.cat([batch.support_x.flatten(0, 1), batch.query_x.flatten(0, 1)]).flatten(1)
    assert len(images.unique(dim=0)) == 28


def test_padded_rows_stay_zero() -> None:
    bright = ClassDataset(
        torch.full((35, 3, 8, 8), 200, dtype=torch.uint8),
        torch.arange(5).repeat_interleave(7),
        tuple("abcde"),
    )
    ranges: dict[str, Any] = {"way": (2, 5), "shot": (1, 3), "query": (1, 4), "tasks": 8}
    source = EpisodicSampler(bright, augment=EVERYTHING, **ranges)
    batch = source.batch(0)
    assert batch.padded
    for images, labels in ((batch.support_x, batch.support_y), (batch.query_x, batch.query_y)):
        assert not images[labels < 0].any()
        assert images[labels >= 0].flatten(1).any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_off_changes_nothing(dtype: torch.dtype) -> None:
    off = sampler(Augmentation(), dtype=dtype)
    for field in fields(TaskBatch):
        plain = getattr(sampler(None, dtype=dtype).batch(1), field.name)
        assert torch.equal(getattr(off.batch(1), field.name), plain)
    images = pictures(4, 3, 8, 8)
    unchanged = Augmentation()(images, draw(0, [0], 4, 0), torch.float64)
    assert torch.equal(unchanged, images.double() / 255)
    assert sampler(dtype=dtype).batch(0).query_x.dtype == dtype


def test_one_setting_leaves_the_draws_of_the_others_alone() -> None:
    images, draws = pictures(20, 3, 8, 8), draw(0, [0], 20, 0)
    # A flip moves bytes, so the colours can be changed in a second call.
    flip, colour = Augmentation(flip=0.5), Augmentation(brightness=0.4, saturation=0.3)
    both = Augmentation(flip=0.5, brightness=0.4, saturation=0.3)
    flipped = (flip(images, draws, torch.float64) * 255).round().to(torch.uint8)
    assert torch.equal(both(images, draws, torch.float64), colour(flipped, draws, torch.float64))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"flip": 1.5}, r"flip is 1\.5: it must be in \[0, 1\]"),
        ({"flip": float("nan")}, "flip is nan"),
        ({"crop": -1}, "crop is -1"),
        ({"rotation": -3.0}, r"rotation is -3\.0.*\[0, 180\]"),
        ({"brightness": 2.0}, "brightness is 2"),
        ({"contrast": -0.1}, "contrast is -0"),
        ({"saturation": 1.01}, "saturation is 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Augmentation(**settings)


@pytest.mark.parametrize(
    ("settings", "shape", "match"),
    [
        ({"quarter_turns": True}, (3, 8, 9), "8x9: quarter turns need square images"),
        ({"saturation": 0.1}, (1, 8, 8), "1 channels: saturation needs 3"),
    ],
)
def test_images_that_do_not_fit(
    settings: dict[str, Any], shape: tuple[int, ...], match: str
) -> None:
    dataset = ClassDataset(pictures(4, *shape), torch.tensor([0, 0, 1, 1]), ("a", "b"))
    with pytest.raises(DataError, match=match):
        EpisodicSampler(dataset, way=2, shot=1, query=1, tasks=1, augment=Augmentation(**settings))


def test_embeddings_are_not_augmented() -> None:
    embeddings = torch.rand(35, 4)
    with pytest.raises(DataError, match=r"this sampler augments.*augment is None"):
        sampler().batch(0, embeddings)
    assert sampler(Augmentation()).batch(0, embeddings).support_x.shape == (4, 6, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to PyTorch")
def test_device_equals_host() -> None:
    on_host = sampler(dtype=torch.float64).batch(0)
    on_device = sampler(dtype=torch.float64, device="cuda").batch(0)
    assert on_device.support_x.is_cuda
    assert_same(on_device.to("cpu"), on_host)
    moves = Augmentation(flip=0.5, quarter_turns=True, crop=2)
    exact = sampler(moves).batch(0), sampler(moves, device="cuda").batch(0).to("cpu")
    torch.testing.assert_close(exact[0].query_x, exact[1].query_x, rtol=1e-6, atol=0)
