"""Images of 16 bits whose files do not say how many are in use, among them dark ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fewshot_blo.finetune import LabelledImages, Source, fit, load_classifier, save_classifier
from fewshot_blo.finetune.images import as_pixels
from fewshot_blo.finetune.labelled_folder import read_labelled
from fewshot_blo.finetune.labelling import label_files
from fewshot_blo.tasks.reading.images import common_bits


def scan(brightest: int, seed: int) -> NDArray[np.uint16]:
    values = np.random.default_rng(seed).integers(0, brightest, (20, 20))
    values[0, 0] = brightest
    return values.astype(np.uint16)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Bright images of 12 bits, and dark ones whose values would fit in 8."""
    for name, brightest in (("bright", 4000), ("dark", 200)):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(scan(brightest, number))
            image.save(tmp_path / "scans" / name / f"{number}.png")
    return tmp_path / "scans"


def test_the_brightest_image_of_a_folder_says_the_bits(scans: Path) -> None:
    data = read_labelled(scans, 20)
    assert data.bits == 12
    assert data.images[data.labels == 0].max() == 4000 >> 4
    assert data.images[data.labels == 1].max() == 200 >> 4
    assert "4 images of 16 bits have low values alone, and count as of 12 bits" in data.notes[0]
    alone = as_pixels([scans / "dark" / "0.png"], 20)
    assert alone.max() == 200


def test_new_images_are_read_as_those_of_training(
    scans: Path, small_networks: str, tmp_path: Path
) -> None:
    source = Source(small_networks)
    data = read_labelled(scans, 16)
    classifier, _ = fit(data, source.load(), source, views="one", progress=False)
    save_classifier(classifier, tmp_path / "c.pt")
    loaded = load_classifier(tmp_path / "c.pt", own=small_networks)
    assert loaded.bits == 12
    files = sorted((scans / "dark").iterdir())
    (labels,) = label_files(loaded, files)
    expected = loaded.predict(data.images[data.labels == 1]).probabilities
    found = torch.tensor([label.probabilities for label in labels])
    torch.testing.assert_close(found, expected)


def test_bits_of_sources_of_every_kind(scans: Path) -> None:
    bright, dark = scan(4000, 0), scan(200, 0)
    path = scans / "bright" / "0.png"
    for source in (path, path.read_bytes(), Image.fromarray(bright), bright, torch.tensor(bright)):
        assert common_bits([source]) == (12, 0)
        assert common_bits([dark, source]) == (12, 1)
    eight = Image.fromarray(dark.astype(np.uint8))
    assert common_bits([eight, dark.astype(np.uint8), dark / 255, b"no image"]) == (0, 0)


def test_labelled_images_of_8_bits_have_none(make_folder: Callable[..., Path]) -> None:
    data: LabelledImages = read_labelled(make_folder(2, 2), 16)
    assert data.bits == 0
    assert not data.notes
