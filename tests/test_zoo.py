"""The zoo's own judgement, and a fast sample of its networks."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = {
    "torch.nn": (
        "Hardsigmoid",
        "PReLU",
        "RReLU",
        "BatchNorm1d",
        "BatchNorm2d(affine=False)",
        "BatchNorm2d(track_running_stats=False)",
        "BatchNorm2d(momentum=None)",
        "BatchNorm3d",
        "SyncBatchNorm",
        "InstanceNorm2d",
        "InstanceNorm2d(affine, track_running_stats)",
        "GroupNorm",
        "LayerNorm",
        "RMSNorm",
        "CrossMapLRN2d",
        "Conv2d(padding=same)",
        "Conv2d(groups)",
        "Conv2d(circular)",
        "ConvTranspose2d",
        "LazyConv2d",
        "MaxPool2d(padded)",
        "LPPool2d",
        "FractionalMaxPool2d",
        "MaxUnpool2d",
        "Upsample(bicubic)",
        "Dropout(1.0)",
        "Dropout2d(1.0)",
        "AlphaDropout(1.0)",
        "Embedding",
        "Embedding(padding_idx)",
        "Embedding(max_norm)",
        "Embedding(sparse)",
        "EmbeddingBag(mean)",
        "LSTM",
        "GRUCell",
        "MultiheadAttention(need_weights=False)",
        "TransformerEncoderLayer",
        "weight_norm",
        "weight_norm(old)",
        "spectral_norm",
        "spectral_norm(old)",
        "orthogonal(matrix_exp)",
        "Bilinear",
        "DataParallel",
    ),
    "own": (
        "batch norm subclass with an activation",
        "batch norm subclass with a parameter",
        "dropout subclass that scales",
        "checkpoint with batch norm",
        "buffer changed in place and used",
        "buffer assigned and used",
        "Python counter",
        "F.dropout",
        "forward hook on a batch norm",
        "backward hook on a batch norm",
        "backward pre-hook on a convolution",
        "weight norm (old) after a forward pass",
        "tied layers and weights",
        "dictionary output",
        "masked assignment",
    ),
    "torchvision": ("densenet", "vit"),
    "timm": ("convmixer: ConvMixer", "mlp_mixer: MlpMixer"),
    "transformers": ("ViT",),
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the folder importable, as running ``python -m zoo`` from the repository does."""
    monkeypatch.syspath_prepend(str(ROOT))


def zoo(module: str) -> Any:
    return importlib.import_module(f"zoo.{module}")


def small(build: Callable[[], nn.Module], name: str = "small") -> Any:
    return zoo("network").Network("own", name, build, (4,))


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in SAMPLE.items() for name in names]
)
def test_sample_has_no_silent_disagreement(family: str, name: str) -> None:
    if not zoo("families").installed(family):
        pytest.skip(f"needs {family}")
    (network,) = (n for n in zoo("families").networks(family) if n.name == name)
    row = zoo("compare").compare(network)
    assert row.verdict not in zoo("compare").FAILURES, zoo("table").line(row)


def test_every_family_is_there_without_its_library() -> None:
    for family in zoo("families").FAMILIES:
        names = [network.name for network in zoo("families").networks(family)]
        assert len(names) == len(set(names))
        assert len(names) >= {"timm": 60, "torch.nn": 200}.get(family, 20)


def test_a_right_kernel_agrees() -> None:
    row = zoo("compare").compare(small(linear))
    assert row.verdict == "agrees"
    assert set(row.differences) == {"first", "second", "encoder"}
    assert max(row.differences.values()) < 1e-13


