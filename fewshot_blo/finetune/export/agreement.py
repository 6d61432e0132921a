"""Compares an exported model, used as a stranger would, with its classifier."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.export.standalone import NONE
from fewshot_blo.tasks.reading.images import read_image


@dataclass(frozen=True)
class Agreement:
    """An exported model and its classifier on the same image files.

    Attributes:
        pictures: number of pictures.
        other_labels: pictures with another label, each as "FILE: LABEL, not LABEL".
        difference: largest absolute difference of a probability.
        worst: the picture with this difference.
    """

    pictures: int
    other_labels: tuple[str, ...]
    difference: float
    worst: Path

    def __repr__(self) -> str:
        return f"Agreement({self.describe()})"

    def describe(self) -> str:
        """A sentence without its full stop."""
        same = self.pictures - len(self.other_labels)
        return (
            f"{same} of {self.pictures} pictures have the classifier's label; the largest "
            f"difference of a probability is {self.difference:.1e}"
        )


def compare(
    classifier: Classifier, script: Path, specification: Path, pictures: Sequence[Path]
) -> Agreement:
    """Labels pictures from their files, by the script and by the classifier.

    Args:
        classifier: the classifier.
        script: the script that was written beside the model.
        specification: the JSON file beside the model.
        pictures: image files, at least one.

    Raises:
        DataError: if a picture cannot be decoded.
    """
    model = runpy.run_path(str(script))["Model"](specification)
    color = classifier.image[0] == 3
    pixels = [
        read_image(path, size=classifier.size, color=color, bits=classifier.bits)
        for path in pictures
    ]
    expected = classifier.predict(torch.from_numpy(np.stack(pixels)))
    differences, other = [], []
    for row, path in enumerate(pictures):
        probabilities = expected.probabilities[row]
        most_likely = classifier.class_names[int(probabilities.argmax())]
        known = bool(expected.known[row])
        label = most_likely if known else NONE
        found = model.predict(path)
        # A class may be called as those images are that are of none.
        if (found["label"], found["known"]) != (label, known):
            other.append(f"{path}: {found['label']}, not {label}")
        gap = torch.tensor(found["probabilities"]).to(probabilities) - probabilities
        differences.append(float(gap.abs().max()))
    worst = max(range(len(pictures)), key=differences.__getitem__)
    return Agreement(len(pictures), tuple(other), differences[worst], pictures[worst])
