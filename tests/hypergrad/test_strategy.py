"""What all strategies have in common."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fewshot_blo.hypergrad import STRATEGIES


@pytest.mark.parametrize("strategy", [kind() for kind in STRATEGIES], ids=repr)
def test_strategies_are_values(strategy: Any) -> None:
    """They are equal where their settings are, and do not change: steps are recorded for them."""
    assert strategy == dataclasses.replace(strategy)
    assert hash(strategy) == hash(dataclasses.replace(strategy))
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.rule = None
