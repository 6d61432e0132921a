from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.incremental import class_incremental, training_images
from fewshot_blo.tasks import ClassDataset, DataError

COUNTS = [6, 8, 7, 6, 9, 6, 7]
SIZES: dict[str, Any] = {"base": 3, "session": 2, "shot": 2, "base_shot": 4, "seed": 1}


def dataset() -> ClassDataset:
    labels = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    return ClassDataset(images, labels, tuple("abcdefg"))


def features(spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(COUNTS), 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(sum(COUNTS), 3, generator=generator, dtype=torch.float64)
    return centres[dataset().labels] + spread * noise


def test_sessions_are_those_of_a_plain_loop() -> None:
    data, x = dataset(), features(0.8)
    found = class_incremental(x, data, **SIZES)
    training = training_images(data, base=3, shot=2, base_shot=4, seed=1)
    assert torch.bincount(data.labels[training]).tolist() == [4, 4, 4, 2, 2, 2, 2]
    assert found.classes.tolist() == [3, 5, 7]
    own, labels = x.numpy(), data.labels.tolist()
    means = [
        own[[i for i, y in enumerate(labels) if y == c and training[i]]].mean(0) for c in range(7)
    ]
    for session, seen in enumerate([3, 5, 7]):
        right: dict[int, list[bool]] = {c: [] for c in range(seen)}
        for i, label in enumerate(labels):
            if label < seen and not training[i]:
                distances = [float(((own[i] - mean) ** 2).sum()) for mean in means[:seen]]
                right[label].append(distances.index(min(distances)) == label)
        every = [value for values in right.values() for value in values]
        base = [value for c in range(3) for value in right[c]]
        new = [value for c in range(3, seen) for value in right[c]]
        assert float(found.accuracy[session]) == pytest.approx(np.mean(every), rel=1e-12)
        assert float(found.base[session]) == pytest.approx(np.mean(base), rel=1e-12)
        if new:
            assert float(found.new[session]) == pytest.approx(np.mean(new), rel=1e-12)
        else:
            assert math.isnan(found.new[session])
    assert found.drop == float(found.accuracy[0] - found.accuracy[2])
    assert found.accuracy[0] < 1, "the features are too easy to check anything"


def test_separate_classes_do_not_drop() -> None:
    found = class_incremental(features(1e-3), dataset(), **SIZES)
    assert found.accuracy.tolist() == [1, 1, 1]
    lines = str(found).splitlines()
    assert lines[2] == "| 0 | 3 | 100.00 | 100.00 |  |"
    assert lines[-2:] == ["| 2 | 7 | 100.00 | 100.00 | 100.00 |", "drop 0.00 points"]


def test_the_choice_depends_on_the_seed() -> None:
    one, other = (training_images(dataset(), base=3, shot=2, seed=seed) for seed in (0, 1))
    assert not one.equal(other)
    assert one.equal(training_images(dataset(), base=3, shot=2, seed=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": 7}, "base is 7, and there are 7 classes"),
        ({"shot": 6}, "class 'd' has 6 images, and 6 are for training"),
        ({"base_shot": 7}, "class 'a' has 6 images, and 7 are for training"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        class_incremental(features(1), dataset(), **(SIZES | changes))


def test_features_of_other_images() -> None:
    with pytest.raises(ConfigurationError, match=r"features have shape \[5, 3\]: .*\[49, D\]"):
        class_incremental(torch.zeros(5, 3), dataset(), **SIZES)
