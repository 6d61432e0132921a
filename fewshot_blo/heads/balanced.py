"""A linear head in closed form in which all classes count alike, whatever their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import Start, SupportSet, normalize
from fewshot_blo.heads.linear import LinearHead
from fewshot_blo.heads.linear_systems import solve
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import NotEmpty, Positive


@checked
@dataclass(frozen=True)
class BalancedHead(LinearHead):
    """Average of cosine prototypes and of class-balanced ridge regressions, as one linear map.

    Ridge regression minimises ``Σ_i s_i |W x_i + b - y_i|² / 2 + λ |W|²/2`` for one-hot labels y,
    where s_i is inversely proportional to the number of images of the class of i, with mean 1.
    Each member is divided by the class-balanced root mean square of its centred logits on the
    support set, so that all members weigh alike and logits of the support set have this size 1.
    Biases make the class-balanced mean of the logits of the support set zero. Probabilities do not
    depend on it, but ``log Σ_n exp(logit_n)``, by which images of none of the classes are told,
    does: without it, prototypes that are much alike give logits a large level, which is another
    for each support set.

    Which member is the best depends on the network and on the number of images, and a few images
    cannot tell; their average is close to the best of them.

    Attributes:
        lams: λ of each ridge regression, positive.
    """

    lams: Annotated[tuple[Positive, ...], NotEmpty()] = (0.3, 1.0)

    starts: ClassVar[tuple[Start, ...]] = ("closed_form",)

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """Weights ``[T, N, D]`` and biases ``[T, N]``; those of absent classes are zero."""
        del learned
        x, y = support.features, support.one_hot
        counts = y.sum(1)
        share = torch.einsum("tbn,tn->tb", y, 1 / counts.clamp(min=1))
        share = share / share.sum(1, keepdim=True)
        prototypes = normalize(support.class_means)
        members = [(prototypes, torch.zeros_like(counts))]
        members += [_ridge(x, y, share * counts.sum(1, keepdim=True), lam) for lam in self.lams]
        present = counts > 0
        scaled = [_scaled(*member, x, share, present) for member in members]
        weights, biases = zip(*scaled, strict=True)
        return {
            "head.weight": torch.stack(weights).mean(0),
            "head.bias": torch.stack(biases).mean(0),
        }


def _ridge(x: Tensor, y: Tensor, weight: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Weights ``[T, N, D]`` and intercepts ``[T, N]`` of weighted ridge regression."""
    mean = weight / weight.sum(1, keepdim=True)
    x_mean, y_mean = (torch.einsum("tb,tbd->td", mean, z).unsqueeze(1) for z in (x, y))
    root = weight.sqrt().unsqueeze(-1)
    inputs, targets = root * (x - x_mean), root * (y - y_mean)
    few = x.shape[1] <= x.shape[2]  # Otherwise a system of the size of the features is smaller.
    product = inputs @ inputs.transpose(1, 2) if few else inputs.transpose(1, 2) @ inputs
    system = product + lam * torch.eye(product.shape[1], dtype=x.dtype, device=x.device)
    if few:
        w = solve(system, targets).transpose(1, 2) @ inputs
    else:
        w = solve(system, inputs.transpose(1, 2) @ targets).transpose(1, 2)
    return w, (y_mean - x_mean @ w.transpose(1, 2)).squeeze(1)


def _scaled(
    weight: Tensor, bias: Tensor, x: Tensor, share: Tensor, present: Tensor
) -> tuple[Tensor, Tensor]:
    """The linear map with mean logit 0, divided by the root mean square of its centred logits.

    Both are of the present classes and of the support set, whose images weigh by ``share``.
    """
    logits = x @ weight.transpose(1, 2) + bias.unsqueeze(1)
    mask = present.unsqueeze(1).to(x.dtype)
    number = mask.sum(2, keepdim=True)
    means = (logits * mask).sum(2, keepdim=True) / number
    centred = (logits - means) * mask
    square = (share * centred.square().sum(2) / number.squeeze(2)).sum(1)
    factor = torch.rsqrt(square + 1e-12).unsqueeze(1)
    bias = bias - (share.unsqueeze(2) * means).sum(1)
    return weight * factor.unsqueeze(2) * present.unsqueeze(2), bias * factor * present
