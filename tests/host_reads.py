"""Counts what a computation reads on the host, with tensors that have no values."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
ROOT = Path(__file__).resolve().parents[1]
META = torch.device("meta")


class HostReads(TorchDispatchMode):
    """Answers every question to the device "meta" with 1, and notes who asked.

    So a step takes the same paths as on a GPU, which are not those of the host, and goes on after
    a read. What has a shape that depends on values, such as a mask as an index, is an error.

    Attributes:
        places: file and function of each read.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not any(x.device == META for x in tensors):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            self._note()
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten.equal.default:
            self._note()
            return True
        if func is aten._linalg_check_errors.default:
            return self._note()
        target = args[0].device if func is aten.copy_.default else kwargs.get("device")
        if target is not None and torch.device(target).type == "cpu":
            self._note()
            source = args[1] if func is aten.copy_.default else args[0]
            values = torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
            return args[0].copy_(values) if func is aten.copy_.default else values
        return func(*args, **kwargs)

    def _note(self) -> None:
        frames = [frame for frame in traceback.extract_stack() if _is_ours(frame.filename)]
        frame = frames[-1]
        self.places.append(f"{Path(frame.filename).name}: {frame.name}")


def _is_ours(file: str) -> bool:
    path = Path(file)
    installed = "site-packages" in path.parts  # An environment may lie in the checkout.
    return path.is_relative_to(ROOT) and path != Path(__file__) and not installed
