"""Reparametrisation of boxes and simplices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.solving.constraints import Box, Simplex

shares = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6)


@given(shares, st.floats(-3, 3), st.floats(0.1, 5))
def test_free_numbers_and_points_of_a_box(values: list[float], low: float, width: float) -> None:
    box = Box(low, low + width)
    x = low + width * torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(box.from_free(box.to_free(x)), x)
    anywhere = box.from_free(torch.tensor([-800.0, 0.0, 800.0], dtype=torch.float64))
    torch.testing.assert_close(box.project(anywhere), anywhere)


@given(shares, st.floats(0.1, 5))
def test_free_numbers_and_points_of_a_simplex(values: list[float], total: float) -> None:
    x = torch.tensor([values, values[::-1]], dtype=torch.float64)
    x = total * x / x.sum(1, keepdim=True)
    simplex = Simplex(total)
    torch.testing.assert_close(simplex.from_free(simplex.to_free(x)), x)
    columns = Simplex(total, dim=0)
    torch.testing.assert_close(columns.from_free(columns.to_free(x.T)), x.T)


def test_points_and_boxes_that_have_no_free_numbers() -> None:
    with pytest.raises(ConfigurationError, match="not on its border"):
        Box(0, 1).to_free(torch.tensor([0.5, 1.0]))
    with pytest.raises(ConfigurationError, match=r"smallest entry is 0\.0"):
        Simplex().to_free(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    "box",
    [
        Box(0.0),
        Box(high=1.5),
        Box(),
        Box(torch.tensor([-1.0, -torch.inf, 0.0]), torch.tensor([torch.inf, 2.0, 1.5])),
    ],
)
def test_free_numbers_of_boxes_with_any_bounds(box: Box) -> None:
    x = torch.tensor([0.3, 1.2, 0.9], dtype=torch.float64)
    torch.testing.assert_close(box.from_free(box.to_free(x)), x)
    inside = box.from_free(torch.tensor([-30.0, 3.0, 8.0], dtype=torch.float64))
    torch.testing.assert_close(box.project(inside), inside)
    assert (box.inequalities(x) <= 0).all()


def test_boxes_with_a_bound_for_each_entry() -> None:
    box = Box(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.5]))
    assert box.project(torch.tensor([-1.0, 3.0])).tolist() == [0.0, 1.5]
    assert len(box.inequalities(torch.zeros(2))) == 4
    with pytest.raises(ConfigurationError, match="is empty"):
        Box(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5]))
    moving = Box(low=lambda u: u["u"])
    assert not moving.fixed
    assert moving.at({"u": torch.ones(1)}).project(torch.zeros(1)).tolist() == [1.0]
