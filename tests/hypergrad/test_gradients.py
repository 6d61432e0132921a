from __future__ import annotations

import pytest
import torch

from fewshot_blo.bilevel import Bilevel
from fewshot_blo.hypergrad.constrained import scales_of
from fewshot_blo.hypergrad.gradients import inner_gradients


@pytest.mark.parametrize("create_graph", [False, True])
def test_an_inner_parameter_in_no_loss_has_a_zero_gradient(create_graph: bool) -> None:
    used, unused = (torch.ones(1, 2, requires_grad=True) for _ in range(2))
    found = inner_gradients(
        (used**3).sum(), {"used": used, "unused": unused}, create_graph=create_graph
    )
    torch.testing.assert_close(found["used"].detach(), torch.full((1, 2), 3.0))
    assert not found["unused"].any()
    assert found["used"].requires_grad == create_graph
    if not create_graph:  # In older versions of PyTorch such zeros require grad.
        assert not found["unused"].requires_grad


def test_scales_of_losses_that_are_linear_in_v() -> None:
    """Second derivatives over v are absent, though the first ones depend on u."""
    u, v = torch.full((1,), 2.0, requires_grad=True), torch.ones(1, 1)
    problem = Bilevel({"u": u}, {"v": v}, lambda v: (u * v["v"]).sum(1), lambda v: v["v"].sum(1))
    scales = scales_of(problem, {"v": v})
    assert (scales.inner, scales.outer) == (2.0, 1.0)