@pytest.fixture(params=["wrong", "names", "crash", "refused"])
def other_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel with one kind of fault; returns the verdict that it deserves."""
    compare = zoo("compare")
    right = compare.QUANTITIES["second"]

    def ours(module: nn.Module, batch: Any) -> tuple[tuple[Tensor, dict[str, Tensor]], str]:
        (loss, gradient), backend = right.ours(module, batch)
        if request.param == "crash":
            raise RuntimeError("something of PyTorch's")
        if request.param == "refused":
            raise ConfigurationError("use another layer")
        if request.param == "names":
            gradient.popitem()
        else:
            gradient = {name: g * (1 + 1e-8) for name, g in gradient.items()}
        return (loss, gradient), backend

    monkeypatch.setitem(compare.QUANTITIES, "second", replace(right, ours=ours))
    return {"crash": "CRASH", "refused": "refused"}.get(request.param, "DISAGREES")


def test_faults_are_told_apart(other_kernel: str) -> None:
    row = zoo("compare").compare(small(linear))
    assert row.verdict == other_kernel
    assert row.differences["first"] < 1e-13


class Noise(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * torch.randn(3, dtype=x.dtype)


def test_a_module_that_is_no_function_needs_a_word() -> None:
    row = zoo("compare").compare(small(lambda: Noise(4, 3)))
    assert row.verdict != "agrees"


def test_oracle_is_the_gradient_of_its_loss() -> None:
    """By differences along a direction, through two steps of a network with a batch norm."""
    oracle, network = zoo("oracle"), zoo("network")
    member = small(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))
    batch = network.tasks(member, torch.float64)
    for method in (oracle.second_order, oracle.shared_encoder):
        gradient = method(network.make(member, torch.float64).module, batch)[1]
        direction = {name: torch.randn_like(g) for name, g in gradient.items()}
        losses = []
        for sign in (1, -1):
            module = network.make(member, torch.float64).module
            with torch.no_grad():
                for name, p in module.named_parameters():
                    p.add_(direction[name], alpha=sign * 1e-5)
            losses.append(float(method(module, batch)[0].mean()))
        slope = sum(float((g * direction[name]).sum()) for name, g in gradient.items())
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_oracle_leaves_buffers_as_they_are() -> None:
    oracle = zoo("oracle")
    norm = nn.BatchNorm1d(4).double()
    forward, params = oracle.pure_forward(norm)
    forward(params, torch.rand(6, 4, dtype=torch.float64))
    assert norm.num_batches_tracked == 0
    assert norm.running_mean is not None
    assert bool((norm.running_mean == 0).all())


class Hang(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(60)
        return super().forward(x)


class Exit(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        os._exit(1)


@pytest.fixture
def bad_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Networks that hang and die between two good ones, in a module that workers can import."""
    listing = tmp_path / "bad_members.py"
    listing.write_text(
        "import test_zoo as t\n"
        "from dataclasses import replace\n"
        "def networks():\n"
        "    hangs = replace(t.small(lambda: t.Hang(4, 3), 'hangs'), seconds=0.5)\n"
        "    dies = t.small(lambda: t.Exit(4, 3), 'dies')\n"
        "    return [t.small(t.linear, 'first'), hangs, dies, t.small(t.linear, 'last')]\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("bad_members").networks()
    sys.modules.pop("bad_members")


@pytest.mark.slow
def test_a_hang_and_a_death_cost_one_row_each(bad_members: list[Any]) -> None:
    reported: list[str] = []
    rows = zoo("pool").run(
        bad_members, 1, lambda row: reported.append(row.name), lambda family: "bad_members"
    )
    assert [row.verdict for row in rows] == ["agrees", "CRASH", "CRASH", "agrees"]
    assert reported == [network.name for network in bad_members]
    assert "no result after 0.5 s" in rows[1].remarks[0]
    assert "died" in rows[2].remarks[0]


def test_table_has_every_row() -> None:
    compare, table = zoo("compare"), zoo("table")
    rows = [
        compare.Row("own", "a|b", "agrees", "loop/loop/loop", {"first": 1e-15, "second": "none"}),
        compare.Row("timm", "c", "CRASH", remarks=("one | two",)),
    ]
    text = table.table(rows, "torch 0")
    assert "| c |  | CRASH |  |  |  | 0.0 | one \\| two |" in text
    assert "| timm | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 1 |" in text
    assert "| loop | agrees | 1e-15 | none |" in text
