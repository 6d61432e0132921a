from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.reading import digests
from fewshot_blo.tasks.reading.decoded import fingerprint, read_decoded, write_decoded

SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fewshot_blo"


def write(root: Path) -> ClassDataset:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    return write_decoded(root, "images", "key", SHAPE, [("a", images[:2]), ("b", images[2:])])


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


@pytest.mark.parametrize("block", [1 << 24, 1000, 192, 7])
def test_no_flipped_bit_is_used(
    block: int, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "BLOCK", block)
    before = write(tmp_path)
    images, generator = before.images.clone(), random.Random(block)
    for suffix in ("bin", "json"):
        (file,) = cache.rglob(f"images.{suffix}")
        content = file.read_bytes()
        for _ in range(50):
            place = generator.randrange(len(content))
            file.write_bytes(flipped(content, place, generator.randrange(8)))
            found = read_decoded(tmp_path, "images", "key")
            if found is not None:  # A flip in white space, or in the name of the digest.
                assert suffix == "json"
                assert found.class_names == before.class_names
                assert found.images.equal(images)
        file.write_bytes(content)
        assert read_decoded(tmp_path, "images", "key") is not None


def test_a_file_replaced_with_the_same_size_and_time_is_another(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    before, state = fingerprint(tmp_path, [file]), file.stat()
    assert fingerprint(tmp_path, [file]) == before
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file.stat().st_mtime_ns == state.st_mtime_ns
    assert fingerprint(tmp_path, [file]) != before


def test_images_are_mapped_and_do_not_change_the_file(tmp_path: Path, cache: Path) -> None:
    images = write(tmp_path).images
    images.zero_()
    again = read_decoded(tmp_path, "images", "key")
    assert again is not None
    assert not torch.equal(again.images, images)
