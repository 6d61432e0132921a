"""Labels that may be wrong: held-out answers and nearest images agree on another class."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.finetune.report.answers import Answers

SURE, OWN, NEAREST, AGREEING = 0.7, 0.1, 5, 2


@dataclass(frozen=True)
class Suspect:
    """An image whose label may be wrong.

    Attributes:
        row: row of the image.
        nearest: rows of the training images most similar to it, the most similar first.
        agreeing: how many of them have the class that was predicted.
    """

    row: int
    nearest: tuple[int, ...]
    agreeing: int


def suspects(answers: Answers, features: Tensor, groups: Tensor) -> list[Suspect]:
    """Images whose label may be wrong, the lowest probability of the label first.

    Without the image in training another class must have a probability of at least 0.7 and its own
    at most 0.1; and of its 5 nearest images more must have the predicted class than any other, at
    least two, and at most one its own.

    Args:
        answers: held-out answers.
        features: features of the pretrained network, ``[M, D]``.
        groups: group of each image, ``[M]``; images of the same group are not compared.
    """
    units = F.normalize(features.float())
    found = []
    for row in answers.wrong_rows():
        if answers.sure[row] < SURE or answers.own[row] > OWN:
            continue
        similar = (units @ units[row]).masked_fill(groups == groups[row], -2.0)
        nearest = similar.topk(min(NEAREST, int((groups != groups[row]).sum()))).indices
        votes = answers.labels[nearest].bincount(minlength=answers.probabilities.shape[1])
        agreeing = int(votes[answers.predicted[row]])
        most = max(int(votes.max()), AGREEING)
        if agreeing == most and int(votes[answers.labels[row]]) <= 1:
            found.append(Suspect(row, tuple(nearest.tolist()), agreeing))
    return found
