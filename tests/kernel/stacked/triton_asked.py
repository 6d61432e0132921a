"""Which kernels the tests of the fused kernels and of convolutions are for.

Triton reads on its first import whether it is to interpret its kernels on the host, and so
``test_triton`` runs these tests in a process of its own, with the environment variable ``KERNELS``:
"triton" for the interpreter, "cuda" for a device. Without it they are for the host's kernels.
"""

from __future__ import annotations

import os

import pytest
import torch

from fewshot_blo.kernel.stacked.fused.device import FOR_DEVICE, triton_kernels

ASKED = os.environ.get("KERNELS", "native")
DEVICE = torch.device("cuda" if ASKED == "cuda" else "cpu")


def use_asked_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test."""
    if ASKED == "triton":
        monkeypatch.setitem(FOR_DEVICE, "cpu", triton_kernels)


def use_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test of the Triton kernels: small images have many tiles, and a program has some."""
    if ASKED != "native":
        for name, value in {"TILE": 64, "COLUMNS": 2, "PROGRAMS": 8}.items():
            monkeypatch.setattr(f"fewshot_blo.kernel.stacked.fused.triton_tiles.{name}", value)
        monkeypatch.setattr("fewshot_blo.kernel.stacked.fused.triton_convolution.PROGRAMS", 8)
