"""The self-test of a device, in small."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewshot_blo.checks import device as device_check
from fewshot_blo.checks.device import check_device
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.problems import Initialization


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return classifier(Conv4(hidden=8), 8, 5)

    monkeypatch.setattr(device_check, "_network", network)
    monkeypatch.setattr(device_check, "_TASKS", {"cpu": 2})
    monkeypatch.setattr(device_check, "_LOOPED", 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_measures_ours_a_plain_loop_and_peers() -> None:
    found = check_device(torch.device("cpu"))
    assert found.replayed is None  # Nothing is recorded on the host.
    names = [speed.name for speed in found.speeds]
    assert names == ["fewshot_blo", "your module, task by task", "higher", "learn2learn"]
    assert all(speed.tasks_per_second > 0 for speed in found.speeds[:2])


@pytest.mark.slow
def test_peers_that_are_missing_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "_PEERS", {"no_such_peer": device_check._higher})
    *_, peer = check_device(torch.device("cpu")).speeds
    assert math.isnan(peer.tasks_per_second)
    assert "no_such_peer" in peer.remark


def test_a_loop_of_peers_takes_the_same_gradient() -> None:
    """So that what is compared is the same work."""
    higher = pytest.importorskip("higher", reason="higher is not installed: make peers")
    network, batch = (
        classifier(Conv4(hidden=8), 8, 5).double(),
        device_check._batch(2, torch.device("cpu"), torch.float64),
    )
    device_check._higher(higher, network, batch)
    problem = Initialization(network, backend="loop")
    gradient = device_check._step(problem, batch)()
    for name, p in network.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad / 2, gradient[name], rtol=1e-8, atol=1e-10)
