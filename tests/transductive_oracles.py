"""Transductive heads for one task without padding, as loops in NumPy and plain PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def unit(x: Array) -> Array:
    lengths: Array = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / lengths)


def softmax(scores: Array) -> Array:
    e: Array = np.exp(scores - scores.max(1, keepdims=True))
    total: Array = e.sum(1, keepdims=True)
    return np.asarray(e / total)


def log_softmax(scores: Array) -> Array:
    return np.log(softmax(scores))


def distances(x: Array, centres: Array) -> Array:
    return np.array([[((a - c) ** 2).sum() for c in centres] for a in x])


def class_means(x: Array, labels: Array) -> Array:
    return np.array([x[labels == n].mean(0) for n in range(int(labels.max()) + 1)])


def soft_k_means(support: Array, labels: Array, queries: Array, *, scale: float, steps: int) -> Any:
    centres = class_means(support, labels)
    for _ in range(steps):
        z = softmax(-scale * distances(queries, centres))
        for n in range(len(centres)):
            members = support[labels == n]
            total = members.sum(0) + sum(z[j, n] * queries[j] for j in range(len(queries)))
            centres[n] = total / (len(members) + z[:, n].sum())
    return log_softmax(-scale * distances(queries, centres))


def sinkhorn(cost: Array, lam: float) -> Array:
    """Rows of 1 and equal columns, by 5000 alternating normalisations."""
    plan: Array = np.exp(-lam * cost)
    for _ in range(5000):
        plan /= plan.sum(1, keepdims=True)
        plan *= len(cost) / cost.shape[1] / plan.sum(0, keepdims=True)
    return np.asarray(plan / plan.sum(1, keepdims=True))


def pt_map(
    support: Array, labels: Array, queries: Array, *, lam: float, steps: int, rate: float = 0.2
) -> Array:
    x, q = (np.sqrt(np.maximum(z, 0) + 1e-6) for z in (support, queries))
    x, q = (unit(unit(z) - unit(z).mean(0)) for z in (x, q))
    centres = class_means(x, labels)
    for _ in range(steps):
        plan = sinkhorn(distances(q, centres), lam)
        for n in range(len(centres)):
            total = x[labels == n].sum(0) + plan[:, n] @ q
            mean = total / ((labels == n).sum() + plan[:, n].sum())
            centres[n] += rate * (mean - centres[n])
    return np.log(sinkhorn(distances(q, centres), lam))


def rectified(support: Array, labels: Array, queries: Array, scale: float) -> Array:
    shifted = queries + support.mean(0) - queries.mean(0)
    means = unit(class_means(support, labels))
    nearest = (unit(shifted) @ means.T).argmax(1)
    found = []
    for n, mean in enumerate(means):
        members = np.concatenate([support[labels == n], shifted[nearest == n]])
        weights = np.exp(scale * unit(members) @ mean)
        found.append(weights @ members / weights.sum())
    return np.array(found)


def bd_cspn(support: Array, labels: Array, queries: Array, *, scale: float) -> Array:
    means = rectified(support, labels, queries, scale)
    return log_softmax(scale * unit(queries) @ unit(means).T)


def laplacian_shot(
    support: Array,
    labels: Array,
    queries: Array,
    *,
    lam: float,
    neighbours: int,
    steps: int,
    scale: float | None,
) -> Array:
    means = class_means(support, labels)
    if scale is not None:
        means = rectified(support, labels, queries, scale)
    own = -distances(queries, means)
    between = distances(queries, queries)
    y = softmax(own)
    for _ in range(steps):
        scores = own.copy()
        for i in range(len(queries)):
            others = [j for j in np.argsort(between[i]) if j != i][:neighbours]
            scores[i] += lam * sum(y[j] for j in others)
        y = softmax(scores)
    return np.log(y)


def tim(
    support: Array,
    labels: Array,
    queries: Array,
    *,
    steps: int,
    step_size: float,
    weights: tuple[float, float, float],
    temperature: float = 15.0,
    alpha: float | None = None,
    cosine: bool = False,
) -> Array:
    """By autograd and PyTorch's Adam; α-TIM where alpha is given."""
    x, q, y = torch.tensor(support), torch.tensor(queries), torch.tensor(labels)
    w = torch.tensor(class_means(support, labels), requires_grad=True)
    adam = torch.optim.Adam([w], lr=step_size)

    def entropy(p: Tensor) -> Tensor:
        if alpha is None:
            return -(p * p.log()).sum(-1)
        return (1 - (p**alpha).sum(-1)) / (alpha - 1)

    def logits(z: Tensor) -> Tensor:
        if cosine:
            return temperature * torch.cosine_similarity(z[:, None], w[None], dim=2)
        return -temperature / 2 * (z[:, None] - w[None]).square().sum(2)

    for _ in range(steps):
        p = logits(q).softmax(1)
        terms = (
            torch.nn.functional.cross_entropy(logits(x), y),
            -entropy(p.mean(0)),
            entropy(p).mean(),
        )
        loss = sum(a * term for a, term in zip(weights, terms, strict=True))
        adam.zero_grad()
        assert isinstance(loss, Tensor)
        loss.backward()
        adam.step()
    return logits(q).detach().log_softmax(1).numpy()
