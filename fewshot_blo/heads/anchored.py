"""Linear heads that are pulled towards given weights of each class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.head import Start, SupportSet, logarithms
from fewshot_blo.heads.linear import ScaledLinearHead
from fewshot_blo.objectives.cross_entropy import mask_classes
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive


@dataclass(frozen=True, eq=False)
class AnchoredHead(ScaledLinearHead):
    """A head ``s W x`` near prior weights W_0, such as embedded class names or class prototypes.

    A class without a support row keeps its prior exactly, so that without any shot the head
    classifies by the priors alone: zero-shot. s is an outer variable, learned as a logarithm.

    Attributes:
        priors: ``[C, D]``; row c is for class c of the data set whose tasks are classified, in the
            order of its ``class_names``. The priors are constants, and they are compared with
            features as the head gets them: of unit length with the problem's setting ``unit``.
        scale: initial s, factor of the scores, positive.

    Raises:
        ConfigurationError: if the priors are not a floating-point matrix. When tasks are
            classified, if there is no prior for a class (checked on a CPU), or the priors and the
            features differ in their number D.
    """

    priors: Tensor = field(repr=False)
    scale: Positive = 10.0

    # By device and dtype: a recorded step must not copy from the host.
    _moved: dict[tuple[torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.priors.ndim != 2 or not self.priors.is_floating_point():
            raise ConfigurationError(
                f"priors has shape {list(self.priors.shape)} and dtype {self.priors.dtype}: it "
                "must be a floating-point matrix [classes, features]"
            )

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """Logarithm of s.

        Raises:
            ConfigurationError: if the priors have another number of features.
        """
        if features is not None and features != self.priors.shape[1]:
            raise ConfigurationError(
                f"priors has {self.priors.shape[1]} features a class and the encoder has "
                f"{features}: both must be equal"
            )
        return logarithms(scale=self.scale)

    def anchors(self, support: SupportSet) -> Tensor:
        """W_0 of the tasks' classes, ``[T, N, D]``; zero for a padded class."""
        classes, place = support.classes, (support.features.device, support.features.dtype)
        if place not in self._moved:
            self._moved[place] = self.priors.detach().to(support.features)
        priors = self._moved[place]
        if classes.device.type == "cpu" and classes.numel() and int(classes.max()) >= len(priors):
            raise ConfigurationError(
                f"priors has rows for {len(priors)} classes and a task has class "
                f"{int(classes.max())}: give a row for each of the data set's class_names"
            )
        return priors[classes.clamp(min=0)] * (classes >= 0).unsqueeze(2)


def with_support(support: SupportSet) -> Tensor:
    """Which classes have a support row, ``[T, N, 1]``."""
    return support.one_hot.sum(1).unsqueeze(2) > 0


@checked
@dataclass(frozen=True, eq=False)
class AnchoredLinearHead(AnchoredHead):
    """Cross-entropy of ``s W x``, pulled towards prior weights W_0 from which W starts.

    The pull is the problem's proximal term, ``prox/2 |W - W_0|²``, whose weight can be learned
    (``learn_prox``). A class without a support row keeps its prior and takes part with it.

    Attributes:
        priors: ``[C, D]``, W_0 of each class of the data set, as in ``AnchoredHead``.
        scale: initial s, factor of the scores, positive.
    """

    prox: ClassVar[float] = 0.5
    starts: ClassVar[tuple[Start, ...]] = ("prototypes",)

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """W_0."""
        del learned
        return {"head.weight": self.anchors(support)}

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """Mean cross-entropy, ``[T]``; 0 for a task without a support row."""
        weight = params["head.weight"]
        weight = torch.where(with_support(support), weight, self.anchors(support))
        logits = self.logits({"head.weight": weight}, support.features, learned)
        padded = (support.classes < 0).unsqueeze(1)
        log_p = mask_classes(logits, support.classes).log_softmax(2).masked_fill(padded, 0)
        known = support.one_hot
        return -(log_p * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
