from __future__ import annotations

from functools import partial

import torch
from oracles import normal
from torch import nn

from fewshot_blo.networks.centre import Centre, estimate_centres, has_centres


def test_the_mean_feature_is_subtracted_outside_of_training() -> None:
    linear = nn.Linear(3, 4).double()
    network = nn.Sequential(linear, Centre(4).double())
    images = normal(10, 3)
    network.eval()
    assert torch.equal(network(images), linear(images))
    estimate_centres(network, (partial(network, part) for part in images.split(4)))
    torch.testing.assert_close(network(images), linear(images) - linear(images).mean(0))
    assert torch.equal(network.train()(images), linear(images))


def test_whether_there_is_a_centre() -> None:
    assert has_centres(nn.Sequential(nn.Linear(3, 4), Centre(4)))
    assert not has_centres(nn.Linear(3, 4))


def test_without_a_centre_nothing_changes() -> None:
    estimate_centres(nn.Linear(3, 4), iter(()))
