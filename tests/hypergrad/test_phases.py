"""Strategies one after another."""

from __future__ import annotations

import pytest

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Phases, Strategy, Unroll

FIRST, SECOND = Unroll(first_order=True), Unroll()


def test_each_has_its_turn() -> None:
    phases = Phases(((0, FIRST), (3, SECOND)))
    assert [phases.at(step) is SECOND for step in range(5)] == [False, False, False, True, True]


@pytest.mark.parametrize(
    "phases", [(), ((1, FIRST),), ((0, FIRST), (0, SECOND)), ((0, FIRST), (4, SECOND), (2, FIRST))]
)
def test_out_of_order(phases: tuple[tuple[int, Strategy], ...]) -> None:
    with pytest.raises(ConfigurationError, match="the first must begin at 0"):
        Phases(phases)
