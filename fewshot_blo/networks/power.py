"""Features whose few large entries count less."""

from __future__ import annotations

from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError

_EPSILON = 1e-6


class PowerTransform(nn.Module):
    """``sign(x) (|x| + 1e-6)^power``: features that are less skewed.

    Source: Hu, Gripon & Pateux, "Leveraging the Feature Distribution in Transfer-based Few-Shot
    Learning" (arXiv 2006.03806), its power transform, after which features get unit length. The
    sign, for networks that do not end in ReLU, is an addition.

    Args:
        power: one half for square roots; 1 changes nothing.

    Raises:
        ConfigurationError: if it is not positive.
    """

    def __init__(self, power: float) -> None:
        super().__init__()
        if power <= 0:
            raise ConfigurationError(f"power is {power}: it must be positive, and 1 for none")
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, D]``, transformed."""
        if self.power == 1:
            return x
        return x.sign() * (x.abs() + _EPSILON) ** self.power
