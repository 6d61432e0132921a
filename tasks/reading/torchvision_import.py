"""The one place that imports torchvision, also where its compiled extension cannot load."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

# What importing torchvision refers to (torchvision/_meta_registrations.py, 0.23 to 0.28).
_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def torchvision_module() -> ModuleType:
    """Torchvision, imported on the first call: its data sets, transforms and models.

    Beside a CPU-only torch, the torchvision that package registries serve by default is built for
    CUDA. Its compiled extension does not load there, and the import ends in ``RuntimeError:
    operator torchvision::nms does not exist``, though only detection needs the extension. In that
    case alone the missing operators are declared, without an implementation, and the import is
    tried again. Calling one of them, as in ``torchvision.ops.nms``, still raises.

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
    # Submodules of the failed import are half initialised: all of them start again.
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]
    return importlib.import_module("torchvision")
