"""Import of torchvision, including installations whose compiled extension does not load."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

# Operators that importing torchvision refers to (torchvision/_meta_registrations.py, 0.23 to 0.28).
_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def torchvision_module() -> ModuleType:
    """Imports torchvision lazily: its data sets, transforms and models.

    The torchvision that package registries serve by default is built for CUDA. With a CPU-only
    torch its compiled extension does not load, and the import raises ``RuntimeError: operator
    torchvision::nms does not exist``, although only detection needs the extension. In that case
    the missing operators are declared without an implementation, and the import is tried again.
    Calling one of them, as in ``torchvision.ops.nms``, still raises.

    Raises:
        ImportError: if torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ImportError(
            "torchvision is not installed: install the release that belongs to "
            f"torch {torch.__version__} (pip install torchvision)"
        ) from error
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for operator, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", schema)
    # Submodules of the failed import are partly initialized: import all of them again.
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]
    return importlib.import_module("torchvision")
