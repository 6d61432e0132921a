"""Trained models by name: those of the package, of a folder, and of Hugging Face's hub."""

from __future__ import annotations

from fewshot_blo.models.pretrained import PretrainedModel
from fewshot_blo.models.released import load_pretrained

__all__ = ["PretrainedModel", "load_pretrained"]
