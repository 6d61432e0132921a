"""Exports a classifier for use without this package: a plain module, torch.export or ONNX."""

from __future__ import annotations

from fewshot_blo.finetune.export.agreement import Agreement
from fewshot_blo.finetune.export.module import Deployed, to_module
from fewshot_blo.finetune.export.write import export

__all__ = ["Agreement", "Deployed", "export", "to_module"]
