"""The power transform of features, which makes them less skewed."""

from __future__ import annotations

from torch import Tensor, nn

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive

_EPSILON = 1e-6


@checked
class PowerTransform(nn.Module):
    """Power transform ``sign(x) (|x| + 1e-6)^power``, which makes features less skewed.

    Source: Hu, Gripon & Pateux, "Leveraging the Feature Distribution in Transfer-based Few-Shot
    Learning" (arXiv 2006.03806), where features then get unit length. The sign is added here, for
    networks that do not end in a ReLU.

    Args:
        power: exponent; 0.5 for square roots, 1 leaves features unchanged.

    Raises:
        ConfigurationError: if it is not positive.
    """

    def __init__(self, power: Positive) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, D]``, transformed."""
        if self.power == 1:
            return x
        return x.sign() * (x.abs() + _EPSILON) ** self.power
