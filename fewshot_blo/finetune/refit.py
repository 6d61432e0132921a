"""Solves for the head of a classifier: of all classes, or of new ones beside the others."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, TaskParams
from fewshot_blo.finetune.calibration import Scale
from fewshot_blo.heads.head import SupportSet, has_class_axis, normalize
from fewshot_blo.kernel import InnerSteps, adapt
from fewshot_blo.objectives.cross_entropy import task_cross_entropy
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.tasks import TaskBatch


def whole_task(problem: SharedEncoder, features: Tensor, labels: Tensor, ways: int) -> Bilevel:
    """The inner problem of one task whose support set is all images, given by their features.

    Args:
        problem: the problem of a candidate.
        features: features of the images, ``[M, D]``.
        labels: labels of the images, ``[M]``.
        ways: N, the number of classes.
    """
    x, y = features[None], labels[None]
    batch = TaskBatch(x, y, x[:, :1], y[:, :1], torch.arange(ways)[None])
    return problem.on_features().bind(batch, "support").bilevel


@torch.no_grad()
def with_classes(
    problem: SharedEncoder,
    params: TaskParams,
    features: Tensor,
    labels: Tensor,
    steps: InnerSteps,
    scale: Scale,
    first: int = 0,
) -> dict[str, Tensor]:
    """Parameters whose classes from the first one on are solved for; others stay as they are.

    The weights of these classes start from the support set (class means, or the closed form of the
    head) and take the inner steps, while the classes before them and the layers are fixed. In ridge
    regression the classes are independent, so that these columns are the solution.

    Args:
        problem: the problem of a candidate.
        params: parameters of one task, ``[1, ...]`` each, of at least ``first`` classes.
        features: features of the images, ``[M, D]``.
        labels: labels of the images in ``0..N-1``, ``[M]``; N becomes the number of classes.
        steps: inner steps of the head.
        scale: the correction for the sizes of classes, which the biases get.
        first: the first class to solve for.
    """
    head, learned = problem.head, problem.outer.head
    counts = torch.bincount(labels)
    support = SupportSet(features[None], labels[None], torch.arange(len(counts))[None])
    given = replace(support, features=inputs(problem, support.features))
    solved = head.class_weights(params, given, learned)
    own = {name: p[:, first:] for name, p in solved.items()}
    fixed = {name: p for name, p in params.items() if not has_class_axis(name)}
    old = {name: p[:, :first] for name, p in params.items() if has_class_axis(name)}

    def joined(v: TaskParams) -> dict[str, Tensor]:
        return {**fixed, **{name: torch.cat([old[name], v[name]], 1) for name in old}}

    def loss(v: TaskParams) -> Tensor:
        logits = head.logits(joined(v), given.features, learned)
        return task_cross_entropy(logits, support.labels, support.classes)

    own = adapt(loss, own, steps)
    return corrected(joined(own), scale.biases(counts)[first:], first)


def corrected(params: TaskParams, biases: Tensor, first: int = 0) -> dict[str, Tensor]:
    """Parameters with corrections added to the biases from the first class on.

    Heads without biases, which older files have, are not corrected.
    """
    if "head.bias" not in params:
        return dict(params)
    bias = params["head.bias"].clone()
    bias[:, first:] += biases.to(bias)
    return {**params, "head.bias": bias}


def inputs(problem: SharedEncoder, features: Tensor) -> Tensor:
    """Features, normalised if the head expects it."""
    return normalize(features) if problem.head.scaled else features
