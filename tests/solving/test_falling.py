"""Learning rates that fall."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fewshot_blo.solving.falling import falling


def test_the_rate_of_every_step() -> None:
    """Steps of a constant gradient of 1 are the rates themselves."""
    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    make = falling(partial(torch.optim.SGD, lr=0.8), 0.5)
    optimizer = make([u])
    for taken in range(6):
        before = float(u.detach())
        if taken == 3:  # As a resumed run does.
            saved = optimizer.state_dict()
            optimizer = make([u])
            optimizer.load_state_dict(saved)
        u.grad = torch.ones_like(u)
        optimizer.step()
        assert before - float(u.detach()) == pytest.approx(0.8 / (taken + 1) ** 0.5)


def test_without_decay_it_is_the_optimizer_itself() -> None:
    make = partial(torch.optim.SGD, lr=0.8)
    assert falling(make, 0.0) is make
