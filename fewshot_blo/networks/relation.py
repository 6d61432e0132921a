"""Classification by a learned comparison with the class means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks.heads import CrossEntropyHead, Start


@dataclass(frozen=True)
class RelationHead(CrossEntropyHead):
    """``v relu(A c_n + B x + b)``: a network of one hidden layer on a class mean and a feature.

    A, B, b and v are outer variables.

    Source: Sung et al., "Relation Network" (arXiv 1711.06025). There the network is convolutional
    on feature maps, and trained by squared errors; here it is on feature vectors, by cross-entropy.

    Attributes:
        hidden: units of the hidden layer.
    """

    hidden: int = 64

    starts: ClassVar[tuple[Start, ...]] = ("closed_form",)
    prox: ClassVar[float] = 0.0

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """A, B, b and v, drawn so that scores are of the size of the features.

        Raises:
            ConfigurationError: if the number of features is not given.
        """
        if features is None:
            raise ConfigurationError("a relation head needs features, the number D of them")
        return {
            "of_class": torch.randn(self.hidden, features),
            "of_query": torch.randn(self.hidden, features),
            "bias": torch.zeros(self.hidden),
            "score": torch.randn(self.hidden) / self.hidden**0.5,
        }

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """The scores."""
        del real
        of_class = params["head.weight"] @ learned["of_class"].T
        of_query = features @ learned["of_query"].T + learned["bias"]
        return (of_class.unsqueeze(1) + of_query.unsqueeze(2)).relu() @ learned["score"]
