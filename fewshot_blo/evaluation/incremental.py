"""``class_incremental``: accuracy over all classes seen, while a few are added at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural
from fewshot_blo.tasks import ClassDataset, DataError

_QUERIES = 4096


@dataclass(frozen=True)
class Sessions:
    """Accuracy after the base session and after each session that adds classes.

    Attributes:
        classes: ``[S]``, number of classes seen, of which the first are the base classes.
        accuracy: ``[S]``, over the test images of all classes seen, float64 in [0, 1].
        base: ``[S]``, over those of the base classes alone, among all classes seen.
        new: ``[S]``, over those of the added classes, among all classes seen; NaN at first.
    """

    classes: Tensor
    accuracy: Tensor
    base: Tensor
    new: Tensor

    @property
    def drop(self) -> float:
        """Accuracy of the base session minus that of the last one, in [-1, 1]."""
        return float(self.accuracy[0] - self.accuracy[-1])

    def __str__(self) -> str:
        """A Markdown table in percent."""
        lines = ["| session | classes | all seen | base | added |", "|---|---|---|---|---|"]
        for number, row in enumerate(
            zip(self.classes.tolist(), self.accuracy, self.base, self.new, strict=True)
        ):
            classes, *shares = row
            words = ["" if share.isnan() else f"{100 * share:.2f}" for share in shares]
            lines.append(f"| {number} | {classes} | {' | '.join(words)} |")
        return "\n".join([*lines, f"drop {100 * self.drop:.2f} points"])


@checked
def class_incremental(
    features: Tensor,
    dataset: ClassDataset,
    *,
    base: Counting,
    session: Counting,
    shot: Counting,
    base_shot: Natural = 0,
    seed: Natural = 0,
) -> Sessions:
    """Classifies by the nearest class mean, while sessions add classes to those seen before.

    Classes come in the order of the data set: first the base classes, then ``session`` of them at
    a time. A class is the mean of the features of its training images and never changes. All other
    images are test images; each is classified among all classes seen so far.

    Args:
        features: ``[M, D]``, features of all images, from ``embed``.
        dataset: the classes.
        base: number of base classes.
        session: number of classes that a session adds; the last session may have fewer.
        shot: number of training images of an added class.
        base_shot: number of training images of a base class; 0 for ``shot``.
        seed: seed of the choice of training images.

    Raises:
        ConfigurationError: if there is not one feature vector an image.
        DataError: if there is no class to add, or a class has no test image.
    """
    if features.ndim != 2 or len(features) != len(dataset):
        raise ConfigurationError(
            f"features have shape {list(features.shape)}: they must be [{len(dataset)}, D], one "
            "vector for each image of the data set"
        )
    classes = len(dataset.class_names)
    if base >= classes:
        raise DataError(f"base is {base}, and there are {classes} classes: leave some to add")
    training = training_images(dataset, base=base, shot=shot, base_shot=base_shot, seed=seed)
    training, labels = training.to(features.device), dataset.labels.to(features.device)
    sums = features.new_zeros(classes, features.shape[1])
    sums.index_add_(0, labels[training], features[training])
    means = sums / torch.bincount(labels[training], minlength=classes)[:, None]
    seen = torch.tensor([*range(base, classes, session), classes])
    right = _right(features[~training], labels[~training], means, seen)
    return _sessions(right, labels[~training].cpu(), base, seen)


@checked
def training_images(
    dataset: ClassDataset, *, base: Counting, shot: Counting, base_shot: Natural = 0, seed: Natural
) -> Tensor:
    """Which images are training images, ``[M]``, bool, on the CPU; arguments as above.

    Raises:
        DataError: if a class has no test image left.
    """
    counts = dataset.counts.cpu().numpy()
    found = np.zeros(len(dataset), dtype=bool)
    for number, (start, count) in enumerate(zip(counts.cumsum() - counts, counts, strict=True)):
        shots = (base_shot or shot) if number < base else shot
        if shots >= count:
            name = dataset.class_names[number]
            raise DataError(
                f"class '{name}' has {count} images, and {shots} are for training, which leaves "
                "none to test: lower shot or base_shot"
            )
        rng = np.random.default_rng((seed, number))
        found[start + rng.permutation(count)[:shots]] = True
    return torch.from_numpy(found)


def _right(queries: Tensor, labels: Tensor, means: Tensor, seen: Tensor) -> Tensor:
    """Whether each query is classified correctly in each session, ``[S, queries]``, on the CPU."""
    found = []
    for x, y in zip(queries.split(_QUERIES), labels.split(_QUERIES), strict=True):
        # Squared distances without that of the query to zero, which is equal for all classes.
        scores = 2 * x @ means.T - means.square().sum(1)
        found.append(torch.stack([scores[:, :n].argmax(1) == y for n in seen.tolist()]).cpu())
    return torch.cat(found, 1)


def _sessions(right: Tensor, labels: Tensor, base: int, seen: Tensor) -> Sessions:
    def mean(low: int, high: int, session: int) -> Tensor:
        """Over the queries of the classes ``low`` to ``high - 1``; NaN if there are none."""
        return right[session, (labels >= low) & (labels < high)].double().mean()

    numbers = list(enumerate(seen.tolist()))
    return Sessions(
        seen,
        torch.stack([mean(0, n, s) for s, n in numbers]),
        torch.stack([mean(0, base, s) for s, _ in numbers]),
        torch.stack([mean(base, n, s) for s, n in numbers]),
    )
